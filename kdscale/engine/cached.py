"""A finished cache as a source of targets."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest, check_identity
from kdscale.cache.patience import Patience
from kdscale.cache.reader import CacheReader
from kdscale.cache.store import Location
from kdscale.data.loader import Batch
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline, View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.engine.held import Held
from kdscale.engine.pieces import Piece, Pieces
from kdscale.errors import CacheMismatchError, ViewMismatchError
from kdscale.targets import Targets

_CHECKED_SAMPLES = 256  # of each view, at its start
_CHECKED_EVERY = 500  # batches, after that


class CachedTargets:
    """A finished cache as a source of targets, joined by (view, sample index).

    What an epoch shows is resident on the device, as it is stored; the next epoch's is read in a
    thread while this one is trained on. The pixels' digests are compared with those that the
    teacher saw for the first samples of each epoch's views and one batch now and then.
    """

    def __init__(
        self,
        reader: CacheReader,
        device: torch.device,
        num_views: int | None = None,
        shift_every: int | None = None,
        pipeline: Pipeline | None = None,
        features: Sequence[str] = (),
    ) -> None:
        self.reader = reader
        self.manifest: Manifest = reader.manifest
        self.num_views = num_views or reader.manifest.num_views
        self.device = device
        self.pipeline = pipeline or Pipeline.from_description(reader.manifest.views)
        """What makes the pixels that the teacher saw."""
        self.schedule = ViewSchedule(self.num_views, self.pipeline.seed, shift_every)
        """Which views epochs show: every view once in `num_views` epochs."""
        self._pieces = Pieces(
            reader,
            reader.manifest.num_samples,
            device,
            ahead=self.num_views > 1,
            features=tuple(features),
        )
        self._held: Held | None = None  # what is used
        self._views_N: Tensor | None = None  # of each sample, where they differ
        self._num_batches = 0
        self._num_checked = 0  # samples of what is resident

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
    ) -> Self:
        """Open the cache at `path`.

        Args:
            path: the cache's folder or URL, or an open store.
            device: where targets are wanted.
            num_views: use only its first views.
            shift_every: see `ViewSchedule`.
            pipeline: what made the views, where it holds a callable of your own (`PerSample`),
                which a manifest can only name.
            features: modules of the teacher whose features the targets shall carry; no others are
                read.
            patience: of a cache that is being built, wait for what is not there yet.

        Raises:
            CacheNotFoundError, CacheIncompleteError, CacheCorruptError: it cannot be read.
            CacheMismatchError: it has fewer views or features than asked for.
        """
        reader = CacheReader(path, patience, num_views or 1)
        if num_views is not None and num_views > reader.manifest.num_views:
            raise CacheMismatchError(
                f"{reader.location} has {reader.manifest.num_views} views, "
                f"{num_views} are asked for"
            )
        if pipeline is not None:
            views = {**pipeline.describe(), "count": reader.manifest.views.get("count")}
            check_identity(reader.location, reader.manifest, replace(reader.manifest, views=views))
        _check_features(reader, features)
        return cls(reader, torch.device(device), num_views, shift_every, pipeline, features)

    def start_epoch(self, epoch: int) -> None:
        """Make resident what the epoch shows and start to read what the next one will."""
        self._use(self._piece(epoch))
        self._pieces.read_ahead(self._piece(epoch + 1))

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
        held, index = self._held_for(view), index.to(self.device)
        if pixels is not None and self.check_is_due(len(index)):
            self._check(held, view, index, pixels)
        return held.targets(index)

    def check(self, view: View, index: Tensor, pixels: Tensor) -> None:
        """Compare pixels with the digests of those that the teacher saw.

        Raises:
            ViewMismatchError: they differ.
        """
        self._check(self._held_for(view), view, index.to(self.device), pixels)

    def check_is_due(self, num_samples: int) -> bool:
        """Whether the next batch should be checked, which is then taken as done."""
        self._num_batches += 1
        if self._num_checked >= _CHECKED_SAMPLES and self._num_batches % _CHECKED_EVERY:
            return False
        self._num_checked += num_samples
        return True

    def close(self) -> None:
        """Stop reading ahead, and waiting."""
        self.reader.close()
        self._pieces.close()

    def _check(self, held: Held, view: View, index: Tensor, pixels: Tensor) -> None:
        if self._views_N is not None:
            shown = self._views_N.index_select(0, index.cpu())
            assert shown.equal(torch.as_tensor(view)), "the epoch was started"
        differing = digest(pixels).to(self.device) != held.digests(index)
        if differing.any():
            first = int(differing.nonzero()[0])
            shown_first = view if isinstance(view, int) else int(view[first])
            raise ViewMismatchError(
                f"{self.reader.location}: in view {shown_first}, {int(differing.sum())} of "
                f"{len(index)} samples (first: {int(index[first])}) are not the pixels the "
                "teacher saw: images, their order, the views' settings or the decoder have "
                "changed. Restore them, or build a new cache"
            )

    def _held_for(self, view: View) -> Held:
        if isinstance(view, int):
            return self._use(self._view_piece(view))
        assert self._held is not None, "an epoch was started before its first batch"
        return self._held

    def _use(self, piece: Piece) -> Held:
        if self._held is None or not self._pieces.has(piece.key):
            self._pieces.use(piece)
            start = self._pieces.start(piece.key)
            self._held = self._pieces.held.slice(start, start + self._pieces.rows)
            shown = piece.view(torch.arange(self.manifest.num_samples))
            self._views_N = shown if isinstance(shown, Tensor) else None
            self._num_checked = 0
        return self._held

    def _piece(self, epoch: int) -> Piece:
        """What an epoch shows."""
        view = self.schedule.view(epoch, torch.zeros(1, dtype=torch.int64))
        if isinstance(view, int):
            return self._view_piece(view)
        return Piece(("epoch", epoch), self._shards, partial(self.schedule.view, epoch))

    def _view_piece(self, view: int) -> Piece:
        return Piece(view, self._shards, lambda _: view)

    @property
    def _shards(self) -> range:
        return range(self.manifest.num_shards)


def _check_features(reader: CacheReader, features: Sequence[str]) -> None:
    kept = [one["module"] for one in reader.manifest.features]
    lacking = [name for name in features if name not in kept]
    if lacking:
        raise CacheMismatchError(
            f"{reader.location} keeps the features of {', '.join(kept) or 'no module'}, those of "
            f"{', '.join(lacking)} are asked for: build a cache with them in cache.features"
        )
