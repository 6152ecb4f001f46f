"""Where targets come from: nowhere, the cache, a live teacher. The loop cannot tell them apart."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest, check_identity
from kdscale.cache.reader import CacheReader
from kdscale.data.loader import Batch, Images
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline, View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.engine.encoding import encoding_of
from kdscale.engine.teacher import FrozenTeacher
from kdscale.errors import CacheMismatchError, ViewMismatchError
from kdscale.targets import DenseTargets, Targets, decode, mixed_targets

_CHECKED_SAMPLES = 256  # of each view, at its start
_CHECKED_EVERY = 500  # batches, after that


class TargetSource(Protocol):
    """What answers a batch with targets."""

    @property
    def schedule(self) -> ViewSchedule:
        """Which views epochs show."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Get ready for an epoch."""
        ...

    def targets(self, batch: Batch) -> Targets | None:
        """The targets of a batch, on the device; None where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class NoTargets:
    """Plain supervised training."""

    schedule: ViewSchedule

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def targets(self, batch: Batch) -> None:
        """None."""


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Online distillation: the teacher answers at every step."""

    teacher: FrozenTeacher
    schedule: ViewSchedule

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def targets(self, batch: Batch) -> DenseTargets:
        """The teacher's logits of the batch's pixels."""
        # A clone outside inference mode: autograd may save what was computed inside it.
        return DenseTargets(self.teacher.logits(batch.pixels).clone())


_Wanted = int | tuple[Literal["epoch"], int]
"""What is resident: a view, or what an epoch shows where its samples show different views."""


@dataclass(frozen=True, slots=True)
class _Resident:
    wanted: _Wanted
    views_N: Tensor | None
    """The view of each sample; None where all show the one that is wanted."""
    targets_N: Targets
    digests_N: Tensor


