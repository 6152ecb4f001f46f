"""Commit records: which shards of a cache are finished, and reading the objects they vouch for.

A record holds the checksums of a shard's objects and, from format version 3 on, is bound to its
cache, view and shard, so that one that was copied from elsewhere is refused. `cache/README.md` is
the specification.
"""

import hashlib
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from kdscale.cache.layout import ArrayLayout, Layout, record_object, shard_name
from kdscale.cache.stores.store import Sound, Store
from kdscale.documents import canonical
from kdscale.errors import StorageError

COMMITTED = 1 << 32
"""Set in every field of a record, so that it differs from one that is not there, which reads 0."""
_CHECKSUM_BYTES = 4
_LISTED = 1000
"""Keys that an object store lists in one request."""
_RECORD = re.compile(r"commits/c/([0-9]{1,9})/([0-9]{1,9})/0")


@dataclass(frozen=True, slots=True)
class Record:
    """A shard's commit record as it was found."""

    state: str
    """`ok`; `missing`: there is none; `corrupt`: it does not commit this shard of this cache."""
    reason: str = ""
    """Why it is corrupt, for people."""
    checksums: tuple[int, ...] = ()
    """CRC-32 of the stored bytes of each of the shard's objects, if `ok`."""
    milliseconds: int = 0
    """That the shard took to build, if `ok`."""


class ShardContent(NamedTuple):
    """A shard as it was found."""

    state: str
    """`ok`, `missing` or `corrupt`."""
    reason: str
    """Why it is not ok, for messages; empty where `missing` is enough."""
    objects: dict[str, bytes]
    """Bytes of the objects by key, if `ok`."""


MISSING = Record("missing")


