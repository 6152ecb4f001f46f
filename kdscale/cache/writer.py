"""Writes a cache shard by shard. A shard is there when its commit record is."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.cache.layout import (
    COMMITTED,
    absent_rows,
    arrays,
    checksum,
    fixed_objects,
    open_array,
    read_records,
    shard_arrays,
    shard_objects,
)
from kdscale.cache.manifest import Manifest, check_identity, read_manifest, write_manifest
from kdscale.cache.store import DurableStore
from kdscale.durable import is_abandoned, write_durably
from kdscale.errors import CacheIncompleteError, CacheNotFoundError, StorageError

_STALE_SECONDS = 3600  # no write takes as long: a temporary file this old is nobody's


def create_or_resume(path: Path, asked: Manifest, labels: np.ndarray) -> Manifest:
    """Make `path` a cache that `asked` can be written to; one process calls this.

    A new folder gets its metadata; an unfinished or smaller one of the same identity is taken up.

    Args:
        path: the cache's folder, `NAME.zarr`.
        asked: the manifest of the cache to be.
        labels: int64 [N], -1 where unlabelled.

    Raises:
        CacheMismatchError: another cache is there.
        CacheCorruptError: the manifest of the one there is damaged.
        StorageError: the disk is full, read-only or not permitted.
    """
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        _check_free(path)
        return _lay_out(path, replace(asked, complete=False), labels)
    check_identity(path, replace(found, num_views=max(found.num_views, asked.num_views)), asked)
    if found.complete and found.num_views >= asked.num_views:
        return found
    larger = max(found, asked, key=lambda manifest: manifest.num_views)
    taken_up = replace(
        found,
        views=larger.views,
        num_views=larger.num_views,
        fidelity=asked.fidelity,
        versions=asked.versions,
        complete=False,
    )
    return _lay_out(path, taken_up, labels)


def _check_free(path: Path) -> None:
    """Stop where something else is. The manifest comes first, so a killed start leaves no more."""
    if not path.exists():
        return
    if not path.is_dir() or any(not c.match(".zarr.json.*.tmp") for c in path.iterdir()):
        raise StorageError(
            f"{path} exists and is not a cache (it has no zarr.json): name another --cache, "
            "or remove it"
        )


def _lay_out(path: Path, manifest: Manifest, labels: np.ndarray) -> Manifest:
    """Write an unfinished manifest, then what it vouches for; repeatable after a kill.

    In this order nobody finds metadata of more views under a manifest that says complete.
    """
    objects = fixed_objects(manifest, labels)
    checksums = {key: checksum(data) for key, data in objects.items()}
    manifest = replace(manifest, checksums=checksums)
    write_manifest(path, manifest)
    for key, data in objects.items():
        if not _holds(path / key, data):
            write_durably(path / key, data)
    return manifest


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


class ShardWriter:
    """Writes and commits shards of the cache at `path`.

    Any number of processes may, each its own shards.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._store = DurableStore(path)
        self._arrays = {
            name: open_array(self._store, name, writable=True)
            for name in (*shard_arrays(manifest), "commits")
        }

    def write(
        self, view: int, shard: int, values: Mapping[str, np.ndarray], seconds: float
    ) -> None:
        """Write one shard whole, then its commit record.

        Args:
            view: view number.
            shard: shard number.
            values: for each of `shard_arrays` its rows, [samples of the shard, ...]; digests plus
                one.
            seconds: that it took to build.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
            ValueError: the rows are not those of the shard, or hold what stands for absence.
        """
        start, stop = self.manifest.shard_range(shard)
        self._check(values, stop - start)
        for name in shard_arrays(self.manifest):
            self._arrays[name][view, start:stop] = values[name]
        keys = shard_objects(self.manifest, view, shard)
        fields = [self._store.written.pop(key) for key in keys] + [round(seconds * 1000)]
        record = np.array(fields, dtype=np.uint64) + COMMITTED
        self._arrays["commits"][view, shard] = record

    def _check(self, values: Mapping[str, np.ndarray], rows: int) -> None:
        """Zarr would cast and broadcast without a word."""
        layouts = arrays(self.manifest)
        for name in shard_arrays(self.manifest):
            layout = layouts[name]
            wanted = (np.dtype(layout.dtype), (rows, *layout.shape[2:]))
            got = (values[name].dtype, values[name].shape)
            if got != wanted:
                raise ValueError(f"{name} are {got[0]} {got[1]}, wanted {wanted[0]} {wanted[1]}")
            if np.isnan(values[name]).any() or absent_rows(values[name], layout).any():
                raise ValueError(f"{name} hold a NaN or what stands for absence")

    def committed(self) -> np.ndarray:
        """bool [views, shards]: which shards are finished."""
        return np.asarray((self._records() >= COMMITTED).all(axis=-1))

    def seconds(self) -> float:
        """What the finished shards took to build, over all processes and resumes."""
        milliseconds = self._records()[..., -1]
        return float((milliseconds[milliseconds >= COMMITTED] - COMMITTED).sum()) / 1000

    def _records(self) -> np.ndarray:
        views = range(self.manifest.num_views)
        return np.stack([read_records(self._arrays["commits"], view) for view in views])


def finish(path: Path, manifest: Manifest, build: Mapping[str, Any]) -> Manifest:
    """Declare the cache complete: the last write of a build, by one process.

    Raises:
        CacheIncompleteError: shards are missing.
        StorageError: the disk is full, read-only or not permitted.
    """
    writer = ShardWriter(path, manifest)
    missing = int((~writer.committed()).sum())
    if missing:
        raise CacheIncompleteError(
            f"{path} still misses {missing} of {manifest.num_views * manifest.num_shards} shards: "
            "run the same build again"
        )
    finished = manifest.finished({**build, "seconds": round(writer.seconds(), 3)})
    write_manifest(path, finished)
    _remove_leftovers(path)
    return finished


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of builders that were killed, never those of one that still writes."""
    now = (path / "zarr.json").stat().st_mtime  # just written: the clock of the files' own disk
    for leftover in path.rglob(".*.tmp"):
        with suppress(OSError):
            old = now - leftover.stat().st_mtime > _STALE_SECONDS
            if old or is_abandoned(leftover):
                leftover.unlink()
