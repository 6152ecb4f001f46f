"""What reading targets from a cache has cost a training."""

from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ReadStats:
    """Of one process, since it started."""

    held_bytes: int
    """Of the memory in which targets are held, as they are stored."""
    num_windows: int
    """In which an epoch is read; 1: at once."""
    waited_seconds: float
    """For targets that were not in memory when they were needed."""
    read_bytes: int
    """Targets and digests from the cache, as stored."""
    needed_bytes: int
    """Those of them that are of samples, in views, that this process was to show."""

    @property
    def amplification(self) -> float:
        """Bytes read for each byte needed."""
        return self.read_bytes / self.needed_bytes if self.needed_bytes else 1.0

    def __add__(self, other: Self) -> Self:
        """Of two caches that are read side by side."""
        return replace(
            self,
            held_bytes=self.held_bytes + other.held_bytes,
            waited_seconds=self.waited_seconds + other.waited_seconds,
            read_bytes=self.read_bytes + other.read_bytes,
            needed_bytes=self.needed_bytes + other.needed_bytes,
        )

    def since(self, before: Self) -> Self:
        """What was waited since then; what is read is counted from the start."""
        return replace(self, waited_seconds=self.waited_seconds - before.waited_seconds)

    def to_json(self, train_seconds: float) -> dict[str, Any]:
        """As `result.json` has it; `train_seconds` are those in which was waited."""
        return {
            "held_bytes": self.held_bytes,
            "num_windows": self.num_windows,
            "waited_seconds": round(self.waited_seconds, 3),
            "waited_share": round(self.waited_seconds / train_seconds, 5) if train_seconds else 0.0,
            "read_bytes": self.read_bytes,
            "needed_bytes": self.needed_bytes,
            "read_amplification": round(self.amplification, 4),
        }

    def describe(self, train_seconds: float) -> str:
        """For people, since this process began."""
        share = 100 * self.waited_seconds / train_seconds if train_seconds else 0.0
        return (
            f"read {shown_bytes(self.read_bytes)}, {self.amplification:.2f} times what was needed, "
            f"into {shown_bytes(self.held_bytes)} of memory; waited {self.waited_seconds:.2f} s "
            f"for them, {share:.1f} % of training"
        )


def shown_bytes(number: int) -> str:
    """Memory for people: "1.5 GiB", rounded up, so that it is enough.

    In the units that `cache.targets_memory` is set in; files are in decimal ones, `bytes_text`.
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{-(-number * 10 // size) / 10:g} {unit}"
    return "1 byte" if number == 1 else f"{number} bytes"
