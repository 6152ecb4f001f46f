"""Targets in memory: rows of a cache's arrays as they are stored, decoded on request.

A batch's rows are decoded in a small part of a step's time, and stored rows take a half (float16)
to a fortieth (topk of 1000 classes) of the memory of decoded ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.layout import arrays, read_arrays
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.targets import Codec, Head, Targets, as_tensor, create_codec

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "uint16": torch.int16,
    "uint32": torch.int32,
    "uint64": torch.int32,  # digests, of which the reader gives the 32 bits that are used
}


@dataclass(frozen=True, slots=True)
class TargetBuffer:
    """Rows of a cache's arrays on a device, to be filled and filled anew."""

    parts: Mapping[str, Tensor]
    """[rows, ...] by the array's name, as `as_tensor` makes them."""
    codec: Codec

    @classmethod
    def empty(
        cls, reader: CacheReader, rows: int, device: torch.device, features: Sequence[str] = ()
    ) -> Self:
        """Room for so many rows of a cache, with some of its features."""
        parts = {
            name: torch.empty((rows, *shape), dtype=dtype, device=device)
            for name, (dtype, shape) in _rows(reader.manifest, features).items()
        }
        return cls(parts, stored_codec(reader, device))

    def __len__(self) -> int:
        return len(self.parts["digests"])

    def slice(self, start: int, stop: int) -> "TargetBuffer":
        """Some of the rows, in the same memory."""
        return TargetBuffer(
            {name: part[start:stop] for name, part in self.parts.items()}, self.codec
        )

    def fill(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Put what a reader gave in the place of the rows from `start` on."""
        for name, part in self.parts.items():
            values = as_tensor(rows[name])
            part[start : start + len(values)].copy_(values)

    def targets(self, rows_B: Tensor) -> Targets:
        """The targets of some rows, int64 [B]."""
        chosen = {
            name: part.index_select(0, rows_B)
            for name, part in self.parts.items()
            if name != "digests"
        }
        return self.codec.decode_tensors(chosen)

    def digests(self, rows_B: Tensor) -> Tensor:
        """The view digests of some rows, int64 [B]."""
        return self.parts["digests"].index_select(0, rows_B).long() & 0xFFFFFFFF


def stored_codec(reader: CacheReader, device: torch.device | None = None) -> Codec:
    """Return the codec of a cache's targets, with the stored head on a device (None: the CPU)."""
    head = reader.head()
    codec = create_codec(reader.manifest.target_encoding, Head.parse(head) if head else None)
    return codec if device is None else codec.to(device)


def row_bytes(manifest: Manifest, features: Sequence[str] = ()) -> int:
    """Bytes that one sample's targets of one view take in memory, digest included."""
    rows = _rows(manifest, features).values()
    return sum(dtype.itemsize * shape.numel() for dtype, shape in rows)


def _rows(manifest: Manifest, features: Sequence[str]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of a row of each array that is read."""
    layouts = arrays(manifest)
    return {
        name: (_DTYPES[layouts[name].dtype], torch.Size(layouts[name].shape[2:]))
        for name in read_arrays(manifest, features)
    }
