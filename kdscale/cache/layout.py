"""Which arrays a cache holds, their shapes, chunks and codecs: a pure function of the manifest.

`cache/README.md` is the specification. Arrays are view-major, so an epoch reads one view's chunks
once and in order.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from kdscale.cache.manifest import Manifest
from kdscale.encodings import TargetArray

RECORDS_METADATA = "commits/zarr.json"

DAMAGE = (ValueError, RuntimeError, OSError, EOFError)
"""What Zarr's codecs raise on bytes that are not what was written."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One Zarr array."""

    shape: tuple[int, ...]
    objects: tuple[int, ...]
    """Shape of what one object holds."""
    chunks: tuple[int, ...]
    """Shape of what is compressed together: the same, or several to an object."""
    dtype: str
    fill_value: float
    dimension_names: tuple[str, ...]


class Layout:
    """The arrays of a cache and the keys of its objects, computed once from the manifest.

    An absent chunk reads as the fill value, and cannot be taken for content: floats are never NaN,
    ids are below the largest value of their type, the smallest logit of a row has code 0, digests
    are stored plus one, and commit records have bit 32 set.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._targets = manifest.target_encoding.arrays
        written = {**self._targets, **_feature_arrays(manifest), "digests": _DIGESTS}
        self.shard_arrays = tuple(written)
        """Arrays that are written shard by shard, in the order of a commit record's fields."""
        self.record_fields = len(written) + (4 if manifest.bound_records else 1)
        """Number of fields of a commit record: see `kdscale.cache.records`."""
        static = _static_arrays(manifest)
        self.arrays: dict[str, ArrayLayout] = {
            **{name: _rows(manifest, array) for name, array in written.items()},
            **static,
            "commits": _records(manifest, self.record_fields),
        }
        """All arrays by name: those of the encoding first."""
        self.static_objects = {name: _object(name, layout.shape) for name, layout in static.items()}
        """Keys of the one chunk of each array that does not grow with the views, by its name."""

    @property
    def fixed_keys(self) -> list[str]:
        """Keys of objects whose checksums are in the manifest: metadata, static arrays."""
        return [*(f"{name}/zarr.json" for name in self.arrays), *self.static_objects.values()]

    def read_arrays(self, features: Sequence[str]) -> tuple[str, ...]:
        """Return the arrays that hold targets, the features of some modules, and digests."""
        return (*self._targets, *map(feature_array, features), "digests")

    def shard_objects(self, view: int, shard: int) -> list[str]:
        """Return keys of the objects of a shard, in the order of its commit record."""
        place = (view, shard)
        return [_object(name, self.arrays[name].shape[2:], *place) for name in self.shard_arrays]


def _object(name: str, dimensions: Sequence[int], *place: int) -> str:
    """Return the key of an array's chunk at a place, the first one in all further dimensions."""
    return "/".join([name, "c", *map(str, place), *["0"] * len(dimensions)])


def feature_array(module: str) -> str:
    """The name of the array of what a module of the teacher gave."""
    return f"features.{module}"


def _static_arrays(manifest: Manifest) -> dict[str, ArrayLayout]:
    """Arrays that do not grow with the views, in one chunk each."""
    whole: dict[str, tuple[tuple[int, ...], str, float, tuple[str, ...]]] = {
        "labels": ((manifest.num_samples,), "int64", -1, ("sample",))
    }
    if manifest.dataset.get("keys") is not None:
        whole["keys"] = ((manifest.num_samples,), "uint64", 0, ("sample",))
    if manifest.target_encoding.uses_head:
        classes, size = manifest.num_classes, manifest.embedding_size
        assert size is not None, "a manifest of this encoding states its size"
        whole["head_weight"] = ((classes, size), "float32", _NAN, ("class", "value"))
        whole["head_bias"] = ((classes,), "float32", _NAN, ("class",))
    return {name: ArrayLayout(of[0], of[0], *of) for name, of in whole.items()}


_NAN = float("nan")
_DIGESTS = TargetArray("uint64", 0)
_FEATURE_NAMES = {
    1: ("value",),
    2: ("token", "value"),
    3: ("channel", "row", "column"),
}
"""Names of the dimensions of vectors, tokens and maps."""


def _feature_arrays(manifest: Manifest) -> dict[str, TargetArray]:
    """Arrays of features, float16."""
    return {
        feature_array(one["module"]): TargetArray(
            "float16", _NAN, tuple(one["shape"]), _FEATURE_NAMES[len(one["shape"])]
        )
        for one in manifest.features
    }


def _rows(manifest: Manifest, array: TargetArray) -> ArrayLayout:
    """Return the layout of an array with a row for each sample of each view."""
    views, samples = manifest.num_views, manifest.num_samples
    shard, chunk = manifest.shard_samples, manifest.chunk_samples
    if chunk is None:
        shard = chunk = min(shard, samples)
    row = array.shape
    return ArrayLayout(
        (views, samples, *row), (1, shard, *row), (1, chunk, *row), array.dtype, array.fill_value,
        ("view", "sample", *array.dimensions),
    )  # fmt: skip


def _records(manifest: Manifest, fields: int) -> ArrayLayout:
    """Return the layout of the array of commit records."""
    return ArrayLayout(
        (manifest.num_views, manifest.num_shards, fields), (1, 1, fields), (1, 1, fields),
        "uint64", 0, ("view", "shard", "field"),
    )  # fmt: skip


_OBJECT_BYTES = 8 << 20
"""Where requests cost more than bytes, an object should be about so large."""


