"""Who works on which part of a cache: claims that independent builders see and respect.

A claim is a file that only one builder can create. A builder that lives moves a counter; one whose
counter stands still, measured with the observer's own clock, has its claims taken over. No clock is
compared with another one's, and the time of day is never asked. `cache/README.md` specifies the
files. A claim only saves work twice done: the worst that two holders of one could do is to write
the same shard.
"""

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

from kdscale.durable import create_folder, storage_error
from kdscale.errors import ClaimLostError

log = logging.getLogger(__name__)

FOLDER = "claims"
MANIFEST = "manifest"
"""What to claim before the manifest is changed."""
INTERVAL_SECONDS = 5.0
"""Between two counts of a builder."""
PATIENCE_SECONDS = 90.0
"""A builder whose counter stands still for so long is dead. Network disks show another machine's
writes up to a minute late."""
_POLL_SECONDS = 0.1
_FILE = re.compile(r"(.+)\.(\d+|builder)")


class Claims:
    """One builder's claims on parts of the cache at `path`; close it, or use it with `with`.

    Claiming and checking may happen in different threads. The first claim writes the first file.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval_seconds: float | None = None,
        patience_seconds: float | None = None,
    ) -> None:
        self.folder = path / FOLDER
        self.builder = os.urandom(8).hex()
        self._interval = INTERVAL_SECONDS if interval_seconds is None else interval_seconds
        self._patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        self._content = json.dumps({"builder": self.builder, **_this_process()}).encode()
        self._held: dict[str, int] = {}
        self._counts: dict[str, tuple[bytes, float]] = {}
        self._lock, self._closed = Lock(), Event()
        self._thread: Thread | None = None
        _HERE.add(self.builder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self, name: str) -> bool:
        """Try to claim a part that is free, or whose builder is dead; never waits.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """
        with self._lock:
            self._start()
            last = max(self._generations(name), default=-1)
            before = self._read(name, last)
            if last >= 0 and not self._is_dead(name, before):
                return False
            if not self._create(name, last + 1):
                return False
            if not self._is_rightful(name, last + 1, before):
                self._file(name, last + 1).unlink(missing_ok=True)
                return False
            self._held[name] = last + 1
        if last >= 0:
            log.info("%s: taken over from a builder that stopped%s", name, _of(before))
        return True

    def check(self, name: str) -> None:
        """Stop where a claim has been taken over: this builder stood still for too long.

        Raises:
            ClaimLostError: it is another builder's now.
        """
        generation = self._held.get(name, -1)
        taken = self._file(name, generation + 1).exists()
        if taken or self._read(name, generation) != self._content:
            raise ClaimLostError(f"{name} of {self.folder.parent} is another builder's now")

    def release(self, name: str) -> None:
        """Give up a claim; one that was lost is left to who has it."""
        with self._lock, suppress(ClaimLostError, OSError):
            generation = self._held.get(name, -1)
            try:
                self.check(name)
                for one in range(generation + 1):  # the newest last: it says that the part is held
                    self._file(name, one).unlink(missing_ok=True)
            finally:
                self._held.pop(name, None)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a claim for a block; waits for it.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """
        while not self.claim(name):
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self.release(name)

    def clear(self) -> None:
        """Remove what all builders left, once the cache is complete; what is held here stays.

        A builder that still waits for this moment holds nothing that it needs.
        """
        with self._lock:
            ours = {self._file(name, generation) for name, generation in self._held.items()}
            for file in _files(self.folder):
                if file not in ours and file.name != f"{self.builder}.builder":
                    with suppress(OSError):
                        file.unlink()

    def close(self) -> None:
        """Release everything and stop counting; the last builder removes the folder."""
        self._closed.set()
        if self._thread is None:
            return
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        _HERE.discard(self.builder)
        with suppress(OSError):
            self._counter.unlink(missing_ok=True)
            self.folder.rmdir()

    # ---------------------------------------------------------------- files

    def _file(self, name: str, generation: int) -> Path:
        return self.folder / f"{name}.{generation}"

    @property
    def _counter(self) -> Path:
        return self.folder / f"{self.builder}.builder"

    def _generations(self, name: str) -> list[int]:
        parts = (_FILE.fullmatch(file.name) for file in _files(self.folder))
        return [int(m[2]) for m in parts if m and m[1] == name and m[2].isdecimal()]

    def _read(self, name: str, generation: int) -> bytes:
        """What a claim says; nothing where it is not there, or being written."""
        try:
            return self._file(name, generation).read_bytes()
        except OSError:
            return b""

    def _create(self, name: str, generation: int) -> bool:
        file = self._file(name, generation)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(descriptor, self._content)
            except OSError:
                file.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the last of other builders removed the folder just now
            create_folder(self.folder)
            return False
        except OSError as error:
            raise storage_error(file, error) from error
        return True

    def _is_rightful(self, name: str, generation: int, before: bytes) -> bool:
        """Whether a claim just created follows the one that was found dead, and none follows it.

        Meanwhile that one's heir may have finished and removed both, and a third builder begun
        anew. Both then find the other one's file, and step back.
        """
        if max(self._generations(name), default=-1) != generation:
            return False
        return self._read(name, generation - 1) == before

    # ---------------------------------------------------------------- the living and the dead

    def _start(self) -> None:
        """Begin to count."""
        if self._thread is None:
            try:
                create_folder(self.folder)
                self._count(0)
            except OSError as error:
                raise storage_error(self._counter, error) from error
            self._thread = Thread(target=self._keep_counting, name="heartbeat", daemon=True)
            self._thread.start()

    def _keep_counting(self) -> None:
        number = 0
        while not self._closed.wait(self._interval):
            number += 1
            with suppress(OSError):  # others then take this builder for dead: `check` tells it
                self._count(number)

    def _count(self, number: int) -> None:
        """Opened and closed each time, since that is when network disks pass a write on."""
        descriptor = os.open(self._counter, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, b"%020d" % number, 0)
        finally:
            os.close(descriptor)

    def _is_dead(self, name: str, content: bytes) -> bool:
        """Whether a claim's builder has ended, or stood still for long enough."""
        claim = _parse(content)
        builder = str(claim.get("builder", f"{name}, unreadable"))
        if _has_ended(claim):
            return True
        try:
            count = (self.folder / f"{builder}.builder").read_bytes()
        except OSError:
            count = b""
        now = time.monotonic()
        seen, since = self._counts.get(builder, (None, now))
        if seen != count:
            self._counts[builder] = (count, now)
            return False
        return now - since > self._patience


