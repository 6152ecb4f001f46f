"""Leases on parts of a cache, which independent builders respect.

A lease is an object that only one builder can create. A builder that lives moves a counter; one
whose counter stands still, by the observer's own monotonic clock, has its leases taken over. No two
clocks are compared, and the time of day is never read. A lease only saves work: the worst that two
holders of one could do is to write the same shard.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import Self

from kdscale.cache.lease_files import (
    FOLDER,
    counter_key,
    counter_text,
    generations,
    is_lease,
    lease_key,
    list_leases,
    parse_counter,
)
from kdscale.cache.process_identity import BUILDERS_HERE, ProcessIdentity, parse_identity
from kdscale.cache.stores.store import Location, open_store
from kdscale.errors import ClaimLostError, StorageError, UnsafePathError
from kdscale.polling import wait_until

log = logging.getLogger(__name__)

MANIFEST = "manifest"
"""Name of the lease under which the manifest is changed."""
INTERVAL_SECONDS = 5.0
"""Seconds between two counts of a builder."""
PATIENCE_SECONDS = 90.0
"""Seconds after which a builder whose counter stands still is dead. Network disks show another
machine's writes up to a minute late."""
_UNREADABLE_SECONDS = 1.0
"""Seconds after which a lease that names no builder is free. Only earlier versions created one
empty, and filled it at once."""
_CLEARINGS = 3
"""Number of times within its patience that a living builder clears what dead ones left."""


