"""Bring the targets of an epoch into memory, window by window; one thread prefetches the next.

A segment is what is read together: all that an epoch needs, or one window of it. Memory has room
for one segment or two; their rows are overwritten again and again.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.concurrent import each
from kdscale.data.views.batch_plan import SampleViews, View
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError
from kdscale.target_sources.buffer import TargetBuffer, row_bytes
from kdscale.target_sources.memory_plan import MemoryPlan
from kdscale.transfers import to_device


@dataclass(frozen=True, slots=True)
class Segment:
    """Shards that are read together, each sample in the view that its epoch uses."""

    key: Hashable
    """Identity of the content: segments with equal keys contain the same targets."""
    shards: Sequence[int]
    """Shard numbers, in the order of their rows in memory."""
    view: Callable[[Tensor], View]
    """Return the view of samples, given as int64 [B]."""


def _same_view(one: View, other: View) -> bool:
    """Return whether both, in host memory, name the same view of each sample."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.equal(other)
    return isinstance(one, int) and isinstance(other, int) and one == other


class DoubleBuffer:
    """Memory for one segment or two: one in use, one that a thread fills meanwhile.

    Args:
        reader: reader of the cache.
        rows: largest number of samples in a segment.
        device: device that stores the rows.
        ahead: whether there is room for a second segment, which `prefetch` fills.
        features: modules of the teacher whose features are read too.
    """

    def __init__(
        self,
        reader: CacheReader,
        rows: int,
        device: torch.device,
        *,
        ahead: bool,
        features: Sequence[str] = (),
    ) -> None:
        self.rows = rows
        self.buffer = TargetBuffer.empty(reader, (1 + ahead) * rows, device, features)
        """All rows; those of a segment begin at `start`."""
        self.buffer_bytes = len(self.buffer) * row_bytes(reader.manifest, features)
        """Size of the buffer in memory, in bytes."""
        self.waited_seconds = 0.0
        """Time spent waiting for segments that were not in memory when needed, in seconds."""
        self.rows_read = 0
        """Number of targets read, of any view."""
        self.rows_used = 0
        """Number of targets read that belong to a view in use, of `rows_read`."""
        self._reader, self._ahead, self._features = reader, ahead, features
        self._shard_bytes = reader.manifest.shard_samples * row_bytes(reader.manifest, features)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._closed = Event()
        self._content: list[Hashable | None] = [None] * (1 + ahead)  # keys of complete segments
        self._current: tuple[Hashable, int] | None = None
        self._next: tuple[Hashable, int, Future[None]] | None = None

    def is_current(self, key: Hashable) -> bool:
        """Return whether the segment with this key is in use."""
        return self._current is not None and self._current[0] == key

    def start(self, key: Hashable) -> int:
        """Return the first row of the segment in use, or of the next one, once it is read.

        Raises:
            CacheError: the segment could not be read.
        """
        if self._current is not None and self._current[0] == key:
            return self._current[1] * self.rows
        if key in self._content:
            return self._content.index(key) * self.rows
        assert self._next is not None, "one segment is in use at a time, and the next one"
        assert self._next[0] == key, "one segment is in use at a time, and the next one"
        self._wait(self._next[2])
        return self._next[1] * self.rows

    def use(self, segment: Segment) -> None:
        """Replace the segment in use, reading the new one if it was not prefetched.

        Raises:
            CacheError: the segment cannot be read.
        """
        if self.is_current(segment.key):
            return
        coming, self._current, self._next = self._next, None, None
        if coming is not None and coming[0] == segment.key:
            self._wait(coming[2])
            self._current = coming[:2]
            return
        if coming is not None and not coming[2].cancel():
            coming[2].exception()  # wait; its error concerns nobody
        if segment.key in self._content:
            self._current = segment.key, self._content.index(segment.key)
            return
        began = perf_counter()
        self._load(segment, 0)
        self.waited_seconds += perf_counter() - began
        self._current = segment.key, 0

    def prefetch(self, segment: Segment) -> None:
        """Start to read the segment that will be used next, if memory has room for it."""
        if not self._ahead or self._current is None or self.is_current(segment.key):
            return
        if self._next is not None:
            if self._next[0] == segment.key:
                return
            self._next[2].cancel()  # or it ends before this one begins: there is one thread
            self._next = None
        slot = 1 - self._current[1]
        if self._content[slot] != segment.key:
            self._next = segment.key, slot, self._thread.submit(self._load, segment, slot)

    def close(self) -> None:
        """Stop prefetching."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _wait(self, coming: "Future[None]") -> None:
        if not coming.done():
            began = perf_counter()
            coming.exception()
            self.waited_seconds += perf_counter() - began
        coming.result()

    def _load(self, segment: Segment, slot: int) -> None:
        self._content[slot], row = None, slot * self.rows
        read = partial(self._read_shard, segment)
        for values, views in each(
            self._reader.store, read, self._shards(segment), self._shard_bytes
        ):
            self.buffer.fill(row, values)
            count = len(values["digests"])
            self.rows_read += views * count
            self.rows_used += count
            row += count
        self._content[slot] = segment.key

    def _shards(self, segment: Segment) -> Iterator[int]:
        """Yield the shards of a segment once they are committed, until `close`."""
        for shard in segment.shards:
            for view in self._views(segment, shard):
                self._reader.wait(view, shard)
            if self._closed.is_set():
                raise CancelledError
            yield shard

    def _views(self, segment: Segment, shard: int) -> list[int]:
        """Return the views that a segment uses of a shard."""
        view = segment.view(torch.arange(*self._reader.manifest.shard_range(shard)))
        return [view] if isinstance(view, int) else np.unique(view.numpy()).tolist()

    def _read_shard(self, segment: Segment, shard: int) -> tuple[dict[str, np.ndarray], int]:
        """Read each sample of a shard in its own view; return the number of views read, too."""
        view = segment.view(torch.arange(*self._reader.manifest.shard_range(shard)))
        rows, views = dict[str, np.ndarray](), self._views(segment, shard)
        for number in views:
            for name, values in self._reader.read_shard(number, shard, self._features).items():
                merged = rows.setdefault(name, values)
                if not isinstance(view, int):
                    of_view = view.numpy() == number
                    merged[of_view] = values[of_view]
        return rows, len(views)


class EpochMemory:
    """Targets of the current epoch in memory: all at once, or in windows that follow one another.

    With windows, a batch takes its samples from one window or from two consecutive ones.

    Args:
        reader: reader of the cache.
        schedule: views that epochs use.
        device: device that stores the targets.
        plan: windows of an epoch, and whether the next segment is prefetched.
        epochs: number of epochs, after which nothing is prefetched; None: no end.
        features: modules of the teacher whose features are read too.
    """

    def __init__(
        self,
        reader: CacheReader,
        schedule: ViewSchedule,
        device: torch.device,
        plan: MemoryPlan,
        *,
        epochs: int | None = None,
        features: Sequence[str] = (),
    ) -> None:
        manifest, self.windows = reader.manifest, plan.windows
        rows = manifest.num_samples if self.windows is None else self.windows.most_samples
        self.segments = DoubleBuffer(reader, rows, device, ahead=plan.ahead, features=features)
        self._schedule, self._epochs, self._device = schedule, epochs, device
        self._num_windows = 1 if self.windows is None else len(self.windows)
        self._shard_samples = manifest.shard_samples
        self._first_S = torch.arange(manifest.num_shards) * self._shard_samples
        self._window_S = self._first_S  # of the epoch: see `_assign_rows`
        self._tables_2S = torch.stack((self._first_S, self._first_S))
        self._epoch, self._window = -1, -1
        self._whole: TargetBuffer | None = None  # the rows of the segment in use, without windows
        self._view: Callable[[Tensor], View] | None = None  # of samples in memory
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

    def rows(self, samples: SampleViews) -> tuple[TargetBuffer, Tensor]:
        """Return the buffer, and the rows of samples in it: int64 [B] on the device.

        Raises:
            ConfigError: the samples are not of one window and the next of the current epoch.
        """
        if self.windows is not None:
            return self.segments.buffer, self._rows_in_windows(samples)
        if isinstance(samples.view, int):
            self._use(self._whole_view(samples.view))
        assert self._whole is not None, "an epoch was started before its first batch"
        return self._whole, samples.index

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
        if self._view is not None and self.segments.is_current(segment.key):
            return
        self.segments.use(segment)
        self._view = segment.view
        if self.windows is None:
            start = self.segments.start(segment.key)
            self._whole = self.segments.buffer.slice(start, start + self.segments.rows)
            self.content = segment.key

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
