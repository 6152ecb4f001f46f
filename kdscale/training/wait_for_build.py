"""A student beside the build: it trains on the views that are finished, and waits for the next."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator

from kdscale.cache import lease
from kdscale.cache.catalog import find_cache
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import Location, open_store
from kdscale.cache.wait import Patience, Watch
from kdscale.cache.writer import is_free
from kdscale.distributed import any_process_stopped
from kdscale.errors import CacheIncompleteError, CacheNotFoundError
from kdscale.polling import wait_until
from kdscale.signals import StopRequest
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.shard_order import shards_of_epoch
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """Called before each epoch: waits until all views of the epoch have been built.

    All processes of a launch wait together, so that they stop together.
    """

    caches: Sequence[CachedTargets]
    loop: Trainer
    run: Path
    save: Callable[[], None]
    """Saves the state of the loop; all processes call it."""
    stop: StopRequest

    def __call__(self, epoch: int) -> None:
        """Wait.

        Raises:
            Interrupted: a signal stopped the run; the state is saved.
            CacheIncompleteError: no builder is alive; the state is saved.
        """
        for cached in self.caches:
            pending = []
            if not cached.manifest.complete:  # as this process found it: others may still wait
                pending = list(shards_of_epoch(cached.schedule, cached.manifest, epoch))
            began = perf_counter()
            self._wait(cached.reader, pending, epoch)
            self.loop.state.wait_seconds += perf_counter() - began

    def _wait(self, reader: CacheReader, pending: list[tuple[int, int]], epoch: int) -> None:
        """Wait until nothing is pending in any process."""
        watch, wanted = Watch(reader.store), ", ".join(f"view {view}" for view in dict(pending))

        def nothing_is_pending() -> bool:
            while pending and reader.is_there(*pending[0]):
                pending.pop(0)
            dead = _given_up(watch, wanted) if pending else None
            waits, gives_up = _any_of(self.loop.accelerator, bool(pending), dead is not None)
            if waits and (any_process_stopped(self.stop, self.loop.accelerator) or gives_up):
                self._end(dead)
            return not waits

        def mention() -> None:
            log.info("waiting for the build of %s, which epoch %d needs", wanted, epoch)

        wait_until(nothing_is_pending, first=mention)

    def _end(self, dead: str | None) -> None:
        self.save()
        step = self.loop.state.step
        state = f"state saved in {self.run}, after step {step}"
        if self.stop.received is not None or dead is None:
            raise self.stop.interrupted(
                f"stopped while waiting for the build; {state}: run the same command with "
                "--resume to go on"
            )
        raise CacheIncompleteError(f"{dead}; then run this command with --resume ({state})")


def _given_up(watch: Watch, wanted: str) -> str | None:
    """Return why the wait is in vain; None where it is not."""
    try:
        watch.check(wanted)
    except CacheIncompleteError as error:
        return str(error)
    return None


def _any_of(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """For each flag whether it is set in any process; all of them must call this."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, device=accelerator.device).long(), "sum")
    return [bool(count) for count in counts.tolist()]


def wait_for_manifest(cache: Location) -> Manifest:
    """The manifest of a cache that may not have been begun.

    Raises:
        CacheIncompleteError: no build begins it.
    """
    store = open_store(cache)
    try:
        return read_manifest(store)
    except CacheNotFoundError:
        if not is_free(store) and store.size(MANIFEST_KEY) is None:
            raise
        log.info("waiting for a build to begin %s", store.location)
    Patience().wait(store, lambda: store.size(MANIFEST_KEY) is not None, "its manifest")
    return read_manifest(store)


def wait_for_cache(root: Path, required: Manifest) -> Path:
    """Return a cache below `root` that fits, once a build has begun one.

    Raises:
        CacheIncompleteError: no build begins one.
    """

    def mention() -> None:
        log.info("waiting for a build to begin a cache in %s (id %s)", root, required.id)

    found = wait_until(
        lambda: find_cache(root, required), seconds=lease.PATIENCE_SECONDS, first=mention
    )
    if found is None:
        raise CacheIncompleteError(
            f"no cache in {root} holds what the recipe asks for (id {required.id}), and nobody "
            f"has begun one for {lease.PATIENCE_SECONDS:.0f} s: start `kdscale cache build` "
            "with the same recipe, or leave out --wait"
        )
    return found
