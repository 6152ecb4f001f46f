"""Which arrays a cache holds, their shapes, chunks and codecs: a pure function of the manifest.

`cache/README.md` is the specification. Arrays are view-major, so an epoch reads one view's chunks
once and in order.
"""

import hashlib
import re
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
COMMITTED = np.uint64(1 << 32)
"""Set in every value of a record: one that is not there reads as 0."""
_UNREADABLE = np.uint64(1)
"""Stands for the values of a damaged record; never stored."""
LABELS_OBJECT = "labels/c/0"

DAMAGE = (ValueError, RuntimeError, OSError, EOFError)
"""What Zarr's codecs raise on bytes that are not what was written."""


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


def fixed_keys(manifest: Manifest) -> list[str]:
    """Keys of the objects that the manifest itself vouches for: metadata and labels."""
    return [*(f"{name}/zarr.json" for name in arrays(manifest)), LABELS_OBJECT]


def fixed_objects(manifest: Manifest, labels: np.ndarray) -> dict[str, bytes]:
    """The bytes of the objects of `fixed_keys`."""
    if labels.shape != (manifest.num_samples,) or labels.dtype != np.int64:
        raise ValueError(
            f"labels are {labels.dtype} {labels.shape}, wanted int64 ({manifest.num_samples},)"
        )
    objects: dict[str, Any] = {}
    for name, layout in arrays(manifest).items():
        array = _create(objects, name, layout)
        if name == "labels":
            array[:] = labels
    return {key: objects[key].to_bytes() for key in fixed_keys(manifest)}


def _create(objects: dict[str, Any], name: str, layout: ArrayLayout) -> "zarr.Array[Any]":
    return zarr.create_array(
        MemoryStore(objects),
        name=name,
        shape=layout.shape,
        chunks=layout.chunks,
        dtype=layout.dtype,
        fill_value=layout.fill_value,
        dimension_names=layout.dimension_names,
        serializer=BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


def checksum(data: bytes) -> str:
    """SHA-256 of an object that the manifest vouches for."""
    return hashlib.sha256(data).hexdigest()


def open_array(store: Any, name: str, *, writable: bool = False) -> "zarr.Array[Any]":
    """One array of the group in `store`."""
    return zarr.open_array(
        store, path=name, mode="r+" if writable else "r", config={"write_empty_chunks": True}
    )


def shard_name(view: int, shard: int) -> str:
    """How messages and `missing_shards` name a shard."""
    return f"view-{view:05d}/shard-{shard:05d}"


def parse_shard_name(name: str) -> tuple[int, int] | None:
    """View and shard of a name; None of what does not name a shard."""
    match = re.fullmatch(r"view-(\d+)/shard-(\d+)", name)
    return None if match is None else (int(match[1]), int(match[2]))


def record_object(view: int, shard: int) -> str:
    """Key of a shard's commit record."""
    return f"commits/c/{view}/{shard}/0"


def shard_objects(manifest: Manifest, view: int, shard: int) -> Iterator[str]:
    """Keys of the objects of a shard, in the order of its commit record."""
    layouts = arrays(manifest)
    for name in SHARD_ARRAYS:
        rest = ["0"] * (len(layouts[name].shape) - 2)
        yield "/".join([name, "c", str(view), str(shard), *rest])


def read_records(commits: "zarr.Array[Any]", view: int) -> np.ndarray:
    """Commit records of a view, uint64 [shards, fields].

    A shard is committed where every value reaches `COMMITTED`. A record that is not there is 0, a
    damaged one is neither.
    """
    try:
        return np.asarray(commits[view])
    except DAMAGE:
        return np.stack([read_record(commits, view, s) for s in range(commits.shape[1])])


def read_record(commits: "zarr.Array[Any]", view: int, shard: int) -> np.ndarray:
    """The commit record of one shard, uint64 [fields], as of `read_records`."""
    try:
        return np.asarray(commits[view, shard])
    except DAMAGE:
        return np.full(_RECORD, _UNREADABLE)
