"""Targets of all that an epoch shows, in memory at once."""

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.data.views.pipeline import View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.target_sources.buffer import TargetBuffer
from kdscale.target_sources.prefetch import DoubleBuffer, Segment, same_view


class Resident:
    """What an epoch shows is one piece, and the next epoch's is read ahead.

    Args:
        reader: of the cache.
        schedule: which views epochs show.
        device: where targets are held.
        epochs: how many there are; None: no end.
        features: modules of the teacher whose features are held too.
        ahead: whether memory holds two epochs' pieces.
    """

    windows = None

    def __init__(
        self,
        reader: CacheReader,
        schedule: ViewSchedule,
        device: torch.device,
        *,
        epochs: int | None = None,
        features: Sequence[str] = (),
        ahead: bool = True,
    ) -> None:
        manifest = reader.manifest
        self.pieces = DoubleBuffer(
            reader, manifest.num_samples, device, ahead=ahead, features=features
        )
        self._schedule, self._epochs, self._device = schedule, epochs, device
        self._shards = range(manifest.num_shards)
        self._held: TargetBuffer | None = None  # what is used
        self._piece: Segment | None = None

    @property
    def shown(self) -> Hashable:
        """Differs where others are shown."""
        return None if self._piece is None else self._piece.key

    def start_epoch(self, epoch: int) -> None:
        """Bring in what the epoch shows and start to read what the next one will."""
        self._use(self._of_epoch(epoch))
        if self._epochs is None or epoch + 1 < self._epochs:
            self.pieces.read_ahead(self._of_epoch(epoch + 1))

    def rows(self, view: View, index: Tensor) -> tuple[TargetBuffer, Tensor]:
        """Where the targets of samples `index` (int64 [B]) in a view lie."""
        if isinstance(view, int):
            self._use(self._of_view(view))
        assert self._held is not None, "an epoch was started before its first batch"
        return self._held, index.to(self._device)

    def shows(self, view: View, index: Tensor) -> bool:
        """Whether the view of samples is the one that lies there."""
        assert self._piece is not None, "an epoch was started before its first batch"
        return same_view(self._piece.view(index.cpu()), view)

    def _use(self, piece: Segment) -> None:
        if self._held is None or not self.pieces.has(piece.key):
            self.pieces.use(piece)
            start = self.pieces.start(piece.key)
            self._held = self.pieces.held.slice(start, start + self.pieces.rows)
            self._piece = piece

    def _of_epoch(self, epoch: int) -> Segment:
        view = self._schedule.view(epoch, torch.zeros(1, dtype=torch.int64))
        if isinstance(view, int):
            return self._of_view(view)
        return Segment(("epoch", epoch), self._shards, partial(self._schedule.view, epoch))

    def _of_view(self, view: int) -> Segment:
        return Segment(view, self._shards, lambda _: view)
