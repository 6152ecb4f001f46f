"""Waiting for what builders make, as long as one of them lives."""

import logging
import time
from collections.abc import Callable
from threading import Event

from kdscale.cache import lease
from kdscale.cache.lease_files import FOLDER, list_leases, parse_counter
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.errors import CacheIncompleteError, StorageError
from kdscale.polling import wait_until

log = logging.getLogger(__name__)


def living_builder(cache: Location, *, patience_seconds: float | None = None) -> str | None:
    """Return a description of a builder that works on a cache now; None without one.

    Builders of this machine are known at once. Of others a counter may have to be watched, for as
    long as it takes to call one dead.
    """
    store, seen = open_store(cache), dict[str, bytes]()
    patience = lease.PATIENCE_SECONDS if patience_seconds is None else patience_seconds

    def look() -> tuple[str | None] | None:
        """Return the answer in a tuple, or None while it takes longer."""
        found = list_leases(store)
        counted = {one: parse_counter(count) for one, count in found.counters.items()}
        known = found.builders | {one: who for one, who in counted.items() if who is not None}
        for who in known.values():
            if who.is_here and not who.has_ended:
                return (str(who),)
        counts = {
            one: count
            for one, count in found.counters.items()
            if one not in known or not known[one].has_ended
        }
        if any(seen.setdefault(one, count) != count for one, count in counts.items()):
            return ("a builder on another machine, or one between two shards",)
        return None if counts else (None,)

    answer = wait_until(
        look, seconds=patience,
        first=lambda: log.info(
            "a builder was here: watching for up to %.0f s whether it lives", patience
        ),
    )  # fmt: skip
    return answer[0] if answer else None


class Watch:
    """Observes, from its creation on, whether builders of a cache live.

    Their counters are compared with nothing but what they were before, on this machine's monotonic
    clock, as builders judge each other. Claims that come and go are a sign of life, too.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, bytes] | None = None
        self._since = self._looked = time.monotonic()

    def check(self, wanted: str) -> None:
        """Stop where nobody has built for as long as builders wait for each other.

        Raises:
            CacheIncompleteError: `wanted` is not there.
        """
        now = time.monotonic()
        if self._seen is None or now - self._looked >= lease.INTERVAL_SECONDS:
            self._looked = now
            found = self._look()
            if found != self._seen:
                self._seen, self._since = found, now
        if now - self._since > lease.PATIENCE_SECONDS:
            raise CacheIncompleteError(
                f"{self._store.location}: {wanted} is not there, and nobody has built for "
                f"{lease.PATIENCE_SECONDS:.0f} s: start `kdscale cache build` (again), on any "
                "machine that sees the cache"
            )

    def _look(self) -> dict[str, bytes]:
        found = {}
        for key, _ in self._store.keys(FOLDER):
            try:
                found[key] = self._store.read(key) if key.endswith(".builder") else b""
            except StorageError:
                raise
            except OSError:  # it went away just now
                found[key] = b""
        return found


class Patience:
    """Waits, until `stop` is called, for what builders of a cache make."""

    def __init__(self) -> None:
        self._stopped = Event()

    def wait(self, store: Store, ready: Callable[[], bool], wanted: str) -> None:
        """Wait until something is ready; any number of threads may.

        Args:
            store: where the cache lies.
            ready: looks whether it is.
            wanted: its name in messages.

        Raises:
            CacheIncompleteError: nobody builds it; or `stop` was called.
        """
        watch = Watch(store)

        def check() -> None:
            if self._stopped.is_set():
                raise CacheIncompleteError(f"{store.location}: no longer waiting for {wanted}")
            watch.check(wanted)

        wait_until(ready, check=check)

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._stopped.set()
