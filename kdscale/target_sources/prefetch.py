"""Brings pieces of a cache into memory, one while the one before it is used.

A piece is what is brought in together, such as all that an epoch shows. Memory holds one piece or
two, in places that are used again and again.
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
from kdscale.data.views.pipeline import View
from kdscale.target_sources.buffer import TargetBuffer, row_bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """Some shards, each sample in the view that is shown."""

    key: Hashable
    """Pieces of one key hold the same."""
    shards: Sequence[int]
    """In the order in which their rows lie in memory."""
    view: Callable[[Tensor], View]
    """Of samples, int64 [B]."""


def same_view(one: View, other: View) -> bool:
    """Whether both are the same view of each sample."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.equal(other.cpu())
    return isinstance(one, int) and isinstance(other, int) and one == other


class DoubleBuffer:
    """Places in memory for one piece or two.

    Args:
        reader: of the cache.
        rows: largest number of samples in a piece.
        device: where they are held.
        ahead: whether there is a second place, where the next piece is read meanwhile.
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
        self.held = TargetBuffer.empty(reader, (1 + ahead) * rows, device, features)
        """All rows; those of a piece lie from `start` on."""
        self.held_bytes = len(self.held) * row_bytes(reader.manifest, features)
        """Of memory."""
        self.waited_seconds = 0.0
        """For pieces that were not in memory when they were needed."""
        self.rows_read = 0
        """Samples' targets that were read."""
        self.rows_kept = 0
        """Those of them that were brought in: the others are of views that are not shown."""
        self._reader, self._ahead, self._features = reader, ahead, features
        self._in_hand = reader.manifest.shard_samples * row_bytes(reader.manifest, features)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._closed = Event()
        self._content: list[Hashable | None] = [None] * (1 + ahead)  # once it is all there
        self._here: tuple[Hashable, int] | None = None
        self._next: tuple[Hashable, int, Future[None]] | None = None

    def has(self, key: Hashable) -> bool:
        """Whether a piece is the one that is used now."""
        return self._here is not None and self._here[0] == key

    def start(self, key: Hashable) -> int:
        """Where the rows of a piece begin: of the one that is used, or of the next one, once read.

        Raises:
            CacheError: it could not be read.
        """
        if self._here is not None and self._here[0] == key:
            return self._here[1] * self.rows
        if key in self._content:
            return self._content.index(key) * self.rows
        assert self._next is not None, "one piece is used at a time, and the next one"
        assert self._next[0] == key, "one piece is used at a time, and the next one"
        self._wait(self._next[2])
        return self._next[1] * self.rows

    def use(self, piece: Segment) -> None:
        """Have a piece in memory, in place of the one that was used.

        Raises:
            CacheError: it cannot be read.
        """
        if self.has(piece.key):
            return
        coming, self._here, self._next = self._next, None, None
        if coming is not None and coming[0] == piece.key:
            self._wait(coming[2])
            self._here = coming[:2]
            return
        if coming is not None and not coming[2].cancel():
            coming[2].exception()  # whatever it was, nobody asked for it
        if piece.key in self._content:
            self._here = piece.key, self._content.index(piece.key)
            return
        began = perf_counter()
        self._load(piece, 0)
        self.waited_seconds += perf_counter() - began
        self._here = piece.key, 0

    def read_ahead(self, piece: Segment) -> None:
        """Start to read what will be used next, where there is place for it."""
        if not self._ahead or self._here is None or self.has(piece.key):
            return
        if self._next is not None:
            if self._next[0] == piece.key:
                return
            self._next[2].cancel()  # or it ends before this one begins: there is one thread
            self._next = None
        place = 1 - self._here[1]
        if self._content[place] != piece.key:
            self._next = piece.key, place, self._thread.submit(self._load, piece, place)

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _wait(self, coming: "Future[None]") -> None:
        if not coming.done():
            began = perf_counter()
            coming.exception()
            self.waited_seconds += perf_counter() - began
        coming.result()

    def _load(self, piece: Segment, place: int) -> None:
        self._content[place], row = None, place * self.rows
        shard = partial(self._shard, piece)
        for values, views in each(self._reader.store, shard, self._wanted(piece), self._in_hand):
            self.held.fill(row, values)
            count = len(values["digests"])
            self.rows_read += views * count
            self.rows_kept += count
            row += count
        self._content[place] = piece.key

    def _wanted(self, piece: Segment) -> Iterator[int]:
        """Shards, once they are there; none any more when this is closed."""
        for shard in piece.shards:
            for view in self._views(piece, shard):
                self._reader.wait(view, shard)
            if self._closed.is_set():
                raise CancelledError
            yield shard

    def _views(self, piece: Segment, shard: int) -> list[int]:
        """Those in which samples of a shard are shown."""
        view = piece.view(torch.arange(*self._reader.manifest.shard_range(shard)))
        return [view] if isinstance(view, int) else np.unique(view.numpy()).tolist()

    def _shard(self, piece: Segment, shard: int) -> tuple[dict[str, np.ndarray], int]:
        """Every sample of a shard in its own view, and how many views that took, mostly one."""
        view = piece.view(torch.arange(*self._reader.manifest.shard_range(shard)))
        rows, views = dict[str, np.ndarray](), self._views(piece, shard)
        for number in views:
            for name, values in self._reader.read_shard(number, shard, self._features).items():
                kept = rows.setdefault(name, values)
                if not isinstance(view, int):
                    shown = view.numpy() == number
                    kept[shown] = values[shown]
        return rows, len(views)