class CommitRecords:
    """The commit records of one cache."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, manifest = store, layout.manifest
        self._num_fields = layout.record_fields
        self._num_views, self._num_shards = manifest.num_views, manifest.num_shards
        self._num_objects = len(layout.shard_arrays)
        self._binding = _binding(layout) if manifest.bound_records else None

    def read(self, view: int, shard: int) -> Record:
        """Return the record of one shard."""
        try:
            data = self._store.read(record_object(view, shard))
        except FileNotFoundError:
            return MISSING
        except StorageError:
            raise
        except OSError:
            return Record("corrupt", "its commit record cannot be read")
        return self._parse(data, view, shard)

    def is_committed(self, view: int, shard: int) -> bool:
        """Return whether a shard is finished."""
        return self.read(view, shard).state == "ok"

    def read_each(self, view: int, shards: Sequence[int]) -> list[Record]:
        """Return the records of some shards of a view."""
        return list(self._store.each(partial(self.read, view), shards))

    def read_present(self) -> dict[tuple[int, int], Record]:
        """Return the records that a listing of the cache names, by (view, shard).

        A shard without a record costs no request.
        """
        present = sorted(self.present())
        found = self._store.each(lambda one: self.read(*one), present)
        return dict(zip(present, found, strict=True))

    def present(self, view: int | None = None) -> set[tuple[int, int]]:
        """Return (view, shard) of what has a record, whatever it holds, by one listing.

        Args:
            view: number of a view; None = all.
        """
        folder = "commits/c" if view is None else f"commits/c/{view}"
        parts = (_RECORD.fullmatch(key) for key, _ in self._store.keys(folder))
        found = {(int(one[1]), int(one[2])) for one in parts if one is not None}
        return {one for one in found if one[0] < self._num_views and one[1] < self._num_shards}

    def present_among(self, shards: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return those of some (view, shard) that have a record, in the fewest requests.

        That is one for each, a listing of each of their views, or a listing of all views.
        """
        views = {view for view, _ in shards}
        of_views = len(views) * -(-self._num_shards // _LISTED)
        of_all = -(-self._num_views * self._num_shards // _LISTED)
        if len(shards) <= min(of_views, of_all):
            return {one for one in shards if self.read(*one).state != "missing"}
        if of_all < of_views:
            return self.present().intersection(shards)
        return set[tuple[int, int]]().union(*map(self.present, views)).intersection(shards)

    def values(
        self, view: int, shard: int, objects: Sequence[bytes], milliseconds: int
    ) -> np.ndarray:
        """The fields of a record, uint64 [fields].

        Args:
            view: view number.
            shard: shard number.
            objects: stored bytes of each of `Layout.shard_arrays`.
            milliseconds: that the shard took to build.
        """
        stated = [*map(zlib.crc32, objects), milliseconds]
        if self._binding is not None:
            stated += [view, shard]
        fields = np.array(stated, dtype="<u8") + np.uint64(COMMITTED)
        if self._binding is not None:
            fields = np.append(fields, np.uint64(_seal(self._binding, fields)))
        return fields

    def _parse(self, data: bytes, view: int, shard: int) -> Record:
        fields = _decode(data, self._num_fields)
        if fields is None:
            return Record("corrupt", "its commit record is damaged")
        if not fields.any():
            return MISSING
        reason = self._mistake(fields, view, shard)
        if reason:
            return Record("corrupt", reason)
        stated = [int(value) - COMMITTED for value in fields[: self._num_objects + 1]]
        return Record("ok", "", tuple(stated[:-1]), stated[-1])

    def _mistake(self, fields: np.ndarray, view: int, shard: int) -> str:
        """Why a record does not commit this shard of this cache; empty if it does."""
        if (fields < COMMITTED).any():
            return "its commit record is damaged"
        if self._binding is None:
            return ""
        if int(fields[-1]) != _seal(self._binding, fields[:-1]):
            return "its commit record belongs to another cache, or to another layout of this one"
        found = int(fields[-3]) - COMMITTED, int(fields[-2]) - COMMITTED
        if found != (view, shard):
            return f"its commit record is that of {shard_name(*found)}"
        return ""


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
        data, state = read_object(store, key, partial(_has_crc, expected))
        if state == "missing":
            return ShardContent(state, f"{key} is not there", {})
        if state == "corrupt":
            return ShardContent(state, f"{key} is not the object of its commit record", {})
        if not can_hold(layout.arrays[name], data):
            return ShardContent("corrupt", f"{key} is too small for its samples", {})
        objects[key] = data
    return ShardContent("ok", "", objects)


def read_object(store: Store, key: str, sound: Sound) -> tuple[bytes, str]:
    """Return the bytes of an object, and whether they are `ok`, `missing` or `corrupt`."""
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


def can_hold(array: ArrayLayout, data: bytes) -> bool:
    """Return whether an object is large enough for what it should hold, so that it may be decoded.

    Decoding takes memory for what the manifest claims; this limits it to what is stored.
    """
    claimed = int(np.dtype(array.dtype).itemsize) * prod(array.objects)
    return claimed <= _MOST_COMPRESSED * len(data)


def _binding(layout: Layout) -> bytes:
    """SHA-256 of all that the records of a cache have in common."""
    manifest = layout.manifest
    common = {
        "format": "kdscale cache",
        "version": manifest.format_version,
        "identity": manifest.identity,
        "arrays": list(layout.shard_arrays),
        "features": list(manifest.features),
        "shard_samples": manifest.shard_samples,
        "chunk_samples": manifest.chunk_samples,
    }
    return hashlib.sha256(canonical(common)).digest()


def _seal(binding: bytes, fields: np.ndarray) -> int:
    """63 bits of the hash of a record's other fields and of what they are bound to; bit 32 set."""
    digest = hashlib.sha256(binding + fields.astype("<u8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little") | COMMITTED


def _decode(data: bytes, num_fields: int) -> np.ndarray | None:
    """A record's fields, uint64 [fields]; None if the object is not as it was written.

    Zarr takes ten times as long for a chunk this small, and there are thousands.
    """
    content, stated = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little") != stated:
        return None
    fields = np.zeros(
        num_fields, dtype="<u8"
    )  # fewer that are stored leave zeros, which are refused
    try:
        Zstd().decode(content, fields)
    except (RuntimeError, ValueError):
        return None
    return fields
