"""What reading targets from a cache costs a training run."""

from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ReadStats:
    """Reading of targets by one process since it started."""

    buffer_bytes: int
    """Size of the buffer in memory that contains targets as they are stored, in bytes."""
    num_windows: int
    """Number of windows an epoch is read in; 1 = the whole epoch is in memory."""
    waited_seconds: float
    """Time spent waiting for targets that were not in memory when needed, in seconds."""
    read_bytes: int
    """Bytes of targets and digests read from the cache, as stored."""
    needed_bytes: int
    """Bytes read that belong to the samples and views this process trained on."""

    @property
    def amplification(self) -> float:
        """Return the bytes read for each byte needed."""
        return self.read_bytes / self.needed_bytes if self.needed_bytes else 1.0

    def __add__(self, other: Self) -> Self:
        """Add the figures of two caches that are read side by side."""
        return replace(
            self,
            buffer_bytes=self.buffer_bytes + other.buffer_bytes,
            waited_seconds=self.waited_seconds + other.waited_seconds,
            read_bytes=self.read_bytes + other.read_bytes,
            needed_bytes=self.needed_bytes + other.needed_bytes,
        )

    def since(self, before: Self) -> Self:
        """Return the figures with waiting time counted since `before`, the rest from the start."""
        return replace(self, waited_seconds=self.waited_seconds - before.waited_seconds)

    def to_json(self, train_seconds: float) -> dict[str, Any]:
        """Return the entry of `result.json`; waiting is related to `train_seconds` of training."""
        return {
            "held_bytes": self.buffer_bytes,
            "num_windows": self.num_windows,
            "waited_seconds": round(self.waited_seconds, 3),
            "waited_share": round(self.waited_seconds / train_seconds, 5) if train_seconds else 0.0,
            "read_bytes": self.read_bytes,
            "needed_bytes": self.needed_bytes,
            "read_amplification": round(self.amplification, 4),
        }

    def describe(self, train_seconds: float) -> str:
        """Describe the figures in a sentence for the log."""
        share = 100 * self.waited_seconds / train_seconds if train_seconds else 0.0
        return (
            f"read {memory_text(self.read_bytes)}, {self.amplification:.2f} times what was needed, "
            f"into {memory_text(self.buffer_bytes)} of memory; waited {self.waited_seconds:.2f} s "
            f"for them, {share:.1f} % of training"
        )


def memory_text(number: int) -> str:
    """Format a size of memory, such as "1.5 GiB", rounded up so that the value is enough.

    In the units that `cache.targets_memory` is set in; files are in decimal ones, `bytes_text`.
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{-(-number * 10 // size) / 10:g} {unit}"
    return "1 byte" if number == 1 else f"{number} bytes"
