"""Which arrays a cache holds, their shapes, chunks and codecs: a pure function of the manifest.

`cache/README.md` is the specification. Arrays are view-major, so an epoch reads one view's chunks
once and in order.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from kdscale.cache.manifest import Manifest

SHARD_ARRAYS = ("logits", "digests")
"""Written shard by shard; their objects are what a commit record vouches for."""
_RECORD = len(SHARD_ARRAYS) + 1
"""A commit record: the CRC of each object, then the milliseconds that the shard took to build."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One Zarr array."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill_value: float
    dimension_names: tuple[str, ...]


def arrays(manifest: Manifest) -> dict[str, ArrayLayout]:
    """The cache's arrays by name.

    An absent chunk reads as the fill value. Logits are never NaN, digests are stored plus one and
    commits carry bit 32, so absence cannot be taken for content.
    """
    views, samples = manifest.num_views, manifest.num_samples
    shard = min(manifest.shard_samples, samples)
    classes = manifest.num_classes
    return {
        "logits": ArrayLayout(
            (views, samples, classes), (1, shard, classes), manifest.encoding, float("nan"),
            ("view", "sample", "class"),
        ),
        "digests": ArrayLayout((views, samples), (1, shard), "uint64", 0, ("view", "sample")),
        "labels": ArrayLayout((samples,), (samples,), "int64", -1, ("sample",)),
        "commits": ArrayLayout(
            (views, manifest.num_shards, _RECORD), (1, 1, _RECORD), "uint64", 0,
            ("view", "shard", "field"),
        ),
    }  # fmt: skip


def metadata_documents(manifest: Manifest) -> dict[str, bytes]:
    """The bytes of each array's `zarr.json`, by key within the group."""
    return {f"{name}/zarr.json": _metadata(layout) for name, layout in arrays(manifest).items()}


def _metadata(layout: ArrayLayout) -> bytes:
    objects: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(objects),
        shape=layout.shape,
        chunks=layout.chunks,
        dtype=layout.dtype,
        fill_value=layout.fill_value,
        dimension_names=layout.dimension_names,
        serializer=BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
    )
    return bytes(objects["zarr.json"].to_bytes())


def checksum(data: bytes) -> str:
    """SHA-256 of an object that the manifest vouches for (metadata, labels)."""
    return hashlib.sha256(data).hexdigest()


def open_array(store: Any, name: str, *, writable: bool = False) -> zarr.Array:
    """One array of the group in `store`."""
    return zarr.open_array(
        store, path=name, mode="r+" if writable else "r", config={"write_empty_chunks": True}
    )


def shard_key(array: str, view: int, shard: int, dimensions: int) -> str:
    """Key of the object that holds one shard of an array."""
    return "/".join([array, "c", str(view), str(shard), *["0"] * (dimensions - 2)])


def shard_name(view: int, shard: int) -> str:
    """How messages and `missing_shards` name a shard."""
    return f"view-{view:05d}/shard-{shard:05d}"


def shard_objects(manifest: Manifest, view: int, shard: int) -> Iterator[str]:
    """Keys of the objects of a shard, in the order of its commit record."""
    layouts = arrays(manifest)
    for name in SHARD_ARRAYS:
        yield shard_key(name, view, shard, len(layouts[name].shape))


COMMITTED = np.uint64(1 << 32)
"""Set in every committed value: a record that is not there reads as 0."""
