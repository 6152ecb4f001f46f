"""A cache as a source of targets."""

import logging
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest, check_identity
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import Location
from kdscale.cache.wait import Patience
from kdscale.data.loader import Batch
from kdscale.data.views.batch_plan import SampleViews, View
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import CacheMismatchError, OutOfRangeError, ViewMismatchError
from kdscale.formatting import number_of
from kdscale.target_sources.buffer import TargetBuffer
from kdscale.target_sources.memory_plan import EVERYTHING, MemoryPlan, plan_memory
from kdscale.target_sources.prefetch import EpochMemory
from kdscale.target_sources.read_stats import ReadStats
from kdscale.targets import Targets
from kdscale.transfers import HostCopy

log = logging.getLogger(__name__)

_CHECKED_SAMPLES = 256  # of each view, at its start
_CHECKED_EVERY = 500  # batches, after that


class CachedTargets:
    """A cache, finished or with patience, as a source of targets, joined by (view, sample index).

    What an epoch shows lies on the device, as it is stored: all of it, or a window where it does
    not fit. What will be used next is read in a thread meanwhile. The pixels' digests are compared
    with those that the teacher saw for the first samples of each epoch's views and one batch now
    and then.
    """

    def __init__(
        self,
        reader: CacheReader,
        device: torch.device,
        num_views: int | None = None,
        shift_every: int | None = None,
        pipeline: Pipeline | None = None,
        features: Sequence[str] = (),
        *,
        fit: MemoryPlan = EVERYTHING,
        epochs: int | None = None,
    ) -> None:
        self.reader = reader
        self.manifest: Manifest = reader.manifest
        self.num_views = num_views or reader.manifest.num_views
        self.device = device
        self.pipeline = pipeline or Pipeline.from_description(reader.manifest.views)
        """What makes the pixels that the teacher saw."""
        self.schedule = ViewSchedule(self.num_views, self.pipeline.seed, shift_every)
        """Which views epochs show: every view once in `num_views` epochs."""
        self._memory = EpochMemory(
            reader, self.schedule, device, fit, epochs=epochs, features=features
        )
        self._num_batches = 0
        self._num_checked = 0  # samples of the batches so far
        self._checked: Hashable = None
        self._verdicts: deque[_Verdict] = deque()

    @property
    def windows(self) -> Windows | None:
        """What the order of training has to follow; None where any order will do."""
        return self._memory.windows

    @classmethod
    def open(
        cls,
        path: Location,
        *,
        device: str | torch.device = "cpu",
        num_views: int | None = None,
        shift_every: int | None = None,
        pipeline: Pipeline | None = None,
        features: Sequence[str] = (),
        patience: Patience | None = None,
        memory_bytes: int | None = None,
        together: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        fit: MemoryPlan | None = None,
    ) -> Self:
        """Open the cache at `path`.

        Args:
            path: the cache's folder or URL, or an open store.
            device: where targets are wanted.
            num_views: use only its first views.
            shift_every: see `ViewSchedule`.
            pipeline: what made the views, where it holds a callable of your own (`TorchvisionOp`),
                which a manifest can only name.
            features: modules of the teacher whose features the targets shall carry; no others are
                read.
            patience: of a cache that is being built, wait for what is not there yet.
            memory_bytes: of targets to hold. Where what an epoch shows does not fit, samples must
                be read in an order that follows `windows`, as `BatchLoader` does; None: any.
            together: consecutive samples that are always in one window; None: those that the
                views may mix, where they say so.
            seed: of the order of training, which windows follow.
            epochs: how many there will be, so that nothing is read for another one.
            fit: of several caches that share memory and windows, instead of `memory_bytes`,
                `together` and `seed`.

        Raises:
            CacheNotFoundError, CacheIncompleteError, CacheCorruptError: it cannot be read.
            CacheMismatchError: it has fewer views or features than requested.
            ConfigError: the memory holds no window.
        """
        reader = CacheReader(path, patience, num_views or 1)
        if num_views is not None and num_views > reader.manifest.num_views:
            raise CacheMismatchError(
                f"{reader.location} has {number_of(reader.manifest.num_views, 'view')}, "
                f"{num_views} are requested"
            )
        if pipeline is not None:
            views = {**pipeline.describe(), "count": reader.manifest.views.get("count")}
            check_identity(reader.location, reader.manifest, replace(reader.manifest, views=views))
        _check_features(reader, features)
        reader.check_records(num_views or reader.manifest.num_views)
        if reader.manifest.unverifiable is not None:
            log.warning("%s: %s", reader.location, reader.manifest.unverifiable)
        return cls(
            reader,
            torch.device(device),
            num_views,
            shift_every,
            pipeline,
            features,
            fit=fit or _fit(reader.manifest, memory_bytes, num_views, together, seed, features),
            epochs=epochs,
        )

    def start_epoch(self, epoch: int) -> None:
        """Bring in what the epoch shows first, and start to read what comes next."""
        self._memory.start_epoch(epoch)

    def targets(self, batch: Batch) -> Targets:
        """The targets of a batch, after checking its pixels where that is due."""
        return self.targets_of(batch.samples, batch.pixels)

    def read(self, view: View, index: Tensor, pixels: Tensor | None = None) -> Targets:
        """The targets of samples `index` (int64 [B]) in a view.

        Args:
            view: view number; int64 [B], as the schedule of a started epoch gives it, with
                `shift_every`.
            index: positions in the data set, in host memory.
            pixels: the view's uint8 pixels [B, C, H, W], to be checked where that is due.

        Raises:
            OutOfRangeError: the cache has no such view, or no such samples.
            ViewMismatchError: the pixels of this or an earlier batch are not those that the
                teacher saw.
            CacheCorruptError: a chunk is missing or damaged.
            ConfigError: the samples are not of one window and the next.
        """
        return self.targets_of(SampleViews.place(view, index, self.device), pixels)

    def targets_of(self, samples: SampleViews, pixels: Tensor | None = None) -> Targets:
        """Return the targets of samples; arguments and errors as of `read`."""
        buffer, rows = self._rows(samples)
        if pixels is not None and self.check_is_due(len(samples)):
            self._check(buffer, rows, samples, pixels)
        elif self._verdicts and self._verdicts[0].ready:
            self._verdicts.popleft().raise_error()
        return buffer.targets(rows)

    def check(self, samples: SampleViews, pixels: Tensor) -> None:
        """Compare pixels with the digests of those that the teacher saw.

        A GPU's verdict is read when it has arrived, by a later call or by `finish_checks`.

        Raises:
            ViewMismatchError: they differ, of this batch or an earlier one.
        """
        self._check(*self._rows(samples), samples, pixels)

    def finish_checks(self) -> None:
        """Wait for the verdicts that have not arrived yet.

        Raises:
            ViewMismatchError: the pixels of an earlier batch are not those that the teacher saw.
        """
        while self._verdicts:
            self._verdicts.popleft().raise_error()

    def check_is_due(self, num_samples: int) -> bool:
        """Whether the next batch should be checked, which is then taken as done."""
        self._num_batches += 1
        if self._num_checked >= _CHECKED_SAMPLES and self._num_batches % _CHECKED_EVERY:
            return False
        self._num_checked += num_samples
        return True

    def reading(self, share: float = 1.0) -> ReadStats:
        """What reading has cost so far.

        Args:
            share: of the samples that were brought in, those that this process was to show.
        """
        segments = self._memory.segments
        needed = share * segments.rows_used / max(1, segments.rows_read)
        return ReadStats(
            buffer_bytes=segments.buffer_bytes,
            num_windows=1 if self.windows is None else len(self.windows),
            waited_seconds=segments.waited_seconds,
            read_bytes=self.reader.bytes_read,
            needed_bytes=round(needed * self.reader.bytes_read),
        )

    def close(self) -> None:
        """Stop reading ahead, and waiting."""
        self.reader.close()
        self._memory.segments.close()

    def _rows(self, samples: SampleViews) -> tuple[TargetBuffer, Tensor]:
        self._check_range(samples)
        found = self._memory.rows(samples)
        if self._checked != self._memory.content:
            self._checked, self._num_checked = self._memory.content, 0
        return found

    def _check_range(self, samples: SampleViews) -> None:
        manifest, place = self.manifest, self.reader.location
        for what, numbers, count in (
            ("view", torch.as_tensor(samples.host_view), manifest.num_views),
            ("sample", samples.host_index, manifest.num_samples),
        ):
            if numbers.numel():
                first, last = (int(number) for number in numbers.aminmax())
                if first < 0 or last >= count:
                    outside = first if first < 0 else last
                    raise OutOfRangeError(f"{what} {outside}: {place} has {what}s 0..{count - 1}")

    def _check(
        self, buffer: TargetBuffer, rows: Tensor, samples: SampleViews, pixels: Tensor
    ) -> None:
        assert self._memory.contains(samples), "the epoch was started"
        differing = digest(pixels).to(self.device) != buffer.digests(rows)
        self._verdicts.append(_Verdict(HostCopy(differing), samples, str(self.reader.location)))
        while self._verdicts and self._verdicts[0].ready:  # on a CPU at once
            self._verdicts.popleft().raise_error()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Samples of a batch whose pixels differ from the teacher's, on the way to the host."""

    differing: HostCopy
    """bool [B]."""
    samples: SampleViews
    place: str
    """Location of the cache, for the message."""

    @property
    def ready(self) -> bool:
        """Whether the device has computed it."""
        return self.differing.ready

    def raise_error(self) -> None:
        """Raise ViewMismatchError if samples differ; wait for the verdict first."""
        differing = self.differing.get()
        if not differing.any():
            return
        first, view = int(differing.nonzero()[0]), self.samples.host_view
        raise ViewMismatchError(
            f"{self.place}: in view {view if isinstance(view, int) else int(view[first])}, "
            f"{int(differing.sum())} of {number_of(len(self.samples), 'sample')} "
            f"(first: {int(self.samples.host_index[first])}) are not the pixels the teacher saw: "
            "images, their order, the views' settings or the decoder have changed. Restore them, "
            "or build a new cache"
        )


def _check_features(reader: CacheReader, features: Sequence[str]) -> None:
    stored = [one["module"] for one in reader.manifest.features]
    lacking = [name for name in features if name not in stored]
    if lacking:
        raise CacheMismatchError(
            f"{reader.location} has the features of {', '.join(stored) or 'no module'}, those of "
            f"{', '.join(lacking)} are requested: build a cache with them in cache.features"
        )


def _fit(
    manifest: Manifest,
    memory_bytes: int | None,
    num_views: int | None,
    together: int | None,
    seed: int,
    features: Sequence[str],
) -> MemoryPlan:
    if memory_bytes is None:
        return EVERYTHING
    if together is None:
        together = manifest.views.get("pairing", {}).get("within")
    views = num_views or manifest.num_views
    return plan_memory(
        memory_bytes, [manifest], num_views=views, together=together, seed=seed, features=features
    )
