"""Writes a cache shard by shard. A shard is there when its commit record is."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kdscale.cache.catalog import content_bytes
from kdscale.cache.layout import (
    Encoder,
    Layout,
    absent_rows,
    checksum,
    fixed_objects,
    record_object,
    shard_name,
)
from kdscale.cache.lease import MANIFEST, Leases
from kdscale.cache.lease_files import is_lease
from kdscale.cache.manifest import (
    MANIFEST_KEY,
    Manifest,
    group_document,
    read_manifest,
    write_manifest,
)
from kdscale.cache.manifest_diff import check_identity
from kdscale.cache.manifest_schema import MAX_SHARDS
from kdscale.cache.records import CommitRecords
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.errors import CacheIncompleteError, CacheNotFoundError, ConfigError, StorageError
from kdscale.formatting import number_of

Check = Callable[[], None]


def create_or_resume(
    cache: Location,
    required: Manifest,
    labels: np.ndarray,
    leases: Leases | None = None,
    once: Mapping[str, np.ndarray] | None = None,
) -> Manifest:
    """Make a place a cache that `required` can be written to.

    A new folder gets its metadata; an unfinished or smaller one of the same identity is taken up.
    Builders that call this at once do it one after the other, and find each other's.

    Args:
        cache: where it lies, or shall lie.
        required: the manifest of the cache to be.
        labels: int64 [N], -1 where unlabelled.
        leases: of this builder; None = some of its own, for the call.
        once: see `fixed_objects`.

    Raises:
        CacheMismatchError: another cache is there.
        CacheCorruptError: the manifest of the one there is damaged.
        ConfigError: it would have more shards than a cache can have.
        StorageError: the disk is full, read-only or not permitted.
    """
    num_shards = required.num_views * required.num_shards
    if num_shards > MAX_SHARDS:
        raise ConfigError(
            f"{required.num_views} views have {num_shards} shards of "
            f"{required.shard_samples} samples, "
            f"wanted at most {MAX_SHARDS}: set a larger cache.shard_samples, or fewer views"
        )
    store = open_store(cache)
    found = _fitting(store, required)  # first, so that nothing is written into another's folder
    if found is not None and found.complete and found.num_views >= required.num_views:
        return found
    with changing_manifest(store, leases) as held:
        found = _fitting(store, required)
        if found is None:
            return write_metadata(store, replace(required, complete=False), labels, held, once)
        if found.complete and found.num_views >= required.num_views:
            return found
        return write_metadata(store, _taken_up(found, required), labels, held, once)


@contextmanager
def changing_manifest(cache: Location, leases: Leases | None = None) -> Iterator[Leases]:
    """Be the only builder that changes the manifest; yields the leases that ensure it."""
    with Leases(cache) if leases is None else nullcontext(leases) as ours, ours.exclusive(MANIFEST):
        yield ours


def _fitting(store: Store, required: Manifest) -> Manifest | None:
    """The manifest of the cache there, which fits but for its views; None in a free place."""
    try:
        found = read_manifest(store)
    except CacheNotFoundError:
        if is_free(store):
            return None
        if store.size(MANIFEST_KEY) is not None:  # another builder began just now
            return _fitting(store, required)
        raise StorageError(
            f"{store.location} exists and is not a cache (it has no zarr.json): "
            "name another --cache, or remove it"
        ) from None
    wanted = replace(found, num_views=max(found.num_views, required.num_views))
    check_identity(store.location, wanted, required)
    return found


def _taken_up(found: Manifest, required: Manifest) -> Manifest:
    larger = max(found, required, key=lambda manifest: manifest.num_views)
    return replace(
        found,
        views=larger.views,
        teacher={**required.teacher, **found.teacher},
        num_views=larger.num_views,
        fidelity=required.fidelity,
        versions=required.versions,
        complete=False,
    )


def is_free(cache: Location) -> bool:
    """Whether nothing is there, or what a build leaves that was killed before its manifest."""
    try:
        keys = [key for key, _ in open_store(cache).keys("")]
    except NotADirectoryError:
        return False
    return all(_BEGUN.fullmatch(key) or is_lease(key) for key in keys)


_BEGUN = re.compile(r"\.zarr\.json\.[^/]*\.tmp")


def write_metadata(
    cache: Location,
    manifest: Manifest,
    labels: np.ndarray,
    held: Leases,
    once: Mapping[str, np.ndarray] | None = None,
) -> Manifest:
    """Write an unfinished manifest, then what it vouches for; repeatable after a kill.

    In this order nobody finds metadata of more views under a manifest of a complete cache.
    """
    store = open_store(cache)
    check = partial(held.check, MANIFEST)
    objects = fixed_objects(manifest, labels, once)
    checksums = {key: checksum(data) for key, data in objects.items()}
    manifest = replace(manifest, checksums=checksums)
    if not holds(store, MANIFEST_KEY, group_document(manifest)):
        write_manifest(store, manifest, check)
    for key, data in objects.items():
        if not holds(store, key, data):
            store.write(key, data, check)
    return manifest


def holds(store: Store, key: str, data: bytes) -> bool:
    """Whether an object is there with these bytes."""
    try:
        return store.read(key) == data
    except StorageError:
        raise
    except OSError:
        return False


class ShardWriter:
    """Writes and commits shards of a cache.

    Any number of processes may, each its own shards.
    """

    def __init__(self, cache: Location, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = open_store(cache)
        self.layout = Layout(manifest)
        self._encoder = Encoder(self.layout)
        self.records = CommitRecords(self._store, self.layout)
        self.refused: dict[str, str] = {}
        """Shards with a record that does not commit them, and why, as `committed` last found."""

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
            values: for each of `Layout.shard_arrays` its rows, [samples of the shard, ...];
                digests plus one.
            seconds: that it took to build.
            check: called before each object is put in its place; raises where the shard is another
                builder's by now, whose objects would no longer fit their record.

        Raises:
            StorageError: the disk is full, read-only or not permitted.
            ValueError: the rows are not those of the shard, or hold what stands for absence.
        """
        start, stop = self.manifest.shard_range(shard)
        self._check(values, stop - start)
        objects = []
        keys = self.layout.shard_objects(view, shard)
        for name, key in zip(self.layout.shard_arrays, keys, strict=True):
            data = self._encoder.encode(key, (view, slice(start, stop)), values[name])
            self._store.write(key, data, check)
            objects.append(data)
        record = self.records.values(view, shard, objects, round(seconds * 1000))
        key = record_object(view, shard)
        self._store.write(key, self._encoder.encode(key, (view, shard), record), check)

    def _check(self, values: Mapping[str, np.ndarray], rows: int) -> None:
        """Zarr would cast and broadcast without a word."""
        for name in self.layout.shard_arrays:
            layout = self.layout.arrays[name]
            wanted = (np.dtype(layout.dtype), (rows, *layout.shape[2:]))
            got = (values[name].dtype, values[name].shape)
            if got != wanted:
                raise ValueError(f"{name} are {got[0]} {got[1]}, wanted {wanted[0]} {wanted[1]}")
            if np.isnan(values[name]).any() or absent_rows(values[name], layout).any():
                raise ValueError(f"{name} hold a NaN or what stands for absence")

    def committed(self) -> np.ndarray:
        """bool [views, shards]: which shards are finished.

        One whose record is damaged, or another cache's, is not, and is written anew.
        """
        found = self.records.read_present()
        self.refused = {
            shard_name(*one): record.reason
            for one, record in found.items()
            if record.state == "corrupt"
        }
        committed = np.zeros((self.manifest.num_views, self.manifest.num_shards), dtype=bool)
        for one, record in found.items():
            committed[one] = record.state == "ok"
        return committed


