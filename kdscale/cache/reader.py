"""Reads a finished cache: one view at a time, whole chunks, checksums verified."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from zarr.storage import LocalStore

from kdscale.cache.layout import (
    COMMITTED,
    DAMAGE,
    LABELS_OBJECT,
    absent_rows,
    arrays,
    checksum,
    fixed_keys,
    open_array,
    read_records,
    record_object,
    shard_arrays,
    shard_name,
    shard_objects,
)
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.store import crc
from kdscale.errors import CacheCorruptError, CacheIncompleteError


class CacheReader:
    """A finished cache opened for reading.

    Raises:
        CacheNotFoundError: nothing there.
        CacheIncompleteError: the build has not finished, or views are being added.
        CacheCorruptError: manifest, metadata or labels are not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = _finished_manifest(path)
        store = LocalStore(path, read_only=True)
        self._layouts = arrays(self.manifest)
        self._arrays = {name: open_array(store, name) for name in self._layouts}

    def read_view(self, view: int) -> dict[str, np.ndarray]:
        """All samples of one view: the encoding's arrays as stored and `digests` uint32 [N].

        Raises:
            CacheCorruptError: an object is missing or damaged; its shard is named.
        """
        self._check(view, range(self.manifest.num_shards))
        return self._read(view, 0, self.manifest.num_samples)

    def read_shard(self, view: int, shard: int) -> dict[str, np.ndarray]:
        """The samples of one shard, like `read_view`.

        Raises:
            CacheCorruptError: an object of it is missing or damaged.
        """
        self._check(view, [shard])
        return self._read(view, *self.manifest.shard_range(shard))

    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled.

        Raises:
            CacheCorruptError: they are missing or damaged.
        """
        try:
            return np.asarray(self._arrays["labels"][:])
        except DAMAGE:
            raise _corrupt(self.path, [LABELS_OBJECT]) from None

    def _check(self, view: int, shards: Iterable[int]) -> None:
        """Compare whole objects with their commit records, before Zarr decodes them."""
        records = read_records(self._arrays["commits"], view)
        damaged = [
            shard_name(view, shard)
            for shard in shards
            if shard_state(self.path, self.manifest, view, shard, records[shard]) != "ok"
        ]
        if damaged:
            raise _corrupt(self.path, damaged)

    def _read(self, view: int, start: int, stop: int) -> dict[str, np.ndarray]:
        try:
            values = {
                name: np.asarray(self._arrays[name][view, start:stop])
                for name in shard_arrays(self.manifest)
            }
        except DAMAGE as error:
            raise CacheCorruptError(f"{self.path}: view {view} cannot be read: {error}") from error
        # An object that went away since the check reads as the fill value, in all its rows.
        if any(absent_rows(rows, self._layouts[name]).any() for name, rows in values.items()):
            raise CacheCorruptError(f"{self.path}: objects of view {view} went away while reading")
        values["digests"] = (values["digests"] - np.uint64(1)).astype(np.uint32)
        return values


def _finished_manifest(path: Path) -> Manifest:
    """The manifest of a finished cache, once metadata and labels are what it vouches for."""
    manifest = read_manifest(path)
    damaged = damaged_objects(path, manifest) if manifest.complete else []
    if damaged and read_manifest(path) == manifest:
        raise _corrupt(path, damaged)
    if damaged or not manifest.complete:  # damaged: a build that adds views began just now
        raise CacheIncompleteError(
            f"{path} is not complete: wait for its build, or run the same `kdscale cache build` "
            "again to finish it"
        )
    return manifest


def check_present(path: Path, manifest: Manifest) -> None:
    """Stop where objects of a finished cache are missing; what shards hold is not read.

    Raises:
        CacheCorruptError: naming them.
    """
    absent = damaged_objects(path, manifest)
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            keys = (record_object(view, shard), *shard_objects(manifest, view, shard))
            if not all((path / key).is_file() for key in keys):
                absent.append(shard_name(view, shard))
    if absent and read_manifest(path) == manifest:  # else a build that adds views began just now
        raise _corrupt(path, absent)


def damaged_objects(path: Path, manifest: Manifest) -> list[str]:
    """Keys of metadata and labels that are missing, or not as the manifest has them."""
    return [
        key for key in fixed_keys(manifest) if _checksum(path / key) != manifest.checksums.get(key)
    ]


def _checksum(file: Path) -> str:
    try:
        return checksum(file.read_bytes())
    except OSError as error:
        return f"unreadable: {error}"


def shard_state(path: Path, manifest: Manifest, view: int, shard: int, record: np.ndarray) -> str:
    """`ok`, `missing` or `corrupt`: a shard's objects against its commit record."""
    if not record.any():
        return "missing"
    if (record < COMMITTED).any():
        return "corrupt"
    # The record's last field is a time, without an object.
    for key, expected in zip(shard_objects(manifest, view, shard), record, strict=False):
        try:
            stored = (path / key).read_bytes()
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "corrupt"
        if COMMITTED + np.uint64(crc(stored)) != expected:
            return "corrupt"
    return "ok"


def _corrupt(path: Path, names: list[str]) -> CacheCorruptError:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return CacheCorruptError(
        f"{path}: {shown} missing or damaged: see `kdscale cache verify {path}`, "
        f"and rebuild just that with `kdscale cache repair {path} --recipe RECIPE`"
    )
