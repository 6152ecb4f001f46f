"""Writes a cache shard by shard. A shard is there when its commit record is; the rest is resumed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.cache.layout import (
    COMMITTED,
    SHARD_ARRAYS,
    checksum,
    metadata_documents,
    open_array,
    shard_objects,
)
from kdscale.cache.manifest import (
    Manifest,
    check_identity,
    read_manifest,
    write_manifest,
)
from kdscale.cache.store import DurableStore
from kdscale.durable import write_durably
from kdscale.errors import CacheIncompleteError, CacheNotFoundError, StorageError


def create_or_resume(path: Path, asked: Manifest, labels: np.ndarray) -> Manifest:
    """Make `path` a cache that `asked` can be written to; one process calls this.

    A new folder gets its metadata; an unfinished or smaller one of the same identity is taken up.

    Args:
        path: the cache's folder, `NAME.zarr`.
        asked: the manifest of the cache to be.
        labels: int64 [N], -1 where unlabelled.

    Raises:
        CacheMismatchError: another cache is there.
        StorageError: the disk is full, read-only or not permitted.
    """
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        if path.exists() and (not path.is_dir() or any(path.iterdir())) and not _started(path):
            raise StorageError(
                f"{path} exists and is no cache: name another --cache, or remove it"
            ) from None
        return _create(path, asked, labels)
    check_identity(path, replace(found, num_views=max(found.num_views, asked.num_views)), asked)
    if found.complete and found.num_views >= asked.num_views:
        return found
    if found.complete:  # while it grows, readers are told so rather than shown odd metadata
        write_manifest(path, replace(found, complete=False))
    kept = replace(
        found, num_views=max(found.num_views, asked.num_views), complete=False,
        fidelity=asked.fidelity, versions=asked.versions,
    )  # fmt: skip
    return _create(path, kept, labels)


def _started(path: Path) -> bool:
    """A build was killed before its first manifest: only arrays' metadata or temporary files."""
    return all(child.name in _NAMES or child.name.endswith(".tmp") for child in path.iterdir())


_NAMES = {"logits", "digests", "labels", "commits"}


def _create(path: Path, manifest: Manifest, labels: np.ndarray) -> Manifest:
    """Write metadata and labels, then the manifest that vouches for them; repeatable after a kill."""
    documents = metadata_documents(manifest)
    store = DurableStore(path)
    for key, document in documents.items():
        if not _holds(path / key, document):
            write_durably(path / key, document)
    open_array(store, "labels", writable=True)[:] = labels
    documents["labels/c/0"] = (path / "labels/c/0").read_bytes()
    checksums = {key: checksum(document) for key, document in documents.items()}
    manifest = replace(manifest, checksums=checksums)
    write_manifest(path, manifest)
    return manifest


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


class ShardWriter:
    """Writes and commits shards of the cache at `path`; any number of processes may, each its own."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._store = DurableStore(path)
        self._arrays = {
            name: open_array(self._store, name, writable=True)
            for name in (*SHARD_ARRAYS, "commits")
        }

    def write(
        self, view: int, shard: int, values: Mapping[str, np.ndarray], seconds: float
    ) -> None:
        """Write one shard whole, then its commit record.

        Args:
            view: view number.
            shard: shard number.
            values: for each of `SHARD_ARRAYS` its rows, [samples of the shard, ...].
            seconds: that it took to build.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
        """
        start, stop = self.manifest.shard_range(shard)
        for name in SHARD_ARRAYS:
            self._arrays[name][view, start:stop] = values[name]
        keys = shard_objects(self.manifest, view, shard)
        fields = [self._store.written.pop(key) for key in keys] + [round(seconds * 1000)]
        record = np.array(fields, dtype=np.uint64) + COMMITTED
        self._arrays["commits"][view, shard] = record

    def committed(self) -> np.ndarray:
        """bool [views, shards]: which shards are finished."""
        return np.asarray((self._arrays["commits"][:] >= COMMITTED).all(axis=-1))

    def seconds(self) -> float:
        """What the finished shards took to build, over all processes and resumes."""
        milliseconds = np.asarray(self._arrays["commits"][..., -1])
        return float((milliseconds[milliseconds >= COMMITTED] - COMMITTED).sum()) / 1000


def finish(path: Path, manifest: Manifest, build: Mapping[str, Any]) -> Manifest:
    """Declare the cache complete: the last write of a build, by one process.

    Raises:
        CacheIncompleteError: shards are missing.
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
    for leftover in path.rglob(".*.tmp"):  # of builders that were killed
        leftover.unlink(missing_ok=True)
    return finished
