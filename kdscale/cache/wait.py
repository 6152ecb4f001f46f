"""Waiting for what builders make, as long as one of them lives."""

import time
from collections.abc import Callable
from threading import Event

from kdscale.cache import lease
from kdscale.cache.stores.store import Store
from kdscale.errors import CacheIncompleteError, StorageError

_POLL_SECONDS = 0.1


class Watch:
    """Looks, from its creation on, whether builders of a cache live.

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
            CacheIncompleteError: says that `wanted` is not there.
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
        for key, _ in self._store.keys(lease.FOLDER):
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
            wanted: what it is called, for messages.

        Raises:
            CacheIncompleteError: nobody builds it; or waiting was called off.
        """
        watch = Watch(store)
        while not ready():
            watch.check(wanted)
            if self._stopped.wait(_POLL_SECONDS):
                raise CacheIncompleteError(f"{store.location}: no longer waiting for {wanted}")

    def stop(self) -> None:
        """Call all waiting off, now and later."""
        self._stopped.set()
