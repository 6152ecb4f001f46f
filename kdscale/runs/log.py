"""`metrics.jsonl` of a run: one JSON object a line, each with its run and a checksum of its own.

The key `crc32` of a line is the CRC-32 (8 hexadecimal digits) of the canonical JSON of its other
keys, and `run_id` the identity of the run. Lines of earlier versions have neither.
"""

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from kdscale.atomic_write import storage_error
from kdscale.documents import DAMAGE, canonical, without_nan
from kdscale.errors import RunError
from kdscale.regular_files import path_inside, read_inside
from kdscale.run_identity import RUN_FILE, RUN_ID, check_run, stated_run
from kdscale.runs.folder import RunFolder

log = logging.getLogger(__name__)

TORN = "has no end"
"""End of the message for a last line that was only written in part."""
_SUM, _SUM_DIGITS = "crc32", 8
_NUMBERS = (
    "step", "epoch", "loss", "hard_loss", "soft_loss", "feature_loss", "gradient_norm",
    "learning_rate", "images_per_second", "train_seconds", "top1_accuracy", "cross_entropy",
)  # fmt: skip


class MetricsLog:
    """The log of a training: appended to, and cut back to a checkpoint on resume."""

    def __init__(self, path: Path, *, size: int = 0, writes: bool = True) -> None:
        """Continue `path` after its first `size` bytes; what lies beyond is dropped.

        A log that is shorter has lost lines. Training does not depend on them, so it goes on after
        the last whole line, with a warning: weights and result are the same, curves have a gap.

        Args:
            path: the file.
            size: bytes that the checkpoint knew.
            writes: False for processes that keep no log; they only count.

        Raises:
            StorageError: the file cannot be written.
            RunError: it is of another run.
            UnsafePathError: it is a link or a special file.
        """
        self.path = path_inside(path.parent, path.name)
        self._run = stated_run(path.parent)
        self.size = size
        """Bytes so far, for the checkpoint."""
        self._file: BinaryIO | None = None
        self._dropped = b""
        if writes:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if size:
                    self.size = _sound_size(path, size)
                if path.exists():
                    self._dropped = read_inside(path.parent, path.name)[self.size :]
                self._file = path.open("ab")
                self._file.truncate(self.size)
            except OSError as error:
                raise storage_error(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; NaN and infinity, which JSON cannot hold, become null.

        Raises:
            StorageError: the disk is full.
        """
        sound = {**without_nan(record), **self._run}
        line = json.dumps({**sound, _SUM: _crc32(sound)}).encode() + b"\n"
        self.size += len(line)
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise storage_error(self.path, error) from error

    def dropped_records(self) -> list[dict[str, Any]]:
        """Return the records beyond the checkpoint, which were dropped when the log was opened."""
        return _parse(self._dropped, self.path)[0]

    def flush_to_disk(self) -> None:
        """Make what was appended survive a power cut: a checkpoint counts on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log.

    Raises:
        RunError: there is no log, or a line is damaged; it is named by its number.
    """
    records, damaged = read_sound_metrics(run)
    if damaged:
        raise RunError(f"{damaged[0]}: what was measured there is lost; train into a new --run")
    return records


def read_sound_metrics(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a run's log that are what was written, and a message for each other.

    Raises:
        RunError: there is no log.
        UnsafePathError: it is a link or a special file.
    """
    path = RunFolder(run).metrics_file
    try:
        data = read_inside(run, path.name)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error})") from None
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the sound records in the bytes of a log, and a message for each other line.

    Raises:
        RunError: a line is of another run.
    """
    records, damaged = list[dict[str, Any]](), list[str]()
    lines = data.split(b"\n")
    torn = lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            records.append(_record(line))
        except DAMAGE as error:
            damaged.append(f"line {number} of {path} is damaged ({str(error)[:100]})")
    stated = [record.pop(RUN_ID, None) for record in records]
    if (path.parent / RUN_FILE).exists():  # not in a recipe's folder, which has a run's log
        for one in dict.fromkeys(map(str, stated)):
            check_run(path, None if one == "None" else one)
    if torn:
        damaged.append(f"line {len(lines) + 1} of {path} {TORN}")
    return records, damaged


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if _SUM in record:
        if record.pop(_SUM) != _crc32(record):
            raise ValueError("it does not match its checksum")
    elif any(isinstance(one, str) and len(one) == _SUM_DIGITS for one in record.values()):
        raise ValueError(f"its key {_SUM!r} is damaged")  # no other value has that length
    for key in _NUMBERS:
        if isinstance(record.get(key), bool) or not isinstance(
            record.get(key, 0), int | float | None
        ):
            raise ValueError(f"{key!r} is no number")
    return record


def _crc32(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(canonical(record)):08x}"


def _sound_size(path: Path, size: int) -> int:
    """Return how many bytes of a log to go on after: `size`, or the end of its last whole line."""
    data = read_inside(path.parent, path.name)[:size] if path.exists() else b""
    for problem in _parse(data, path)[1][:3]:
        log.warning("%s: the report will leave it out", problem)
    if len(data) == size:
        return size
    whole = data.rfind(b"\n") + 1
    log.warning(
        "%s has %d bytes, wanted the %d of the checkpoint: lines are lost, and the curves of the "
        "report will have a gap; training goes on after the %d lines that are there",
        path, len(data), size, data.count(b"\n"),
    )  # fmt: skip
    return whole
