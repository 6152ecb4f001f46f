"""Where targets come from: nowhere, the cache, a live teacher. The loop cannot tell them apart."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.loader import Batch
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline, view_of_epoch
from kdscale.engine.teacher import FrozenTeacher
from kdscale.errors import CacheMismatchError, ViewMismatchError
from kdscale.targets import DenseTargets, decode

_CHECKED_SAMPLES = 256  # of each view, at its start
_CHECKED_EVERY = 500  # batches, after that


class TargetSource(Protocol):
    """What answers a batch with targets."""

    def view_of_epoch(self, epoch: int) -> int:
        """The view that an epoch shows."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Get ready for an epoch."""
        ...

    def targets(self, batch: Batch) -> DenseTargets | None:
        """The targets of a batch, on the device; None where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class NoTargets:
    """Plain supervised training."""

    num_views: int
    seed: int

    def view_of_epoch(self, epoch: int) -> int:
        """The schedule's view."""
        return view_of_epoch(epoch, self.num_views, self.seed)

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def targets(self, batch: Batch) -> None:
        """None."""


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Online distillation: the teacher answers at every step."""

    teacher: FrozenTeacher
    num_views: int
    seed: int

    def view_of_epoch(self, epoch: int) -> int:
        """The schedule's view."""
        return view_of_epoch(epoch, self.num_views, self.seed)

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def targets(self, batch: Batch) -> DenseTargets:
        """The teacher's logits of the batch's pixels."""
        # A clone outside inference mode: autograd may save what was computed inside it.
        return DenseTargets(self.teacher.logits(batch.pixels).clone())


@dataclass(frozen=True, slots=True)
class _ResidentView:
    view: int
    logits_NC: Tensor
    digests_N: Tensor


class CachedTargets:
    """A finished cache as a source of targets, joined by (view, sample index).

    One view is resident on the device; the next one is read and decoded in a thread while this one
    is trained on. The pixels' digests are compared with those that the teacher saw for the first
    samples of each view and one batch now and then.
    """

    def __init__(
        self, reader: CacheReader, device: torch.device, num_views: int | None = None
    ) -> None:
        self.manifest: Manifest = reader.manifest
        self.num_views = num_views or reader.manifest.num_views
        self.device = device
        self.pipeline = Pipeline.parse(
            reader.manifest.views["operations"], reader.manifest.views["seed"]
        )
        """What makes the pixels that the teacher saw."""
        self._reader = reader
        self._resident: _ResidentView | None = None
        self._ahead: tuple[int, Future[_ResidentView]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._num_batches = 0
        self._num_checked = 0  # samples of the resident view

    @classmethod
    def open(
        cls, path: str | Path, *, device: str | torch.device = "cpu", num_views: int | None = None
    ) -> Self:
        """Open the cache at `path`; `num_views` uses only its first views.

        Raises:
            CacheNotFoundError, CacheIncompleteError, CacheCorruptError: it cannot be read.
            CacheMismatchError: it has fewer views than asked for.
        """
        reader = CacheReader(Path(path))
        if num_views is not None and num_views > reader.manifest.num_views:
            raise CacheMismatchError(
                f"{path} has {reader.manifest.num_views} views, {num_views} are asked for"
            )
        return cls(reader, torch.device(device), num_views)

    def view_of_epoch(self, epoch: int) -> int:
        """The view that an epoch shows: every view once in `num_views` epochs."""
        return view_of_epoch(epoch, self.num_views, self.manifest.views["seed"])

    def start_epoch(self, epoch: int) -> None:
        """Make the epoch's view resident and start to read the next one."""
        self._make_resident(self.view_of_epoch(epoch))
        self._read_ahead(self.view_of_epoch(epoch + 1))

    def targets(self, batch: Batch) -> DenseTargets:
        """The targets of a batch, after checking its pixels where that is due."""
        return self.read(batch.view, batch.index, batch.pixels)

    def read(self, view: int, index: Tensor, pixels: Tensor | None = None) -> DenseTargets:
        """The targets of samples `index` (int64 [B]) in a view.

        Args:
            view: view number.
            index: positions in the data set.
            pixels: the view's uint8 pixels [B, C, H, W], to be checked where that is due.

        Raises:
            ViewMismatchError: the pixels are not those that the teacher saw.
            CacheCorruptError: a chunk is missing or damaged.
        """
        resident = self._make_resident(view)
        index = index.to(self.device)
        if pixels is not None and self._check_is_due(len(index)):
            self.check(view, index, pixels)
        return DenseTargets(resident.logits_NC.index_select(0, index))

    def check(self, view: int, index: Tensor, pixels: Tensor) -> None:
        """Compare pixels with the digests of those that the teacher saw.

        Raises:
            ViewMismatchError: they differ.
        """
        resident = self._make_resident(view)
        index = index.to(self.device)
        differing = digest(pixels).to(self.device) != resident.digests_N.index_select(0, index)
        if differing.any():
            raise ViewMismatchError(
                f"{self._reader.path}: in view {view}, {int(differing.sum())} of {len(index)} "
                f"samples (first: {int(index[differing][0])}) are not the pixels the teacher saw: "
                "images, their order, the views' settings or the decoder have changed. "
                "Restore them, or build a new cache"
            )

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _check_is_due(self, num_samples: int) -> bool:
        self._num_batches += 1
        if self._num_checked >= _CHECKED_SAMPLES and self._num_batches % _CHECKED_EVERY:
            return False
        self._num_checked += num_samples
        return True

    def _make_resident(self, view: int) -> _ResidentView:
        if self._resident is None or self._resident.view != view:
            self._resident = None  # its memory may be needed for the next one
            if self._ahead is not None and self._ahead[0] == view:
                self._resident, self._ahead = self._ahead[1].result(), None
            else:
                self._resident = self._load(view)
            self._num_checked = 0
        return self._resident

    def _read_ahead(self, view: int) -> None:
        wanted = self._resident is not None and self._resident.view != view
        if wanted and (self._ahead is None or self._ahead[0] != view):
            self._ahead = (view, self._thread.submit(self._load, view))

    def _load(self, view: int) -> _ResidentView:
        arrays = self._reader.read_view(view)
        digests = torch.from_numpy(arrays["digests"].astype("int64"))
        logits = decode(arrays).logits_BC
        return _ResidentView(view, logits.to(self.device), digests.to(self.device))
