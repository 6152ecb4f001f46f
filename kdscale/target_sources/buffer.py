"""Targets of an epoch in device memory, where batches look them up; next ones are prefetched."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.data.views.batch_plan import SampleViews, View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError
from kdscale.target_sources.memory_plan import MemoryPlan
from kdscale.target_sources.prefetch import DoubleBuffer, Segment
from kdscale.targets import Codec, Head, Targets, create_codec
from kdscale.transfers import to_device


class TargetBuffer:
    """Targets of the current epoch in memory: all at once, or in windows that follow one another.

    Rows are decoded batch by batch, which takes a small part of a step. With windows, a batch takes
    its samples from one window or from two consecutive ones.

    Args:
        reader: reader of the cache.
        schedule: views that epochs use.
        device: device that stores the targets.
        plan: windows of an epoch, and whether the next segment is prefetched.
        features: modules of the teacher whose features are read too.
    """

    def __init__(
        self,
        reader: CacheReader,
        schedule: ViewSchedule,
        device: torch.device,
        plan: MemoryPlan,
        *,
        features: Sequence[str] = (),
    ) -> None:
        manifest, self.windows = reader.manifest, plan.windows
        rows = manifest.num_samples if self.windows is None else self.windows.most_samples
        self.segments = DoubleBuffer(reader, rows, device, ahead=plan.ahead, features=features)
        self._schedule, self._epochs, self._device = schedule, plan.epochs, device
        self._num_windows = 1 if self.windows is None else len(self.windows)
        self._shard_samples = manifest.shard_samples
        self._first_S = torch.arange(manifest.num_shards) * self._shard_samples
        self._window_S = self._first_S  # of the epoch: see `_assign_rows`
        self._tables_2S = torch.stack((self._first_S, self._first_S))
        self._epoch, self._window = -1, -1
        self._parts: Mapping[str, Tensor] = self.segments.parts  # without windows: those in use
        self._codec = stored_codec(reader, device)
        self._view: Callable[[Tensor], View] | None = None  # of samples in memory
        self._in_use: Hashable = None  # key of the segment in use
        self.content: Hashable = None
        """Key of the targets in memory; it changes with the views in use."""

    def start_epoch(self, epoch: int) -> None:
        """Read the epoch's targets; with windows, the first batch decides which window to read."""
        if self.windows is None:
            self._epoch = epoch
            self._go_to(0)
        elif epoch != self._epoch:
            self._epoch, self._window, self.content = epoch, -1, epoch
            self._view = partial(self._schedule.view, epoch)
            self._assign_rows()

    def rows(self, samples: SampleViews) -> Tensor:
        """Return the rows of samples in memory: int64 [B] on the device.

        Raises:
            ConfigError: the samples are not of one window and the next of the current epoch.
        """
        if self.windows is not None:
            return self._rows_in_windows(samples)
        if isinstance(samples.view, int):
            self._use(self._whole_view(samples.view))
        assert self._view is not None, "an epoch was started before its first batch"
        return samples.index

    def targets(self, rows_B: Tensor) -> Targets:
        """Return the targets of some rows, int64 [B] on the device."""
        return self._codec.decode_tensors(
            {
                name: part.index_select(0, rows_B)
                for name, part in self._parts.items()
                if name != "digests"
            }
        )

    def digests(self, rows_B: Tensor) -> Tensor:
        """Return the view digests of some rows, int64 [B]."""
        return self._parts["digests"].index_select(0, rows_B).long() & 0xFFFFFFFF

    def contains(self, samples: SampleViews) -> bool:
        """Return whether the targets in memory are of these views of samples."""
        assert self._view is not None, "an epoch was started before its first batch"
        return _same_view(self._view(samples.host_index), samples.host_view)

    def _assign_rows(self) -> None:
        """Compute the window of each shard, and the offset from sample indices to rows in it."""
        assert self.windows is not None, "an epoch in one window needs no layout"
        self._window_S = self.windows.number(self._epoch, self._first_S)
        # A window's shards are in the order of their numbers, so the last and shorter one is last.
        order_S = self._window_S.argsort(stable=True)
        sorted_S = self._window_S[order_S]
        turn_S = torch.empty_like(order_S)
        turn_S[order_S] = torch.arange(len(order_S)) - torch.searchsorted(sorted_S, sorted_S)
        offset_S = turn_S * self._shard_samples - self._first_S
        self._tables_2S = to_device(torch.stack((self._window_S, offset_S)), self._device)

    def _rows_in_windows(self, samples: SampleViews) -> Tensor:
        view = samples.host_view
        window = self._window_S[samples.host_index // self._shard_samples]
        first, last = (int(number) for number in window.aminmax())
        other_view = self._epoch >= 0 and isinstance(view, int) and not self.contains(samples)
        if self._epoch < 0 or last > first + 1 or other_view:
            raise ConfigError(
                f"a batch has samples of windows {first} to {last} of epoch {self._epoch}, in view "
                f"{view}, but targets that do not fit in memory are read window by window: call "
                "`start_epoch` for each epoch, and take samples in the order of `windows`"
            )
        if first != self._window:
            self._go_to(first)
        start = self.segments.start((self._epoch, first))
        tables_2B = self._tables_2S.index_select(1, samples.index // self._shard_samples)
        window_B, offset_B = tables_2B.unbind()
        rows = samples.index + offset_B + start
        if first == last:
            return rows
        next_start = self.segments.start((self._epoch, last))
        return rows + (window_B != first) * (next_start - start)

    def _go_to(self, window: int) -> None:
        """Use a window of the current epoch and prefetch the one that follows."""
        self._window = window
        self._use(self._segment(self._epoch, window))
        following = self._epoch * self._num_windows + window + 1
        epoch, window = divmod(following, self._num_windows)
        if self._epochs is None or epoch < self._epochs:
            self.segments.prefetch(self._segment(epoch, window))

    def _use(self, segment: Segment) -> None:
        if self._view is not None and self._in_use == segment.key:
            return
        self._in_use = None  # until it is read
        self.segments.use(segment)
        self._view, self._in_use = segment.view, segment.key
        if self.windows is None:
            self._parts, self.content = self.segments.rows_in_use(), segment.key

    def _segment(self, epoch: int, window: int) -> Segment:
        if self.windows is not None:
            shards = self.windows.number(epoch, self._first_S) == window
            key, numbers = (epoch, window), shards.nonzero().squeeze(1).tolist()
            return Segment(key, numbers, partial(self._schedule.view, epoch))
        view = self._schedule.view(epoch, torch.zeros(1, dtype=torch.int64))
        if isinstance(view, int):
            return self._whole_view(view)
        shards_of_epoch = range(len(self._first_S))
        return Segment(("epoch", epoch), shards_of_epoch, partial(self._schedule.view, epoch))

    def _whole_view(self, view: int) -> Segment:
        return Segment(view, range(len(self._first_S)), lambda _: view)


def stored_codec(reader: CacheReader, device: torch.device | None = None) -> Codec:
    """Return the codec of a cache's targets, with the stored head on a device (None: the CPU)."""
    head = reader.head()
    codec = create_codec(reader.manifest.target_encoding, Head.parse(head) if head else None)
    return codec if device is None else codec.to(device)


def _same_view(one: View, other: View) -> bool:
    """Return whether both, in host memory, name the same view of each sample."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.equal(other)
    return isinstance(one, int) and isinstance(other, int) and one == other
