"""Reads the objects that the manifest vouches for: metadata, and what is stored once."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kdscale.cache.layout import ArrayLayout, Layout, checksum, decode
from kdscale.cache.records import can_hold, read_object
from kdscale.cache.stores.store import Store
from kdscale.errors import CacheCorruptError


class Fault(NamedTuple):
    """What is wrong with an object or a shard."""

    state: str
    """`missing` or `corrupt`."""
    reason: str
    """Text for messages; empty where `missing` is enough."""


def fixed_objects_of(store: Store, layout: Layout) -> tuple[dict[str, bytes], dict[str, Fault]]:
    """Metadata and what is stored once: bytes of the sound objects, and what is wrong with others.

    Sound are objects that have the manifest's checksum and are what its layout makes of them.
    """
    keys, read = layout.fixed_keys, partial(_fixed_object, store, layout)
    found = dict(zip(keys, store.each(read, keys), strict=True))
    sound = {key: data for key, data in found.items() if isinstance(data, bytes)}
    return sound, {key: fault for key, fault in found.items() if isinstance(fault, Fault)}


def read_once(store: Store, layout: Layout, name: str) -> np.ndarray:
    """What a cache stores once, such as `labels` or `keys`; of one that is finished or not.

    Raises:
        CacheCorruptError: they are missing or damaged.
    """
    keys = (f"{name}/zarr.json", layout.static_objects[name])
    found = {key: _fixed_object(store, layout, key) for key in keys}
    objects = {key: data for key, data in found.items() if isinstance(data, bytes)}
    faults = {key: fault.reason for key, fault in found.items() if isinstance(fault, Fault)}
    if faults:
        raise corrupt(store.location, faults)
    return np.asarray(decode(name, objects)[...])


def corrupt(location: str, faults: Mapping[str, str]) -> CacheCorruptError:
    """The error that names what is missing or damaged, and why."""
    names = list(faults)
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    reasons = [f"{name}: {reason}" for name, reason in faults.items() if reason]
    because = f" ({'; '.join(reasons[:3])})" if reasons else ""
    return CacheCorruptError(
        f"{location}: {listed} missing or damaged{because}: see `kdscale cache verify {location}`, "
        f"and rebuild just that with `kdscale cache repair {location} --recipe RECIPE`"
    )


def _fixed_object(store: Store, layout: Layout, key: str) -> bytes | Fault:
    """An object's bytes, or what is wrong with it."""
    expected = layout.manifest.checksums.get(key)
    data, state = read_object(store, key, lambda data: checksum(data) == expected)
    if state != "ok":
        reason = "" if state == "missing" else "it does not have the manifest's checksum"
        return Fault(state, reason)
    array = layout.arrays[key.partition("/")[0]]
    if key.endswith("/zarr.json"):
        if not _describes(data, array):
            return Fault("corrupt", "it does not describe the array of the manifest")
    elif not can_hold(array, data):
        return Fault("corrupt", f"its {len(data)} bytes cannot hold what the manifest states")
    return data


def _describes(data: bytes, layout: ArrayLayout) -> bool:
    """Whether the stored metadata of an array are those of a layout, and nothing else.

    Another version of Zarr may have written them with other white space or without what is empty.
    """
    try:
        found = {**_EMPTY, **json.loads(data, parse_float=_refuse_float)}
    except (ValueError, TypeError, RecursionError):
        return False
    return any(found == {**_EMPTY, **one} for one in _documents(layout))


def _refuse_float(text: str) -> float:
    raise ValueError(f"{text}: metadata hold whole numbers, and 2.0 would equal 2")


_EMPTY: dict[str, Any] = {"attributes": {}, "storage_transformers": []}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def _documents(layout: ArrayLayout) -> Iterator[dict[str, Any]]:
    """The metadata of an array; of single bytes an order of bytes may be stated or not."""
    yield _document(layout, _LITTLE)
    if np.dtype(layout.dtype).itemsize == 1:
        yield _document(layout, {"name": "bytes"})


def _document(layout: ArrayLayout, order: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an array, as Zarr's specification has them."""
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    codecs: list[dict[str, Any]] = [order, zstd, {"name": "crc32c"}]
    if layout.objects != layout.chunks:
        inside = {
            "chunk_shape": list(layout.chunks),
            "codecs": codecs,
            "index_codecs": [_LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inside}]
    grid = {"name": "regular", "configuration": {"chunk_shape": list(layout.objects)}}
    fill_value = "NaN" if np.isnan(layout.fill_value) else layout.fill_value
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "dimension_names": list(layout.dimension_names),
    }
