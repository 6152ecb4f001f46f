"""Targets of a window of samples in memory, while those of the next one are read."""

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.data.views.pipeline import View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import ConfigError
from kdscale.target_sources.buffer import TargetBuffer
from kdscale.target_sources.prefetch import DoubleBuffer, Segment, same_view


class Windowed:
    """What an epoch shows is brought in window by window, in the order of `Windows`.

    A batch may take its samples from a window and from the next one.

    Args:
        reader: of the cache.
        schedule: which views epochs show.
        windows: that the order of training follows; their units are whole shards.
        device: where targets are held.
        epochs: how many there are; None: no end.
        features: modules of the teacher whose features are held too.
    """

    def __init__(
        self,
        reader: CacheReader,
        schedule: ViewSchedule,
        windows: Windows,
        device: torch.device,
        *,
        epochs: int | None = None,
        features: Sequence[str] = (),
    ) -> None:
        self.windows = windows
        self.pieces = DoubleBuffer(
            reader, windows.most_samples, device, ahead=True, features=features
        )
        self._schedule, self._epochs, self._device = schedule, epochs, device
        self._shard_samples = reader.manifest.shard_samples
        self._first_S = torch.arange(reader.manifest.num_shards) * self._shard_samples
        self._epoch, self._window = -1, -1
        self._window_S = self._row_S = self._first_S  # of the epoch: see `start_epoch`

    @property
    def shown(self) -> Hashable:
        """Differs where others are shown."""
        return self._epoch

    def start_epoch(self, epoch: int) -> None:
        """Look where the epoch's samples will be; its first batch says which window it needs."""
        if epoch == self._epoch:
            return
        self._epoch, self._window = epoch, -1
        self._window_S = self.windows.number(epoch, self._first_S)
        # A window's shards lie in the order of their numbers, so the last and shorter one is last.
        order_S = self._window_S.argsort(stable=True)
        sorted_S = self._window_S[order_S]
        turn_S = torch.empty_like(order_S)
        turn_S[order_S] = torch.arange(len(order_S)) - torch.searchsorted(sorted_S, sorted_S)
        self._row_S = turn_S * self._shard_samples - self._first_S

    def rows(self, view: View, index: Tensor) -> tuple[TargetBuffer, Tensor]:
        """Where the targets of samples `index` (int64 [B]) in a view lie.

        Raises:
            ConfigError: they are not shown together in the epoch that was started last.
        """
        index = index.cpu()
        shard = index // self._shard_samples
        window = self._window_S[shard]
        first, last = (int(number) for number in window.aminmax())
        other_view = isinstance(view, int) and not self.shows(view, index)
        if self._epoch < 0 or last > first + 1 or other_view:
            raise ConfigError(
                f"samples of windows {first} to {last} of epoch {self._epoch}, in view {view}, are "
                "asked for at once, but targets that do not fit in memory are read window by "
                "window: start each epoch, and show samples in the order that `windows` gives"
            )
        if first != self._window:
            self._go_to(first)
        start = self.pieces.start(self._key(first))
        rows = index + self._row_S[shard]
        if first == last:
            return self.pieces.held, (rows + start).to(self._device)
        next_start = self.pieces.start(self._key(last))
        starts = torch.where(window == first, start, next_start)
        return self.pieces.held, (rows + starts).to(self._device)

    def shows(self, view: View, index: Tensor) -> bool:
        """Whether the view of samples is the one that the epoch shows."""
        shown = self._schedule.view(self._epoch, index.cpu())
        return same_view(shown, view)

    def _go_to(self, window: int) -> None:
        self._window = window
        self.pieces.use(self._piece(self._epoch, window))
        following = divmod(self._epoch * len(self.windows) + window + 1, len(self.windows))
        if self._epochs is None or following[0] < self._epochs:
            self.pieces.read_ahead(self._piece(*following))

    def _key(self, window: int) -> Hashable:
        return self._epoch, window

    def _piece(self, epoch: int, window: int) -> Segment:
        shown = self.windows.number(epoch, self._first_S) == window
        shards = shown.nonzero().squeeze(1).tolist()
        return Segment((epoch, window), shards, partial(self._schedule.view, epoch))