class CachedTargets:
    """A finished cache as a source of targets, joined by (view, sample index).

    What an epoch shows is resident on the device; the next epoch's is read and decoded in a thread
    while this one is trained on. The pixels' digests are compared with those that the teacher saw
    for the first samples of each epoch's views and one batch now and then.
    """

    def __init__(
        self,
        reader: CacheReader,
        device: torch.device,
        num_views: int | None = None,
        shift_every: int | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.manifest: Manifest = reader.manifest
        self.num_views = num_views or reader.manifest.num_views
        self.device = device
        self.pipeline = pipeline or Pipeline.from_description(reader.manifest.views)
        """What makes the pixels that the teacher saw."""
        self.schedule = ViewSchedule(self.num_views, self.pipeline.seed, shift_every)
        """Which views epochs show: every view once in `num_views` epochs."""
        self._reader = reader
        self._resident: _Resident | None = None
        self._ahead: tuple[_Wanted, Future[_Resident]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._num_batches = 0
        self._num_checked = 0  # samples of what is resident

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        num_views: int | None = None,
        shift_every: int | None = None,
        pipeline: Pipeline | None = None,
    ) -> Self:
        """Open the cache at `path`.

        Args:
            path: the cache's folder.
            device: where targets are wanted.
            num_views: use only its first views.
            shift_every: see `ViewSchedule`.
            pipeline: what made the views, where it holds a callable of your own (`PerSample`),
                which a manifest can only name.

        Raises:
            CacheNotFoundError, CacheIncompleteError, CacheCorruptError: it cannot be read.
            CacheMismatchError: it has fewer views than asked for.
        """
        reader = CacheReader(Path(path))
        if num_views is not None and num_views > reader.manifest.num_views:
            raise CacheMismatchError(
                f"{path} has {reader.manifest.num_views} views, {num_views} are asked for"
            )
        if pipeline is not None:
            views = {**pipeline.describe(), "count": reader.manifest.views.get("count")}
            check_identity(reader.path, reader.manifest, replace(reader.manifest, views=views))
        return cls(reader, torch.device(device), num_views, shift_every, pipeline)

    def start_epoch(self, epoch: int) -> None:
        """Make resident what the epoch shows and start to read what the next one will."""
        self._make_resident(self._shown_in(epoch))
        self._read_ahead(self._shown_in(epoch + 1))

    def targets(self, batch: Batch) -> Targets:
        """The targets of a batch, after checking its pixels where that is due."""
        return self.read(batch.view, batch.index, batch.pixels)

    def read(self, view: View, index: Tensor, pixels: Tensor | None = None) -> Targets:
        """The targets of samples `index` (int64 [B]) in a view.

        Args:
            view: view number; int64 [B], as the schedule of a started epoch gives it, with
                `shift_every`.
            index: positions in the data set.
            pixels: the view's uint8 pixels [B, C, H, W], to be checked where that is due.

        Raises:
            ViewMismatchError: the pixels are not those that the teacher saw.
            CacheCorruptError: a chunk is missing or damaged.
        """
        return self._read(self._resident_for(view), view, index, pixels)

    def check(self, view: View, index: Tensor, pixels: Tensor) -> None:
        """Compare pixels with the digests of those that the teacher saw.

        Raises:
            ViewMismatchError: they differ.
        """
        self._check(self._resident_for(view), view, index.to(self.device), pixels)

    def check_is_due(self, num_samples: int) -> bool:
        """Whether the next batch should be checked, which is then taken as done."""
        self._num_batches += 1
        if self._num_checked >= _CHECKED_SAMPLES and self._num_batches % _CHECKED_EVERY:
            return False
        self._num_checked += num_samples
        return True

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(
        self, resident: _Resident, view: View, index: Tensor, pixels: Tensor | None
    ) -> Targets:
        index = index.to(self.device)
        if pixels is not None and self.check_is_due(len(index)):
            if resident.views_N is not None:
                shown = resident.views_N.index_select(0, index.to(resident.views_N.device))
                assert shown.equal(torch.as_tensor(view)), "the epoch was started"
            self._check(resident, view, index, pixels)
        return resident.targets_N.rows(index)

    def _check(self, resident: _Resident, view: View, index: Tensor, pixels: Tensor) -> None:
        differing = digest(pixels).to(self.device) != resident.digests_N.index_select(0, index)
        if differing.any():
            first = int(differing.nonzero()[0])
            shown = view if isinstance(view, int) else int(view[first])
            raise ViewMismatchError(
                f"{self._reader.path}: in view {shown}, {int(differing.sum())} of {len(index)} "
                f"samples (first: {int(index[first])}) are not the pixels the teacher saw: "
                "images, their order, the views' settings or the decoder have changed. "
                "Restore them, or build a new cache"
            )

    def _shown_in(self, epoch: int) -> _Wanted:
        view = self.schedule.view(epoch, torch.zeros(1, dtype=torch.int64))
        return view if isinstance(view, int) else ("epoch", epoch)

    def _resident_for(self, view: View) -> _Resident:
        if isinstance(view, int):
            return self._make_resident(view)
        assert self._resident is not None, "an epoch was started before its first batch"
        return self._resident

    def _make_resident(self, wanted: _Wanted) -> _Resident:
        if self._resident is None or self._resident.wanted != wanted:
            self._resident = None  # its memory may be needed for the next one
            if self._ahead is not None and self._ahead[0] == wanted:
                self._resident, self._ahead = self._ahead[1].result(), None
            else:
                self._resident = self._load(wanted)
            self._num_checked = 0
        return self._resident

    def _read_ahead(self, wanted: _Wanted) -> None:
        needed = self._resident is not None and self._resident.wanted != wanted
        if needed and (self._ahead is None or self._ahead[0] != wanted):
            self._ahead = (wanted, self._thread.submit(self._load, wanted))

    def _load(self, wanted: _Wanted) -> _Resident:
        views = None
        if isinstance(wanted, int):
            arrays = self._reader.read_view(wanted)
        else:
            shown = self.schedule.view(wanted[1], torch.arange(self.manifest.num_samples))
            views = torch.as_tensor(shown)
            arrays = self._mixed_views(views)
        digests = torch.from_numpy(arrays["digests"].astype("int64"))
        targets = decode(arrays, encoding_of(self.manifest))
        return _Resident(wanted, views, targets.to(self.device), digests.to(self.device))

    def _mixed_views(self, views_N: Tensor) -> dict[str, np.ndarray]:
        """Every sample in its own view.

        A shard is read once for each of its views, of which it has one where `shift_every` is a
        multiple of a shard's samples.
        """
        parts = []
        for shard in range(self.manifest.num_shards):
            views = views_N[slice(*self.manifest.shard_range(shard))].numpy()
            rows: dict[str, np.ndarray] = {}
            for view in np.unique(views).tolist():
                for name, values in self._reader.read_shard(view, shard).items():
                    kept = rows.setdefault(name, values)
                    kept[views == view] = values[views == view]
            parts.append(rows)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class FixedTargets:
    """The teacher's answers to the clean images, whatever view of them the student is shown.

    The way of most known systems, for comparison only: the targets belong to other pixels than the
    student sees. Of mixed images the targets are mixed like the labels.
    """

    def __init__(self, clean: CachedTargets, images: Images, schedule: ViewSchedule) -> None:
        self.clean, self.schedule = clean, schedule
        self._images = images

    def start_epoch(self, epoch: int) -> None:
        """The clean answers are the same in each."""
        self.clean.start_epoch(0)

    def targets(self, batch: Batch) -> Targets:
        """The targets of a batch's clean images; those are checked where that is due."""
        if self.clean.check_is_due(len(batch.index)):
            self.clean.check(0, batch.index, self._images.take(batch.index)[0])
        own = self.clean.read(0, batch.index)
        if batch.mix is None:
            return own
        return mixed_targets(own, self.clean.read(0, batch.mix.index_B), batch.mix.weight_B)
