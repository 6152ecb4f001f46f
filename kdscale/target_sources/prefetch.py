"""Memory for the targets of a segment, all that an epoch needs or one window of it, or of two.

With room for two, a thread fills one while the other is in use. Rows lie on the device as they are
stored, which takes from a half (float16) to a fortieth (topk of 1000 classes) of the memory of
decoded ones.
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

from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.views.batch_plan import View
from kdscale.targets import as_tensor
from kdscale.transfers import SideStream

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "uint16": torch.int16,
    "uint32": torch.int32,
    "uint64": torch.int32,  # digests, of which the reader gives the 32 bits that are used
}


def row_bytes(manifest: Manifest, features: Sequence[str] = ()) -> int:
    """Return the bytes in memory of one sample's targets of one view, digest included."""
    rows = _rows(manifest, features).values()
    return sum(dtype.itemsize * shape.numel() for dtype, shape in rows)


def _rows(manifest: Manifest, features: Sequence[str]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return type and shape of a row of each array that is read."""
    layout = Layout(manifest)
    return {
        name: (_DTYPES[layout.arrays[name].dtype], torch.Size(layout.arrays[name].shape[2:]))
        for name in layout.read_arrays(features)
    }


@dataclass(frozen=True, slots=True)
class Segment:
    """Shards that are read together, each sample in the view that its epoch uses."""

    key: Hashable
    """Identity of the content: segments with equal keys contain the same targets."""
    shards: Sequence[int]
    """Shard numbers, in the order of their rows in memory."""
    view: Callable[[Tensor], View]
    """Return the view of samples, given as int64 [B]."""


class DoubleBuffer:
    """Memory for one segment or two: one in use, one that a thread fills meanwhile.

    On a GPU rows arrive through pinned memory on a stream of their own, which begins when the
    device has finished the work that used the rows before them.

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
        self.parts = {
            name: torch.empty(((1 + ahead) * rows, *shape), dtype=dtype, device=device)
            for name, (dtype, shape) in _rows(reader.manifest, features).items()
        }
        """All rows by the array's name, as `as_tensor` makes them; those of a segment begin at
        `start`. They are overwritten again and again."""
        self.buffer_bytes = (1 + ahead) * rows * row_bytes(reader.manifest, features)
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
        self._stream = SideStream(device)
        self._arrivals: list[Callable[[], None]] = [lambda: None] * (1 + ahead)
        self._closed = Event()
        self._content: list[Hashable | None] = [None] * (1 + ahead)  # keys of complete segments
        self._current: tuple[Hashable, int] | None = None
        self._next: tuple[Hashable, int, Future[None]] | None = None

    def is_current(self, key: Hashable) -> bool:
        """Return whether the segment with this key is in use."""
        return self._current is not None and self._current[0] == key

    def rows_in_use(self) -> dict[str, Tensor]:
        """Return the rows of the segment in use, by the array's name."""
        assert self._current is not None, "a segment is in use"
        start = self._current[1] * self.rows
        return {name: part[start : start + self.rows] for name, part in self.parts.items()}

    def start(self, key: Hashable) -> int:
        """Return the first row of the segment in use, or of the next one, once it is read.

        Raises:
            CacheError: the segment could not be read.
        """
        if self._current is not None and self._current[0] == key:
            return self._current[1] * self.rows
        if key in self._content:
            slot = self._content.index(key)
        else:
            assert self._next is not None, "one segment is in use at a time, and the next one"
            assert self._next[0] == key, "one segment is in use at a time, and the next one"
            self._wait(self._next[2])
            slot = self._next[1]
        self._arrivals[slot]()
        return slot * self.rows

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
        elif coming is not None and not coming[2].cancel():
            coming[2].exception()  # wait for its end; its error has no consequence
        if segment.key not in self._content:
            began = perf_counter()
            self._stream.follow()
            self._load(segment, 0)
            self.waited_seconds += perf_counter() - began
        slot = self._content.index(segment.key)
        self._arrivals[slot]()
        self._current = segment.key, slot

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
            self._stream.follow()  # all that used the slot's rows has been given to the device
            self._next = segment.key, slot, self._thread.submit(self._load, segment, slot)

    def close(self) -> None:
        """Stop prefetching."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        # Memory is not reused before the copies into it are done, also those of a cancelled load.
        self._stream.arrival()()

    def _wait(self, coming: "Future[None]") -> None:
        if not coming.done():
            began = perf_counter()
            coming.exception()
            self.waited_seconds += perf_counter() - began
        coming.result()

    def _load(self, segment: Segment, slot: int) -> None:
        self._content[slot], row = None, slot * self.rows
        read = partial(self._read_shard, segment)
        for values, views in self._reader.store.each(
            read, self._shards(segment), self._shard_bytes
        ):
            count = len(values["digests"])
            for name, part in self.parts.items():
                self._stream.copy_into(part[row : row + count], as_tensor(values[name]))
            self.rows_read += views * count
            self.rows_used += count
            row += count
        self._arrivals[slot] = self._stream.arrival()
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
