"""Writes a cache shard by shard. A shard is there when its commit record is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.cache.claims import MANIFEST, Claims, is_claims_folder
from kdscale.cache.layout import (
    COMMITTED,
    absent_rows,
    arrays,
    checksum,
    fixed_objects,
    open_array,
    read_record,
    read_records,
    shard_arrays,
    shard_objects,
)
from kdscale.cache.manifest import (
    Manifest,
    check_identity,
    group_document,
    read_manifest,
    write_manifest,
)
from kdscale.cache.store import DurableStore
from kdscale.durable import files_below, is_abandoned, write_durably
from kdscale.errors import CacheIncompleteError, CacheNotFoundError, StorageError

_STALE_SECONDS = 3600  # no write takes as long: a temporary file this old is nobody's


Check = Callable[[], None]


def create_or_resume(
    path: Path, asked: Manifest, labels: np.ndarray, claims: Claims | None = None
) -> Manifest:
    """Make `path` a cache that `asked` can be written to.

    A new folder gets its metadata; an unfinished or smaller one of the same identity is taken up.
    Builders that call this at once do it one after the other, and find each other's.

    Args:
        path: the cache's folder, `NAME.zarr`.
        asked: the manifest of the cache to be.
        labels: int64 [N], -1 where unlabelled.
        claims: of this builder; its own for the moment when None.

    Raises:
        CacheMismatchError: another cache is there.
        CacheCorruptError: the manifest of the one there is damaged.
        StorageError: the disk is full, read-only or not permitted.
    """
    found = _fitting(path, asked)  # first, so that nothing is written into another's folder
    if found is not None and found.complete and found.num_views >= asked.num_views:
        return found
    with changing_manifest(path, claims) as held:
        found = _fitting(path, asked)
        if found is None:
            return lay_out(path, replace(asked, complete=False), labels, held)
        if found.complete and found.num_views >= asked.num_views:
            return found
        return lay_out(path, _taken_up(found, asked), labels, held)


@contextmanager
def changing_manifest(path: Path, claims: Claims | None = None) -> Iterator[Claims]:
    """Be the only builder that changes the manifest; gives the claims that hold it."""
    with Claims(path) if claims is None else nullcontext(claims) as ours, ours.exclusive(MANIFEST):
        yield ours


def _fitting(path: Path, asked: Manifest) -> Manifest | None:
    """The manifest of the cache there, which fits but for its views; None in a free folder."""
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        if is_free(path):
            return None
        if (path / "zarr.json").exists():  # another builder began just now
            return _fitting(path, asked)
        raise StorageError(
            f"{path} exists and is not a cache (it has no zarr.json): name another --cache, "
            "or remove it"
        ) from None
    check_identity(path, replace(found, num_views=max(found.num_views, asked.num_views)), asked)
    return found


def _taken_up(found: Manifest, asked: Manifest) -> Manifest:
    larger = max(found, asked, key=lambda manifest: manifest.num_views)
    return replace(
        found,
        views=larger.views,
        teacher={**asked.teacher, **found.teacher},
        num_views=larger.num_views,
        fidelity=asked.fidelity,
        versions=asked.versions,
        complete=False,
    )


def is_free(path: Path) -> bool:
    """Whether nothing is there, or what a build leaves that was killed before its manifest."""
    if not path.exists():
        return True
    return path.is_dir() and all(
        child.match(".zarr.json.*.tmp") or is_claims_folder(child) for child in path.iterdir()
    )


def lay_out(path: Path, manifest: Manifest, labels: np.ndarray, held: Claims) -> Manifest:
    """Write an unfinished manifest, then what it vouches for; repeatable after a kill.

    In this order nobody finds metadata of more views under a manifest that says complete.
    """
    check = partial(held.check, MANIFEST)
    objects = fixed_objects(manifest, labels)
    checksums = {key: checksum(data) for key, data in objects.items()}
    manifest = replace(manifest, checksums=checksums)
    if not _holds(path / "zarr.json", group_document(manifest)):
        write_manifest(path, manifest, check)
    for key, data in objects.items():
        if not _holds(path / key, data):
            write_durably(path / key, data, check)
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
        self,
        view: int,
        shard: int,
        values: Mapping[str, np.ndarray],
        seconds: float,
        check: Check | None = None,
    ) -> None:
        """Write one shard whole, then its commit record.

        Args:
            view: view number.
            shard: shard number.
            values: for each of `shard_arrays` its rows, [samples of the shard, ...]; digests plus
                one.
            seconds: that it took to build.
            check: called before each object is put in its place; raises where the shard is another
                builder's by now, whose objects would no longer fit their record.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
            ValueError: the rows are not those of the shard, or hold what stands for absence.
        """
        start, stop = self.manifest.shard_range(shard)
        self._check(values, stop - start)
        self._store.check = check
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

    def is_committed(self, view: int, shard: int) -> bool:
        """Whether one shard is finished."""
        return bool((read_record(self._arrays["commits"], view, shard) >= COMMITTED).all())

    def seconds(self) -> float:
        """What the finished shards took to build, over all processes and resumes."""
        milliseconds = self._records()[..., -1]
        return float((milliseconds[milliseconds >= COMMITTED] - COMMITTED).sum()) / 1000

    def _records(self) -> np.ndarray:
        views = range(self.manifest.num_views)
        return np.stack([read_records(self._arrays["commits"], view) for view in views])


def finish(
    path: Path, manifest: Manifest, build: Mapping[str, Any], claims: Claims | None = None
) -> Manifest:
    """Declare the cache complete: the last write of a build, by whichever builder comes first.

    Args:
        path: the cache's folder.
        manifest: what the caller has built.
        build: what the manifest shall say of the build, beside its seconds.
        claims: as of `create_or_resume`.

    Returns:
        The manifest of the complete cache.

    Raises:
        CacheIncompleteError: shards are missing.
        StorageError: the disk is full, read-only or not permitted.
    """
    with changing_manifest(path, claims) as held:
        found = read_manifest(path)  # another builder may have finished, or added views
        if found.complete and found.num_views >= manifest.num_views:
            return found
        writer = ShardWriter(path, found)
        missing = int((~writer.committed()).sum())
        if missing:
            raise CacheIncompleteError(
                f"{path} still misses {missing} of {found.num_views * found.num_shards} shards: "
                "run the same build again"
            )
        finished = found.finished({**build, "seconds": round(writer.seconds(), 3)})
        write_manifest(path, finished, partial(held.check, MANIFEST))
        _remove_leftovers(path)
        held.clear()
        return finished


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of builders that were killed, never those of one that still writes."""
    now = (path / "zarr.json").stat().st_mtime  # just written: the clock of the files' own disk
    for leftover in files_below(path):
        if not leftover.match(".*.tmp"):
            continue
        with suppress(OSError):
            old = now - leftover.stat().st_mtime > _STALE_SECONDS
            if old or is_abandoned(leftover):
                leftover.unlink()
