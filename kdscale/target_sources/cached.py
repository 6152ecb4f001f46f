"""A cache as a source of targets."""

import logging
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest
from kdscale.cache.manifest_diff import check_identity
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import Location
from kdscale.cache.wait import Patience
from kdscale.data.loader import Batch
from kdscale.data.views.batch_plan import SampleViews, View
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import CacheMismatchError, ConfigError, OutOfRangeError, ViewMismatchError
from kdscale.formatting import number_of
from kdscale.target_sources.buffer import TargetBuffer
from kdscale.target_sources.memory_plan import EVERYTHING, MemoryPlan, plan_memory
from kdscale.target_sources.read_stats import ReadStats
from kdscale.targets import Targets
from kdscale.transfers import HostCopy

log = logging.getLogger(__name__)

_CHECKED_SAMPLES = 256  # of each view, at its start
_CHECKED_EVERY = 500  # batches, after that


class CachedTargets:
    """Targets of a cache, joined by (view, sample index).

    The targets of an epoch lie on the device as they are stored: all of them, or a window of them
    where memory is limited. A thread prefetches what follows. Digests of pixels are compared with
    those of the teacher's input: for the first samples of each epoch's views, and for one batch now
    and then.

    Args:
        reader: reader of the cache.
        device: device that the targets are needed on.
        num_views: number of views to use, the first ones; None: all.
        shift_every: see `ViewSchedule`.
        pipeline: renders the views of the teacher's input; None: as the manifest describes it.
        features: modules of the teacher whose features the targets have.
        memory: windows of an epoch, and prefetching.
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
        memory: MemoryPlan = EVERYTHING,
    ) -> None:
        self.reader = reader
        self.manifest: Manifest = reader.manifest
        self.num_views = num_views or reader.manifest.num_views
        self.device, self._location = device, reader.location
        self.pipeline = pipeline or Pipeline.from_description(reader.manifest.views)
        """Renders the pixels that the teacher's outputs belong to."""
        self.schedule = ViewSchedule(self.num_views, self.pipeline.seed, shift_every)
        """View that an epoch uses: every view once in `num_views` epochs."""
        self._memory = TargetBuffer(reader, self.schedule, device, memory, features=features)
        self._num_batches = 0
        self._num_checked = 0  # samples of the views in use
        self._checked: Hashable = None
        self._verdicts: deque[_Verdict] = deque()

    @property
    def windows(self) -> Windows | None:
        """Windows that the order of training must follow; None: any order will do."""
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
        memory: MemoryPlan | int = EVERYTHING,
    ) -> Self:
        """Open the cache at `path`.

        Args:
            path: folder or URL of the cache, or an open store.
            device: device that the targets are needed on.
            num_views: number of views to use, the first ones; None: all.
            shift_every: see `ViewSchedule`.
            pipeline: pipeline of the views, needed if it has a callable of your own
                (`TorchvisionOp`), which a manifest can only name.
            features: modules of the teacher whose features the targets have; no others are read.
            patience: waits for shards of a cache that is being built; None: the cache is finished.
            memory: largest number of bytes of targets in memory, or a plan of `plan_memory`. Where
                the targets of an epoch do not fit, samples must follow the order of `windows`, as
                those of a `BatchLoader` do. By default any number of bytes.

        Raises:
            CacheNotFoundError, CacheIncompleteError, CacheCorruptError: it cannot be read.
            CacheMismatchError: it has fewer views or features than required.
            ConfigError: no window fits into memory.
        """
        if num_views is not None and num_views < 1:
            raise ConfigError(f"num_views is {num_views}, wanted at least 1, or None for all")
        reader = CacheReader(path, patience, num_views or 1)
        manifest = reader.manifest
        if num_views is not None and num_views > manifest.num_views:
            raise CacheMismatchError(
                f"{reader.location} has {number_of(manifest.num_views, 'view')}, "
                f"{num_views} are required: add views with `kdscale cache extend`"
            )
        if pipeline is not None:
            views = {**pipeline.describe(), "count": manifest.views.get("count")}
            check_identity(reader.location, manifest, replace(manifest, views=views))
        reader.check_features(features)
        reader.check_records(num_views or manifest.num_views)
        if manifest.unverifiable is not None:
            log.warning("%s: %s", reader.location, manifest.unverifiable)
        if isinstance(memory, int):
            views_used = num_views or manifest.num_views
            memory = plan_memory(memory, [manifest], num_views=views_used, features=features)
        place = torch.device(device)
        return cls(reader, place, num_views, shift_every, pipeline, features, memory=memory)

    def start_epoch(self, epoch: int) -> None:
        """Read the first targets of an epoch, and start to prefetch those that follow."""
        self._memory.start_epoch(epoch)

    def targets(self, batch: Batch) -> Targets:
        """Return the targets of a batch; its pixels are checked now and then."""
        return self.targets_of(batch.samples, batch.pixels)

    def read(self, view: View, index: Tensor, pixels: Tensor | None = None) -> Targets:
        """Return the targets of samples `index` (int64 [B]) in a view.

        Numbers that lie on a GPU are copied to the host first, which waits for it.

        Args:
            view: view number; int64 [B], of the schedule of a started epoch, with `shift_every`.
            index: positions in the data set.
            pixels: uint8 pixels of the view [B, C, H, W], which are checked now and then.

        Raises:
            OutOfRangeError: the cache has no such view, or no such samples.
            ViewMismatchError: the pixels of this or an earlier batch differ from the teacher's
                input.
            CacheCorruptError: a chunk is missing or damaged.
            ConfigError: the samples are not of one window and the next.
        """
        view = view if isinstance(view, int) else view.cpu()
        return self.targets_of(SampleViews.place(view, index.cpu(), self.device), pixels)

    def targets_of(self, samples: SampleViews, pixels: Tensor | None = None) -> Targets:
        """Return the targets of samples; arguments and errors as of `read`."""
        rows = self._rows(samples)
        if pixels is not None and self.check_is_due(len(samples)):
            self._check(rows, samples, pixels)
        elif self._verdicts and self._verdicts[0].ready:
            self._verdicts.popleft().raise_error()
        return self._memory.targets(rows)

    def check(self, samples: SampleViews, pixels: Tensor) -> None:
        """Compare pixels with the stored digests of the teacher's input.

        A GPU's verdict is read when it has arrived, by a later call or by `finish_checks`.

        Raises:
            ViewMismatchError: they differ, of this batch or an earlier one.
        """
        self._check(self._rows(samples), samples, pixels)

    def finish_checks(self) -> None:
        """Wait for the verdicts that have not arrived yet.

        Raises:
            ViewMismatchError: the pixels of an earlier batch differ from the teacher's input.
        """
        while self._verdicts:
            self._verdicts.popleft().raise_error()

    def check_is_due(self, num_samples: int) -> bool:
        """Return whether the next batch is to be checked, and count it as checked if so."""
        self._num_batches += 1
        if self._num_checked >= _CHECKED_SAMPLES and self._num_batches % _CHECKED_EVERY:
            return False
        self._num_checked += num_samples
        return True

    def reading(self, share: float = 1.0) -> ReadStats:
        """Return what reading has cost so far.

        Args:
            share: share of the samples in memory that this process trains on.
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
        """Stop prefetching, and waiting for shards."""
        self.reader.close()
        self._memory.segments.close()

    def _rows(self, samples: SampleViews) -> Tensor:
        self._check_range(samples)
        found = self._memory.rows(samples)
        if self._checked != self._memory.content:
            self._checked, self._num_checked = self._memory.content, 0
        return found

    def _check_range(self, samples: SampleViews) -> None:
        manifest = self.manifest
        for what, numbers, count in (
            ("view", torch.as_tensor(samples.host_view), manifest.num_views),
            ("sample", samples.host_index, manifest.num_samples),
        ):
            if numbers.numel():
                first, last = (int(number) for number in numbers.aminmax())
                if first < 0 or last >= count:
                    outside = first if first < 0 else last
                    raise OutOfRangeError(
                        f"{what} {outside}: {self._location} has {what}s 0..{count - 1}"
                    )

    def _check(self, rows: Tensor, samples: SampleViews, pixels: Tensor) -> None:
        assert self._memory.contains(samples), "the epoch was started"
        differing = digest(pixels).to(self.device) != self._memory.digests(rows)
        self._verdicts.append(_Verdict(HostCopy(differing), samples, self._location))
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
