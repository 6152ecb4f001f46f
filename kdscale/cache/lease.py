"""Who works on which part of a cache: claims that independent builders see and respect.

A claim is an object that only one builder can create. A builder that lives moves a counter; one
whose counter stands still, measured with the observer's own clock, has its claims taken over. No
clock is compared with another one's, and the time of day is never read. `cache/README.md`
specifies the objects. A claim only saves work twice done: the worst that two holders of one could
do is to write the same shard.
"""

import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Self

from kdscale.cache.process_identity import BUILDERS_HERE, ProcessIdentity, parse_identity
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.errors import ClaimLostError, StorageError, UnsafePathError
from kdscale.polling import wait_until

log = logging.getLogger(__name__)

FOLDER = "claims"
MANIFEST = "manifest"
"""What to claim before the manifest is changed."""
INTERVAL_SECONDS = 5.0
"""Between two counts of a builder."""
PATIENCE_SECONDS = 90.0
"""A builder whose counter stands still for so long is dead. Network disks show another machine's
writes up to a minute late."""
_UNREADABLE_SECONDS = 1.0
"""After so long, a claim that names nobody is nobody's. Only earlier versions created one empty,
and filled it at once."""
_LOOKS = 3
"""How often, within its patience, a living builder looks for what dead ones left."""
_POLL_SECONDS = 0.1
_KEY = re.compile(FOLDER + r"/([^/\\]+)\.([0-9]+|builder)")
_TEMPORARY = re.compile(FOLDER + r"/\.[^/]+\.tmp")
_DIGITS = 20  # of a counter; its builder's identity follows, on a line of its own