def finish(
    cache: Location, manifest: Manifest, build: Mapping[str, Any], leases: Leases | None = None
) -> Manifest:
    """Declare the cache complete: the last write of a build, by whichever builder comes first.

    Args:
        cache: where it lies.
        manifest: what the caller has built.
        build: the manifest's `build`, without its seconds and bytes.
        leases: as of `create_or_resume`.

    Returns:
        The manifest of the complete cache.

    Raises:
        CacheIncompleteError: shards are missing.
        StorageError: the disk is full, read-only or not permitted.
    """
    store = open_store(cache)
    with changing_manifest(store, leases) as held:
        found = read_manifest(store)  # another builder may have finished, or added views
        if found.complete and found.num_views >= manifest.num_views:
            return found
        present = CommitRecords(store, Layout(found)).read_present()
        records = [one for one in present.values() if one.state == "ok"]
        missing = found.num_views * found.num_shards - len(records)
        if missing:
            raise CacheIncompleteError(
                f"{store.location} still misses {missing} of "
                f"{number_of(found.num_views * found.num_shards, 'shard')}: run the same build "
                "again"
            )
        seconds = round(sum(record.milliseconds for record in records) / 1000, 3)
        size = content_bytes(store)
        finished = found.finished({**build, "seconds": seconds, "bytes": size})
        write_manifest(store, finished, partial(held.check, MANIFEST))
        store.tidy(MANIFEST_KEY)
        held.clear()
        return finished