_HERE: set[str] = set()
"""Builders of this process: another one of its number is of a process that ended."""


def is_claims_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but claims."""
    named = folder.name == FOLDER and not folder.is_file()
    return named and all(_FILE.fullmatch(file.name) for file in _files(folder))


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parse(content: bytes) -> dict[str, Any]:
    try:
        claim = json.loads(content)
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _of(content: bytes) -> str:
    claim = _parse(content)
    return f" (process {claim['pid']} on {claim['host']})" if {"pid", "host"} <= set(claim) else ""


def _this_process() -> dict[str, Any]:
    machine, started = _machine(), _started(os.getpid())
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": machine,
        "started": started,
    }


def _machine() -> str:
    """This boot of this machine, and whose processes can be seen; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since boot: numbers are used again.

    Empty where there is no such process, or one that only waits to be buried; None where the system
    does not tell.
    """
    if not Path("/proc/self/stat").exists():
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _has_ended(claim: dict[str, Any]) -> bool:
    """Whether a claim's builder ran on this machine and does no longer: then nobody need wait."""
    if not claim.get("machine") or claim["machine"] != _machine():
        return False
    if claim.get("pid") == os.getpid():
        return claim.get("builder") not in _HERE
    started = _started(int(claim.get("pid", 0)))
    return started is not None and started != claim.get("started")