class Leases:
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
        self.interval_seconds = INTERVAL_SECONDS if interval_seconds is None else interval_seconds
        self._patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        self._content = ProcessIdentity.of_this(self.builder).to_bytes()
        self._held: dict[str, int] = {}
        self._counts: dict[str, tuple[bytes, float]] = {}
        self._seen: dict[str, bytes] = {}
        self._recent: dict[str, tuple[ProcessIdentity | None, bool]] = {}
        self._read_since = -math.inf
        self._lock, self._closed = Lock(), Event()
        self._thread: Thread | None = None
        self._took_over = False
        BUILDERS_HERE.add(self.builder)

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
            self._start(name)
            return self._claim(name)

    def _claim(self, name: str) -> bool:
        if self._create(name, 0, b""):  # the usual case, in the fewest requests
            return True
        last = max(self._generations(name), default=-1)
        before = self._read(name, last)
        if last >= 0 and not self._is_dead(name, before):
            return False
        if not self._create(name, last + 1, before):
            return False
        if last >= 0:
            self._took_over = True
            dead = parse_identity(before)
            log.info("%s: taken over from one that stopped%s", name, f" ({dead})" if dead else "")
        return True

    def _create(self, name: str, generation: int, before: bytes) -> bool:
        """Create the next lease on a part, and step back unless it follows the one before it.

        Meanwhile the heir of a dead builder may have finished and removed both, and a third builder
        begun anew. Both then find the other one's lease, and step back.
        """
        if not self._store.create(_key(name, generation), self._content):
            return False
        newest = max(self._generations(name), default=-1) == generation
        if newest and (not generation or self._read(name, generation - 1) == before):
            self._held[name] = generation
            return True
        self._remove(_key(name, generation))
        return False

    def available(self, names: Iterable[str]) -> list[str]:
        """Return the parts that are free, or whose builder is dead, by one listing.

        Contents of leases and counters are read again after a heartbeat interval only, so that
        many calls cost few requests.
        """
        newest = self._newest()
        if time.monotonic() - self._read_since > self.interval_seconds:
            self._recent, self._read_since = {}, time.monotonic()
        return [one for one in names if one not in newest or self._seems_dead(one, newest[one])]

    def _seems_dead(self, name: str, generation: int) -> bool:
        key = _key(name, generation)
        if key not in self._recent:
            content = self._read(name, generation)
            self._recent[key] = parse_identity(content), self._is_dead(name, content)
        identity, dead = self._recent[key]
        return dead or (identity is not None and identity.has_ended)  # here, at once

    def holder(self, name: str) -> str | None:
        """Return a description of the live owner of a part; None while that is unknown.

        A process of this machine is known at once, even where it stands still. Another machine's
        counter has to be seen moving, from one call of this to a later one.
        """
        claim = parse_identity(self._read(name, max(self._generations(name), default=-1)))
        if claim is None:
            return None
        if claim.is_here:
            return None if claim.has_ended else str(claim)
        try:
            count = self._store.read(_key(claim.builder, "builder"))
        except OSError:
            return None
        moves = self._seen.setdefault(claim.builder, count) != count
        return str(claim) if moves else None

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
        with self._lock:
            self._release(name)

    def _release(self, name: str) -> None:
        with suppress(ClaimLostError, OSError, UnsafePathError):
            generation = self._held.get(name, -1)
            try:
                self.check(name)
                older = self._generations(name) if generation else []
                for one in sorted(one for one in older if one < generation):
                    self._remove(_key(name, one))
                self._remove(_key(name, generation))  # the last: it says that the part is held
            finally:
                self._held.pop(name, None)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a claim for a block; waits for it.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """
        wait_until(lambda: self.claim(name))
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
                if is_claim(key) and key not in ours:
                    with suppress(OSError):
                        self._remove(key)

    def tidy(self) -> None:
        """Remove temporary files that killed writers left anywhere in the store.

        For a folder of few files, by who holds a claim in it.
        """
        self._store.tidy(self._counter)

    def close(self) -> None:
        """Release everything and stop counting; the last builder removes the folder."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            for name in list(self._held):
                self.release(name)
            if self._took_over:  # their claims went with ours, their counters are left
                self._look_for_dead()
            with suppress(OSError, UnsafePathError):
                self._remove(self._counter)
                self._store.prune(FOLDER)
        BUILDERS_HERE.discard(self.builder)

    # ---------------------------------------------------------------- objects

    @property
    def _counter(self) -> str:
        return _key(self.builder, "builder")

    def _remove(self, key: str) -> None:
        self._store.remove(key, durable=False)

    def _generations(self, name: str) -> list[int]:
        parts = (_KEY.fullmatch(key) for key, _ in self._store.keys(FOLDER))
        return [int(m[2]) for m in parts if m and m[1] == name and m[2].isdecimal()]

    def _newest(self) -> dict[str, int]:
        """Return the newest generation of the lease on each part that has one."""
        parts = (_KEY.fullmatch(key) for key, _ in self._store.keys(FOLDER))
        found = [(m[1], int(m[2])) for m in parts if m and m[2].isdecimal()]
        return dict(sorted(found))

    def _read(self, name: str, generation: int) -> bytes:
        """What a claim says; nothing where it is not there, or being written."""
        try:
            return self._store.read(_key(name, generation))
        except OSError:
            return b""

    # ---------------------------------------------------------------- the living and the dead

    def _start(self, wanted: str) -> None:
        """Begin to count, and clear what dead builders left, but for the claim that is wanted."""
        if self._thread is not None:
            return
        self._store.create(self._counter, self._count_text(0))
        thread = Thread(target=self._keep_counting, name="heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._remove(self._counter)
            raise
        self._thread = thread
        self._clear_dead(wanted)

    def _keep_counting(self) -> None:
        number, looked = 0, time.monotonic()
        while not self._closed.wait(self.interval_seconds):
            number += 1
            with suppress(StorageError, UnsafePathError):  # others take this builder for dead then
                self._store.overwrite(self._counter, self._count_text(number))
            if time.monotonic() - looked > self._patience / _LOOKS:
                looked = time.monotonic()
                self._look_for_dead()

    def _count_text(self, number: int) -> bytes:
        return b"%0*d\n" % (_DIGITS, number) + self._content

    def _look_for_dead(self) -> None:
        """Clear what builders left that died meanwhile, unless the claims are in use just now."""
        if self._lock.acquire(blocking=False):
            try:
                with suppress(OSError, UnsafePathError):
                    self._clear_dead("")
            finally:
                self._lock.release()

    def _clear_dead(self, wanted: str) -> None:
        """Remove claims, counters and temporary files of builders that are known to be dead.

        A claim is taken over before it is removed, as any claim, since others may do the same.
        """
        found = _listed(self._store)
        for name, content in found.claims.items():
            mine = name == wanted or name in self._held
            if not mine and self._is_dead(name, content) and self._claim(name):
                self._release(name)
        busy = {self.builder, *_listed(self._store).builders} if found.counts else set()
        for builder, count in found.counts.items():
            if builder not in busy and self._has_stopped(builder, count):
                with suppress(OSError):
                    self._remove(_key(builder, "builder"))
        self._store.tidy(self._counter, FOLDER)

    def _is_dead(self, name: str, content: bytes) -> bool:
        """Whether a claim's builder has ended, or stood still for long enough."""
        claim = parse_identity(content)
        if claim is None:
            return self._stands_still(f"{name}, unreadable", content, _UNREADABLE_SECONDS)
        try:
            count = self._store.read(_key(claim.builder, "builder"))
        except OSError:
            count = b""
        return claim.has_ended or self._stands_still(claim.builder, count, self._patience)

    def _has_stopped(self, builder: str, count: bytes) -> bool:
        """Whether the builder of a counter has ended, or stood still for long enough."""
        identity = _counted(count)
        ended = identity is not None and identity.has_ended
        return ended or self._stands_still(builder, count, self._patience)

    def _stands_still(self, what: str, state: bytes, seconds: float) -> bool:
        """Whether something has been in the same state for so long, as far as this one looked."""
        now = time.monotonic()
        seen, since = self._counts.get(what, (None, now))
        if seen != state:
            self._counts[what] = (state, now)
            return False
        return now - since > min(seconds, self._patience)


def living_builder(cache: Location, *, patience_seconds: float | None = None) -> str | None:
    """Somebody who builds a cache now, in words; None where nobody does.

    Builders of this machine are known at once. Of others a counter may have to be watched, for as
    long as it takes to call one dead.
    """
    store = open_store(cache)
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    seen, began = dict[str, bytes](), time.monotonic()
    while True:
        found = _listed(store)
        counted = {one: _counted(count) for one, count in found.counts.items()}
        known = found.builders | {one: who for one, who in counted.items() if who is not None}
        for who in known.values():
            if who.is_here and not who.has_ended:
                return str(who)
        counts = {
            one: count
            for one, count in found.counts.items()
            if one not in known or not known[one].has_ended
        }
        if any(seen.setdefault(one, count) != count for one, count in counts.items()):
            return "a builder on another machine, or one between two shards"
        if not counts or time.monotonic() - began > patience:
            return None
        if time.monotonic() - began < _POLL_SECONDS:
            log.info("a builder was here: watching for up to %.0f s whether it lives", patience)
        time.sleep(_POLL_SECONDS)


@dataclass(slots=True)
class _Listed:
    """What lies in a folder of claims."""

    claims: dict[str, bytes] = field(default_factory=dict)
    """Content of the newest claim on each part."""
    builders: dict[str, ProcessIdentity] = field(default_factory=dict)
    """Who has created a claim that is there, by builder."""
    counts: dict[str, bytes] = field(default_factory=dict)
    """Content of each counter, by builder."""


def _listed(store: Store) -> _Listed:
    """Read all claims and counters."""
    found, generations = _Listed(), dict[str, int]()
    for key, _ in list(store.keys(FOLDER)):
        parts = _KEY.fullmatch(key)
        if parts is None:
            continue
        name, kind = parts.groups()
        with suppress(FileNotFoundError):  # it was removed just now
            content = store.read(key)
            if kind == "builder":
                found.counts[name] = content
                continue
            if int(kind) >= generations.get(name, -1):
                generations[name], found.claims[name] = int(kind), content
            if (claim := parse_identity(content)) is not None:
                found.builders[claim.builder] = claim
    return found


def _counted(count: bytes) -> ProcessIdentity | None:
    """Return whose counter it is; None of one that an earlier version wrote."""
    return parse_identity(count[_DIGITS + 1 :])


def _key(name: str, kind: int | str) -> str:
    return f"{FOLDER}/{name}.{kind}"


def is_claim(key: str) -> bool:
    """Whether a key is a claim's or a counter's, or that of what is to become one."""
    return _KEY.fullmatch(key) is not None or _TEMPORARY.fullmatch(key) is not None
