"""Who works on which part of a cache: claims that independent builders see and respect.

A claim is an object that only one builder can create. A builder that lives moves a counter; one
whose counter stands still, measured with the observer's own clock, has its claims taken over. No
clock is compared with another one's, and the time of day is never asked. `cache/README.md`
specifies the objects. A claim only saves work twice done: the worst that two holders of one could
do is to write the same shard.
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

from kdscale.cache.store import Location, Store, open_store
from kdscale.errors import ClaimLostError, StorageError

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
_KEY = re.compile(FOLDER + r"/([^/]+)\.(\d+|builder)")


class Claims:
    """One builder's claims on parts of a cache; close it, or use it with `with`.

    Claiming and checking may happen in different threads. The first claim writes the first object.
    """

    def __init__(
        self,
        cache: Location,
        *,
        interval_seconds: float | None = None,
        patience_seconds: float | None = None,
    ) -> None:
        self._store = open_store(cache)
        self.builder = os.urandom(8).hex()
        self._interval = INTERVAL_SECONDS if interval_seconds is None else interval_seconds
        self._patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        self._content = json.dumps({"builder": self.builder, **_this_process()}).encode()
        self._held: dict[str, int] = {}
        self._counts: dict[str, tuple[bytes, float]] = {}
        self._seen: dict[str, bytes] = {}
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
            if not self._store.create(_key(name, last + 1), self._content):
                return False
            if not self._is_rightful(name, last + 1, before):
                self._remove(_key(name, last + 1))
                return False
            self._held[name] = last + 1
        if last >= 0:
            log.info("%s: taken over from one that stopped%s", name, _of(before))
        return True

    def holder(self, name: str) -> str | None:
        """Who is known to live and to hold a part, in words; None while that cannot be said.

        A process of this machine is known at once, even where it stands still. Another machine's
        counter has to be seen moving, from one call of this to a later one.
        """
        claim = _parse(self._read(name, max(self._generations(name), default=-1)))
        if claim.get("machine") and claim["machine"] == _machine():
            return None if _has_ended(claim) else _who(claim)
        builder = str(claim.get("builder"))
        try:
            count = self._store.read(_key(builder, "builder"))
        except OSError:
            return None
        moves = self._seen.setdefault(builder, count) != count
        return _who(claim) if moves else None

    def check(self, name: str) -> None:
        """Stop where a claim has been taken over: this builder stood still for too long.

        Raises:
            ClaimLostError: it is another builder's now.
        """
        generation = self._held.get(name, -1)
        taken = self._store.size(_key(name, generation + 1)) is not None
        if taken or self._read(name, generation) != self._content:
            raise ClaimLostError(f"{name} of {self._store.location} is another builder's now")

    def release(self, name: str) -> None:
        """Give up a claim; one that was lost is left to who has it."""
        with self._lock, suppress(ClaimLostError, OSError):
            generation = self._held.get(name, -1)
            try:
                self.check(name)
                for one in range(generation + 1):  # the newest last: it says that the part is held
                    self._remove(_key(name, one))
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
            ours = {self._counter, *(_key(name, held) for name, held in self._held.items())}
            for key, _ in list(self._store.keys(FOLDER)):
                if key not in ours:
                    with suppress(OSError):
                        self._remove(key)

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
            self._remove(self._counter)
            self._store.prune(FOLDER)

    # ---------------------------------------------------------------- objects

    @property
    def _counter(self) -> str:
        return _key(self.builder, "builder")

    def _remove(self, key: str) -> None:
        self._store.remove(key, durable=False)

    def _generations(self, name: str) -> list[int]:
        parts = (_KEY.fullmatch(key) for key, _ in self._store.keys(FOLDER))
        return [int(m[2]) for m in parts if m and m[1] == name and m[2].isdecimal()]

    def _read(self, name: str, generation: int) -> bytes:
        """What a claim says; nothing where it is not there, or being written."""
        try:
            return self._store.read(_key(name, generation))
        except OSError:
            return b""

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
            self._count(0)
            self._thread = Thread(target=self._keep_counting, name="heartbeat", daemon=True)
            self._thread.start()

    def _keep_counting(self) -> None:
        number = 0
        while not self._closed.wait(self._interval):
            number += 1
            with suppress(StorageError):  # others then take this builder for dead: `check` tells it
                self._count(number)

    def _count(self, number: int) -> None:
        self._store.overwrite(self._counter, b"%020d" % number)

    def _is_dead(self, name: str, content: bytes) -> bool:
        """Whether a claim's builder has ended, or stood still for long enough."""
        claim = _parse(content)
        builder = str(claim.get("builder", f"{name}, unreadable"))
        if _has_ended(claim):
            return True
        try:
            count = self._store.read(_key(builder, "builder"))
        except OSError:
            count = b""
        now = time.monotonic()
        seen, since = self._counts.get(builder, (None, now))
        if seen != count:
            self._counts[builder] = (count, now)
            return False
        return now - since > self._patience


def living_builder(cache: Location, *, patience_seconds: float | None = None) -> str | None:
    """Somebody who builds a cache now, in words; None where nobody does.

    Builders of this machine are known at once. Of others a counter may have to be watched, for as
    long as it takes to call one dead.
    """
    store = open_store(cache)
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    seen, began = dict[str, bytes](), time.monotonic()
    while True:
        claims, counts = _claims_and_counts(store)
        for claim in claims.values():
            if claim.get("machine") == _machine() and not _has_ended(claim):
                return _who(claim)
        counts = {
            one: count for one, count in counts.items() if not _has_ended(claims.get(one, {}))
        }
        if any(seen.setdefault(one, count) != count for one, count in counts.items()):
            return "a builder on another machine, or one between two shards"
        if not counts or time.monotonic() - began > patience:
            return None
        if time.monotonic() - began < _POLL_SECONDS:
            log.info("a builder was here: watching for up to %.0f s whether it lives", patience)
        time.sleep(_POLL_SECONDS)


def _claims_and_counts(store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """A claim of each builder that has one, and the counters of all."""
    claims, counts = dict[str, dict[str, Any]](), dict[str, bytes]()
    for key, _ in list(store.keys(FOLDER)):
        name = _KEY.fullmatch(key)
        with suppress(OSError):  # it was removed just now
            if name is not None and name[2] == "builder":
                counts[name[1]] = store.read(key)
            elif name is not None:
                claim = _parse(store.read(key))
                claims[str(claim.get("builder"))] = claim
    return claims, counts


_HERE: set[str] = set()
"""Builders of this process: another one of its number is of a process that ended."""


def _key(name: str, kind: int | str) -> str:
    return f"{FOLDER}/{name}.{kind}"


def is_claim(key: str) -> bool:
    """Whether a key is a claim's or a counter's."""
    return _KEY.fullmatch(key) is not None


def _parse(content: bytes) -> dict[str, Any]:
    try:
        claim = json.loads(content)
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _who(claim: dict[str, Any]) -> str:
    return f"process {claim.get('pid')} on {claim.get('host')}"


def _of(content: bytes) -> str:
    claim = _parse(content)
    return f" ({_who(claim)})" if {"pid", "host"} <= set(claim) else ""


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
