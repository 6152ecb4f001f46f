"""One builder of a cache, which works beside any number of others."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from accelerate import Accelerator

from kdscale.building.part import WHOLE, Part, Shard
from kdscale.building.shards import ShardBuilder, ShardQueue
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.store import Place, is_remote
from kdscale.cache.writer import ShardWriter, finish
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import CacheIncompleteError
from kdscale.formatting import number_of
from kdscale.polling import wait_until
from kdscale.progress import progress
from kdscale.signals import StopRequest
from kdscale.target_sources.shard_order import building_order
from kdscale.teacher.frozen_teacher import OomSafeTeacher

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # between looks at what other builders do


@dataclass(frozen=True, slots=True)
class Builder:
    """One builder of a cache: images, views, teacher, and its leases on shards."""

    place: Place
    images: DeviceImages
    views: Pipeline
    teacher: OomSafeTeacher
    leases: Leases
    accelerator: Accelerator
    stop: StopRequest
    shift_every: int | None
    """Samples between two changes of view of the training's schedule, whose order a build follows;
    None = a view an epoch."""
    part: Part = WHOLE
    """Part of the cache that this builder begins with; the default is all of it."""

    def complete(self) -> None:
        """Build until the cache is complete, beside any number of other builders.

        Shards that other builders work on are waited for; those of one that dies are taken over.

        Raises:
            Interrupted: a stop was requested; finished shards stay.
            StorageError: the disk is full, read-only or not permitted.
        """
        build = {"num_processes": self.accelerator.num_processes}
        while not (manifest := read_manifest(self.place)).complete:
            self._build_missing(ShardWriter(self.place, manifest))
            with suppress(CacheIncompleteError):  # views were added meanwhile: go on with them
                finish(self.place, manifest, build, self.leases)
        seconds = manifest.build_seconds
        log.info("cache %s is complete: %.1f s of building", self.place, seconds)

    def _build_missing(self, writer: ShardWriter) -> None:
        """Build what nobody else does, until all shards of the manifest are committed."""
        queue = self._queue(writer)
        builder = ShardBuilder(
            self.images, self.views, self.teacher, writer, self.leases,
            between_chunks=self._check_stop,  # a large object may take minutes
        )  # fmt: skip
        pauses, waiting = self._pauses(), False
        total = sum(_num_samples(writer.manifest, one) for one in queue.missing)
        try:
            with progress(total, "views", visible=self.accelerator.is_main_process) as bar:
                while queue.missing:
                    self._check_stop()
                    built = 0
                    for one in builder.build_each(queue.claim_each()):
                        built += _num_samples(writer.manifest, one)
                        bar.update(_num_samples(writer.manifest, one))
                        self._check_stop()
                    builder.wait()
                    queue.refresh()
                    if built:
                        pauses = self._pauses()
                    elif queue.missing:
                        if not waiting:
                            awaited = number_of(len(queue.missing), "shard")
                            log.info("waiting for %s of other builders", awaited)
                        waiting = True
                        self._wait(next(pauses))
        finally:
            builder.close()

    def _queue(self, writer: ShardWriter) -> ShardQueue:
        manifest, accelerator = writer.manifest, self.accelerator
        schedule = ViewSchedule(manifest.num_views, manifest.views["seed"], self.shift_every)
        part = self.part.of_process(accelerator.process_index, accelerator.num_processes)
        return ShardQueue(writer, self.leases, building_order(schedule, manifest), part)

    def _pauses(self) -> Iterator[float]:
        """Yield the seconds between two looks at what other builders do.

        In a folder a look costs nothing; in an object store it is several requests, so that pauses
        double there.
        """
        longest = self.leases.interval_seconds if is_remote(self.place) else _POLL_SECONDS
        pause = _POLL_SECONDS
        while True:
            yield pause
            pause = min(2 * pause, longest)

    def _wait(self, seconds: float) -> None:
        wait_until(lambda: False, seconds=seconds, check=self._check_stop)

    def _check_stop(self) -> None:
        if self.stop.received is not None:
            raise self.stop.interrupted(
                f"stopped; finished shards of {self.place} are stored: run the same command again"
            )


def _num_samples(manifest: Manifest, shard: Shard) -> int:
    start, stop = manifest.shard_range(shard[1])
    return stop - start