def with_large_objects(manifest: Manifest) -> Manifest:
    """The layout for a remote store: objects of several chunks, each as large as a local one.

    As many as make the largest array's object about 8 MiB before compression, or hold a view.
    """
    chunk = manifest.rows_together
    layout = Layout(manifest)
    row = max(_row_bytes(layout.arrays[name]) for name in layout.shard_arrays)
    wanted = max(1, round(_OBJECT_BYTES / (chunk * row)))
    count = min(wanted, -(-manifest.num_samples // chunk))
    together = None if count == 1 else chunk
    return replace(manifest, shard_samples=count * chunk, chunk_samples=together)


def with_plain_objects(manifest: Manifest) -> Manifest:
    """The layout for a folder: one chunk an object."""
    return replace(manifest, shard_samples=manifest.rows_together, chunk_samples=None)


def _row_bytes(layout: ArrayLayout) -> int:
    return int(np.dtype(layout.dtype).itemsize * np.prod(layout.shape[2:], dtype=int))


def absent_rows(values: np.ndarray, layout: ArrayLayout) -> np.ndarray:
    """bool [rows]: which rows of an array, [rows, ...], read as one that is not there."""
    columns = values.reshape(len(values), -1)
    absent = _is_fill(columns[:, 0], layout)
    candidates = np.flatnonzero(absent)  # few, if any: the other columns are rarely looked at
    absent[candidates] = _is_fill(columns[candidates], layout).all(axis=1)
    return absent


def _is_fill(values: np.ndarray, layout: ArrayLayout) -> np.ndarray:
    if np.isnan(layout.fill_value):
        return np.asarray(np.isnan(values))
    return np.asarray(values == layout.fill_value)


def fixed_objects(
    manifest: Manifest, labels: np.ndarray, once: Mapping[str, np.ndarray] | None = None
) -> dict[str, bytes]:
    """The bytes of the objects of `Layout.fixed_keys`.

    Args:
        manifest: of the cache.
        labels: int64 [N], -1 where unlabelled.
        once: other static arrays: `keys`, uint64 [N], if the manifest has them; `head_weight`
            float32 [C, D] and `head_bias` float32 [C], where the encoding is `embedding`.
    """
    values = {**(once or {}), "labels": labels}
    objects: dict[str, Any] = {}
    layout = Layout(manifest)
    for name, one in layout.arrays.items():
        array = _create(objects, name, one)
        if name in layout.static_objects:
            array[...] = _checked(name, values[name], one)
    return {key: objects[key].to_bytes() for key in layout.fixed_keys}


def _checked(name: str, values: np.ndarray, layout: ArrayLayout) -> np.ndarray:
    """Zarr would cast and broadcast without a word."""
    if values.shape != layout.shape or values.dtype != layout.dtype:
        raise ValueError(
            f"{name} are {values.dtype} {values.shape}, wanted {layout.dtype} {layout.shape}"
        )
    return values


def _create(objects: dict[str, Any], name: str, layout: ArrayLayout) -> "zarr.Array[Any]":
    return zarr.create_array(
        MemoryStore(objects),
        name=name,
        shape=layout.shape,
        chunks=layout.chunks,
        shards=None if layout.objects == layout.chunks else layout.objects,
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


def decode(name: str, objects: Mapping[str, bytes]) -> "zarr.Array[Any]":
    """Open one array over the bytes of its metadata and of the chunks that will be read.

    Bytes that were compared with their checksums are decoded as they are, and not read again.
    """
    buffers: dict[str, Any] = {key: Buffer.from_bytes(data) for key, data in objects.items()}
    return zarr.open_array(MemoryStore(buffers), path=name, mode="r")


class Encoder:
    """Makes the objects of a cache's arrays."""

    def __init__(self, layout: Layout) -> None:
        self._objects: dict[str, Any] = {}
        self._arrays = {
            name: _create(self._objects, name, one) for name, one in layout.arrays.items()
        }

    def encode(self, key: str, place: tuple[Any, ...], values: np.ndarray) -> bytes:
        """The bytes of the object `key`, which holds an array's values at a place and no others."""
        self._arrays[key.partition("/")[0]][place] = values
        return bytes(self._objects.pop(key).to_bytes())


def shard_name(view: int, shard: int) -> str:
    """How messages and `missing_shards` name a shard."""
    return f"view-{view:05d}/shard-{shard:05d}"


def claim_name(view: int, shard: int) -> str:
    """Return the name of the claim on a shard."""
    return shard_name(view, shard).replace("/", "-")


def parse_shard_name(name: str) -> tuple[int, int] | None:
    """View and shard of a name; None of what does not name a shard."""
    match = re.fullmatch(r"view-(\d+)/shard-(\d+)", name)
    return None if match is None else (int(match[1]), int(match[2]))


def record_object(view: int, shard: int) -> str:
    """Key of a shard's commit record."""
    return f"commits/c/{view}/{shard}/0"


_ARRAYS = (
    r"(?:labels|keys|head_weight|head_bias|commits|digests"
    r"|ids|logits|tails|embedding|codes|scale|offset|features\.[^/]+)"
)
"""Names of the arrays that a cache of any encoding may have."""
_OWNED = re.compile(rf"zarr\.json|{_ARRAYS}/(?:zarr\.json|c(?:/[0-9]+)+)")
_TEMPORARY = re.compile(
    rf"\.zarr\.json\.[^/]+\.tmp|{_ARRAYS}/(?:\.zarr\.json|c(?:/[0-9]+)*/\.[0-9]+)\.[^/]+\.tmp"
)


def is_owned(key: str) -> bool:
    """Return whether a key is the manifest's, an array's, or a temporary file's of one of them."""
    return _OWNED.fullmatch(key) is not None or _TEMPORARY.fullmatch(key) is not None
