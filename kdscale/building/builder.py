"""One builder of a cache, beside any number of others: nobody waits for a process."""

import logging
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from kdscale.building.shards import ShardBuilder, ShardQueue
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import read_manifest
from kdscale.cache.stores.base import Place
from kdscale.cache.writer import ShardWriter, finish
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import CacheIncompleteError
from kdscale.formatting import number_of
from kdscale.signals import StopRequest
from kdscale.target_sources.shard_order import building_order
from kdscale.teacher.frozen_teacher import OomSafeTeacher

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # between looks at what other builders do


@dataclass(frozen=True, slots=True)
class Builder:
    """One builder and what it has in hand."""

    place: Place
    images: DeviceImages
    views: Pipeline
    teacher: OomSafeTeacher
    claims: Leases
    accelerator: Accelerator
    stop: StopRequest
    shift_every: int | None
    """Of the recipe's schedule, which shards are built in the order of."""

    def complete(self) -> None:
        """Build until the cache is complete.

        What others build is waited for; shards of one that dies are taken over.

        Raises:
            Interrupted: asked to stop; finished shards are kept.
            StorageError: the disk is full, read-only or not permitted.
        """
        build = {"num_processes": self.accelerator.num_processes}
        while not (manifest := read_manifest(self.place)).complete:
            self._build_missing(ShardWriter(self.place, manifest))
            with suppress(CacheIncompleteError):  # views were added meanwhile: go on with them
                finish(self.place, manifest, build, self.claims)
        seconds = manifest.build_seconds
        log.info("cache %s is complete: %.1f s of building", self.place, seconds)

    def _build_missing(self, writer: ShardWriter) -> None:
        """Build what nobody else does, until all shards of the manifest are committed."""
        shards = self._shards(writer)
        sizes = {one: np.ptp(writer.manifest.shard_range(one[1])) for one in shards.missing}
        builder = ShardBuilder(
            self.images, self.views, self.teacher, writer, self.claims,
            between_chunks=self._check_stop,  # a large object may take minutes
        )  # fmt: skip
        waiting = False
        try:
            with _bar(sum(sizes.values()), visible=self.accelerator.is_main_process) as bar:
                while shards.missing:
                    self._check_stop()
                    for one in builder.build_each(shards.claim_each()):
                        bar.update(sizes[one])
                        self._check_stop()
                    builder.wait()
                    shards.look()
                    if shards.missing:
                        if not waiting:
                            awaited = number_of(len(shards.missing), "shard")
                            log.info("waiting for %s of other builders", awaited)
                        waiting = True
                        self._check_stop()
                        time.sleep(_POLL_SECONDS)
        finally:
            builder.close()

    def _shards(self, writer: ShardWriter) -> ShardQueue:
        manifest, accelerator = writer.manifest, self.accelerator
        schedule = ViewSchedule(manifest.num_views, manifest.views["seed"], self.shift_every)
        who = accelerator.process_index, accelerator.num_processes
        return ShardQueue(writer, self.claims, building_order(schedule, manifest), *who)

    def _check_stop(self) -> None:
        if self.stop.received is not None:
            raise self.stop.interrupted(
                f"stopped; finished shards of {self.place} are kept: run the same command again"
            )


def _bar(total: int, *, visible: bool) -> "tqdm[Any]":
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        unit=" views",
        unit_scale=True,
        mininterval=interval,
        delay=interval,
        leave=False,
        disable=not visible,
    )
