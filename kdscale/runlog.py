"""A run's folder: recipe, metrics and result, as files a person or a script can read."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from kdscale.durable import storage_error, write_durably
from kdscale.errors import RunError


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended; cut back to a checkpoint on resume."""

    def __init__(self, path: Path, *, size: int = 0, writes: bool = True) -> None:
        """Continue `path` after its first `size` bytes; what lies beyond is dropped.

        Args:
            path: the file.
            size: bytes to keep.
            writes: False for processes that keep no log; they only count.
        """
        self.path = path
        self.size = size
        """Bytes so far, for the checkpoint."""
        self._file: BinaryIO | None = None
        if writes:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab")
                self._file.truncate(size)
            except OSError as error:
                raise storage_error(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises:
            StorageError: the disk is full.
        """
        line = json.dumps(record).encode() + b"\n"
        self.size += len(line)
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise storage_error(self.path, error) from error

    def flush_to_disk(self) -> None:
        """Make what was appended survive a power cut: a checkpoint counts on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def write_result(run: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`: the run is finished."""
    write_durably(run / "result.json", json.dumps(result, indent=2).encode() + b"\n")


def read_result(run: Path) -> dict[str, Any]:
    """The run's `result.json`.

    Raises:
        RunError: no run there, or an unfinished one.
    """
    path = run / "result.json"
    if not path.is_file():
        begun = (run / "recipe.toml").is_file()
        raise RunError(
            f"{run} holds an unfinished run: go on with it first"
            if begun
            else f"no run at {run}: name a folder that `kdscale train` or `kdscale run` wrote"
        )
    try:
        result: object = json.loads(path.read_text())
        if not isinstance(result, dict) or not result.keys() >= _ALWAYS:
            raise ValueError("it is no result of a run")
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): remove it, and run with --resume") from None
    return result


_ALWAYS = {"top1_accuracy", "role", "targets", "seed"}
