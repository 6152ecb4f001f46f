"""Reads the objects of a cache and compares each with what vouches for it.

The manifest vouches for metadata and for what is stored once, a shard's commit record for the
shard's objects.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from kdscale.cache.array_metadata import describes
from kdscale.cache.layout import (
    ArrayLayout,
    Layout,
    checksum,
    decode,
)
from kdscale.cache.records import Record
from kdscale.cache.stores.store import Sound, Store, each
from kdscale.errors import CacheCorruptError, StorageError


class Fault(NamedTuple):
    """What is wrong with an object or a shard."""

    state: str
    """`missing` or `corrupt`."""
    reason: str
    """Text for messages; empty where `missing` is enough."""


class ShardContent(NamedTuple):
    """A shard as it was found."""

    state: str
    """`ok`, `missing` or `corrupt`."""
    reason: str
    """Why it is not ok, for messages; empty where `missing` is enough."""
    objects: dict[str, bytes]
    """Bytes of the objects by key, if `ok`."""


def fixed_objects_of(store: Store, layout: Layout) -> tuple[dict[str, bytes], dict[str, Fault]]:
    """Metadata and what is stored once: bytes of the sound objects, and what is wrong with others.

    Sound are objects that have the manifest's checksum and are what its layout makes of them.
    """
    keys, read = layout.fixed_keys, partial(_fixed_object, store, layout)
    found = dict(zip(keys, each(store, read, keys), strict=True))
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


def read_shard_objects(
    store: Store,
    layout: Layout,
    view: int,
    shard: int,
    record: Record,
    names: Sequence[str] | None = None,
) -> ShardContent:
    """Compare a shard's objects with its record.

    Args:
        store: where the cache lies.
        layout: of the cache.
        view: view number.
        shard: shard number.
        record: the shard's.
        names: the arrays whose objects are read; None: all of them.
    """
    if record.state != "ok":
        return ShardContent(record.state, record.reason, {})
    objects: dict[str, bytes] = {}
    for key, expected in zip(layout.shard_objects(view, shard), record.checksums, strict=True):
        name = key.partition("/")[0]
        if names is not None and name not in names:
            continue
        data, state = _read(store, key, partial(_has_crc, expected))
        if state == "missing":
            return ShardContent(state, f"{key} is not there", {})
        if state == "corrupt":
            return ShardContent(state, f"{key} is not the object of its commit record", {})
        if not _can_hold(layout.arrays[name], data):
            return ShardContent("corrupt", f"{key} is too small for its samples", {})
        objects[key] = data
    return ShardContent("ok", "", objects)


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
    data, state = _read(store, key, lambda data: checksum(data) == expected)
    if state != "ok":
        reason = "" if state == "missing" else "it does not have the manifest's checksum"
        return Fault(state, reason)
    array = layout.arrays[key.partition("/")[0]]
    if key.endswith("/zarr.json"):
        if not describes(data, array):
            return Fault("corrupt", "it does not describe the array of the manifest")
    elif not _can_hold(array, data):
        return Fault("corrupt", f"its {len(data)} bytes cannot hold what the manifest states")
    return data


def _read(store: Store, key: str, sound: Sound) -> tuple[bytes, str]:
    """The bytes of an object, and whether they are those that were written."""
    try:
        data = store.read(key, sound)
        return data, "ok" if sound(data) else "corrupt"
    except FileNotFoundError:
        return b"", "missing"
    except StorageError:  # the store, not the object: a network that is down damages nothing
        raise
    except OSError:
        return b"", "corrupt"


def _has_crc(expected: int, data: bytes) -> bool:
    return zlib.crc32(data) == expected


_MOST_COMPRESSED = 1 << 15
"""Bytes that a stored byte can stand for: zstd's blocks have 4 bytes or more for 128 KiB."""


def _can_hold(array: ArrayLayout, data: bytes) -> bool:
    """Whether an object is large enough for what it should hold, so that it may be decoded.

    Decoding takes memory for what the manifest claims; this limits it to what is stored.
    """
    claimed = int(np.dtype(array.dtype).itemsize) * prod(array.objects)
    return claimed <= _MOST_COMPRESSED * len(data)