class Leases:
    """One builder's leases on parts of a cache; close it, or use it with `with`.

    Any number of threads may use it. The first lease writes the first object.
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
        self._counter = counter_key(self.builder)
        self._held: dict[str, int] = {}  # generation of each lease of this builder
        self._states: dict[str, tuple[bytes, float]] = {}  # of counters, and since when
        self._seen: dict[str, bytes] = {}  # first state of counters, for `holder`
        self._verdicts: dict[str, tuple[ProcessIdentity | None, bool]] = {}  # for `available`
        self._verdicts_since = -math.inf
        self._lock, self._closed = Lock(), Event()
        self._thread: Thread | None = None
        self._took_over = False
        BUILDERS_HERE.add(self.builder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self, name: str) -> bool:
        """Take the lease on a part that is free, or whose builder is dead; never waits.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """
        with self._lock:
            self._start(name)
            return self._claim(name)

    def _claim(self, name: str) -> bool:
        if self._create(name, 0, b""):  # the usual case, in the fewest requests
            return True
        last = max(generations(self._store).get(name, [-1]))
        before = self._read(lease_key(name, last))
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
        if not self._store.create(lease_key(name, generation), self._content):
            return False
        newest = max(generations(self._store).get(name, [-1])) == generation
        if newest and (not generation or self._read(lease_key(name, generation - 1)) == before):
            self._held[name] = generation
            return True
        self._remove(lease_key(name, generation))
        return False

    def available(self, names: Iterable[str]) -> list[str]:
        """Return the parts that are free, or whose builder is dead, by one listing.

        Leases and counters are read again after a heartbeat interval only, so that many calls cost
        few requests.
        """
        found = generations(self._store)
        if time.monotonic() - self._verdicts_since > self.interval_seconds:
            self._verdicts, self._verdicts_since = {}, time.monotonic()
        return [one for one in names if one not in found or self._seems_dead(one, found[one][-1])]

    def _seems_dead(self, name: str, generation: int) -> bool:
        key = lease_key(name, generation)
        if key not in self._verdicts:
            content = self._read(key)
            self._verdicts[key] = parse_identity(content), self._is_dead(name, content)
        identity, dead = self._verdicts[key]
        return dead or (identity is not None and identity.has_ended)  # here, at once

    def holder(self, name: str) -> str | None:
        """Return a description of the living holder of a lease; None while that is unknown.

        A process of this machine is known at once, even where it stands still. Another machine's
        counter has to be seen moving, from one call of this to a later one.
        """
        last = max(generations(self._store).get(name, [-1]))
        identity = parse_identity(self._read(lease_key(name, last)))
        if identity is None:
            return None
        if identity.is_here:
            return None if identity.has_ended else str(identity)
        count = self._read(counter_key(identity.builder))
        moves = count and self._seen.setdefault(identity.builder, count) != count
        return str(identity) if moves else None

    def check(self, name: str) -> None:
        """Stop where a lease has been taken over: this builder stood still for too long.

        Raises:
            ClaimLostError: it is another builder's now.
        """
        generation = self._held.get(name, -1)
        taken = self._store.size(lease_key(name, generation + 1)) is not None
        if taken or self._read(lease_key(name, generation)) != self._content:
            raise ClaimLostError(f"{name} of {self._store.location} is another builder's now")

    def release(self, name: str) -> None:
        """Give up a lease; one that was lost is left to its new holder."""
        with self._lock:
            self._release(name)

    def _release(self, name: str) -> None:
        with suppress(ClaimLostError, OSError, UnsafePathError):
            generation = self._held.get(name, -1)
            try:
                self.check(name)
                older = generations(self._store).get(name, []) if generation else []
                for one in older:
                    if one < generation:
                        self._remove(lease_key(name, one))
                self._remove(lease_key(name, generation))  # last: with it, the part is free
            finally:
                self._held.pop(name, None)

    @contextmanager
    def exclusive(self, name: str, waiting: str | None = None) -> Iterator[None]:
        """Wait for a lease, and have it for a block; `waiting` is logged if another has it.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """

        def mention() -> None:
            if waiting is not None:
                log.info(waiting)

        wait_until(lambda: self.claim(name), first=mention)
        try:
            yield
        finally:
            self.release(name)

    def clear(self) -> None:
        """Remove all leases and counters but this builder's, once the cache is complete.

        A builder that still waits for this moment has no lease that it needs.
        """
        with self._lock:
            ours = {self._counter, *(lease_key(*one) for one in self._held.items())}
            for key, _ in list(self._store.keys(FOLDER)):
                if is_lease(key) and key not in ours:
                    with suppress(OSError):
                        self._remove(key)

    def tidy(self) -> None:
        """Remove temporary files that killed writers left anywhere in the store.

        For a folder of few files, by the holder of a lease in it.
        """
        self._store.tidy(self._counter)

    def close(self) -> None:
        """Release everything and stop counting; the last builder removes the folder."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            for name in list(self._held):
                self.release(name)
            if self._took_over:  # their leases went with ours, their counters are left
                self._look_for_dead()
            with suppress(OSError, UnsafePathError):
                self._remove(self._counter)
                self._store.prune(FOLDER)
        BUILDERS_HERE.discard(self.builder)

    # ---------------------------------------------------------------- the living and the dead

    def _start(self, wanted: str) -> None:
        """Begin to count, and clear what dead builders left, but for the wanted lease."""
        if self._thread is not None:
            return
        self._store.create(self._counter, counter_text(0, self._content))
        thread = Thread(target=self._count, name="heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._remove(self._counter)
            raise
        self._thread = thread
        self._clear_dead(wanted)

    def _count(self) -> None:
        number, looked = 0, time.monotonic()
        while not self._closed.wait(self.interval_seconds):
            number += 1
            with suppress(StorageError, UnsafePathError):  # others take this builder for dead then
                self._store.overwrite(self._counter, counter_text(number, self._content))
            if time.monotonic() - looked > self._patience / _CLEARINGS:
                looked = time.monotonic()
                self._look_for_dead()

    def _look_for_dead(self) -> None:
        """Clear what builders left that died meanwhile, unless the leases are in use just now."""
        if self._lock.acquire(blocking=False):
            try:
                with suppress(OSError, UnsafePathError):
                    self._clear_dead("")
            finally:
                self._lock.release()

    def _clear_dead(self, wanted: str) -> None:
        """Remove leases, counters and temporary files of builders that are known to be dead.

        A lease is taken over before it is removed, as any lease, since others may do the same.
        """
        found = list_leases(self._store)
        for name, content in found.leases.items():
            mine = name == wanted or name in self._held
            if not mine and self._is_dead(name, content) and self._claim(name):
                self._release(name)
        busy = {self.builder, *list_leases(self._store).builders} if found.counters else set()
        for builder, count in found.counters.items():
            if builder not in busy and self._has_stopped(parse_counter(count), builder, count):
                with suppress(OSError):
                    self._remove(counter_key(builder))
        self._store.tidy(self._counter, FOLDER)

    def _is_dead(self, name: str, content: bytes) -> bool:
        """Return whether a lease's builder has ended, or stood still for long enough."""
        identity = parse_identity(content)
        if identity is None:
            return self._stands_still(f"{name}, unreadable", content, _UNREADABLE_SECONDS)
        count = self._read(counter_key(identity.builder))
        return self._has_stopped(identity, identity.builder, count)

    def _has_stopped(self, identity: ProcessIdentity | None, builder: str, count: bytes) -> bool:
        """Return whether a builder has ended, or its counter stood still for long enough."""
        ended = identity is not None and identity.has_ended
        return self._stands_still(builder, count, self._patience) or ended

    def _stands_still(self, what: str, state: bytes, seconds: float) -> bool:
        """Return whether something has been in the same state for so long, as seen from here."""
        now = time.monotonic()
        seen, since = self._states.get(what, (None, now))
        if seen != state:
            self._states[what] = (state, now)
            return False
        return now - since > min(seconds, self._patience)

    def _read(self, key: str) -> bytes:
        """Return what an object contains; nothing where it is not there, or being written."""
        try:
            return self._store.read(key)
        except OSError:
            return b""

    def _remove(self, key: str) -> None:
        self._store.remove(key, durable=False)
