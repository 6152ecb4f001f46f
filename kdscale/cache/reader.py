"""Reads a finished cache: one view at a time, whole chunks, checksums verified."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import Lock

import numpy as np

from kdscale.cache.checked_objects import corrupt, fixed_objects_of, read_once
from kdscale.cache.layout import (
    DAMAGE,
    Layout,
    decode,
    record_object,
    shard_name,
)
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.records import CommitRecords, ShardContent, read_shard_objects
from kdscale.cache.stores.store import Location, Store, is_remote, open_store
from kdscale.cache.wait import Patience
from kdscale.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    OutOfRangeError,
)
from kdscale.formatting import number_of


class CacheReader:
    """A finished cache opened for reading; with `patience`, one that is still being built, too.

    Shards that are not there yet are then waited for, as is the cache itself.

    Raises:
        CacheNotFoundError: nothing there.
        CacheIncompleteError: the build has not finished, or views are being added; with `patience`,
            nobody builds.
        CacheCorruptError: manifest, metadata or labels are not what was written.
    """

    def __init__(
        self, cache: Location, patience: Patience | None = None, num_views: int = 1
    ) -> None:
        """Open it; with `patience`, once it has metadata for `num_views`."""
        self.store = open_store(cache)
        if patience is None:
            self.manifest, self._fixed = _finished(self.store)
        else:
            self.manifest, self._fixed = _begun(self.store, patience, num_views)
        self._layout = Layout(self.manifest)
        self._records = CommitRecords(self.store, self._layout)
        # What a finished cache misses is lost, and not still to come.
        self._patience = None if self.manifest.complete else patience
        self._there: set[tuple[int, int]] = set()  # shards known to be committed
        self._lock = Lock()
        self.bytes_read = 0
        """Of the objects of shards, as stored."""

    @property
    def location(self) -> str:
        """Where the cache lies."""
        return self.store.location

    def read_view(self, view: int, features: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Return all samples of one view, as `read_shard` does those of one shard."""
        return self._read(view, range(self.manifest.num_shards), features)

    def read_shard(
        self, view: int, shard: int, features: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Return the samples of one shard: arrays as stored, and `digests` uint32 [samples].

        Args:
            view: view number.
            shard: shard number.
            features: modules of the teacher, named in the manifest, whose arrays are read as well.

        Raises:
            OutOfRangeError: the cache has no such view or shard.
            CacheMismatchError: it has no such features.
            CacheCorruptError: an object of it is missing, damaged or not this cache's.
        """
        return self._read(view, range(shard, shard + 1), features)

    def _read(self, view: int, shards: range, features: Sequence[str]) -> dict[str, np.ndarray]:
        self._check_range(view, shards)
        self.check_features(features)
        names = self._layout.read_arrays(features)

        def read(shard: int) -> ShardContent:
            self.wait(view, shard)
            record = self._records.read(view, shard)
            content = read_shard_objects(self.store, self._layout, view, shard, record, names)
            with self._lock:
                self.bytes_read += sum(map(len, content.objects.values()))
            return content

        size = self.manifest.shard_samples * self.manifest.bytes_per_sample
        objects, faults = dict(self._fixed), dict[str, str]()
        for shard, content in zip(shards, self.store.each(read, shards, size), strict=True):
            objects |= content.objects
            if content.state != "ok":
                faults[shard_name(view, shard)] = content.reason
        if faults:
            raise corrupt(self.location, faults)
        first, last = (self.manifest.shard_range(one) for one in (shards[0], shards[-1]))
        rows = slice(first[0], last[1])
        try:
            values = {name: np.asarray(decode(name, objects)[view, rows]) for name in names}
        except DAMAGE as error:
            raise CacheCorruptError(
                f"{self.location}: view {view} cannot be decoded: {error}"
            ) from error
        values["digests"] = (values["digests"] - np.uint64(1)).astype(np.uint32)
        return values

    def is_there(self, view: int, shard: int) -> bool:
        """Return whether a shard has a commit record, valid or not; the result is remembered."""
        if (view, shard) not in self._there:
            if self._records.read(view, shard).state == "missing":
                return False
            self._there.add((view, shard))
        return True

    def wait(self, view: int, shard: int) -> None:
        """Wait for a shard that is still to be built, where that is wanted.

        Raises:
            CacheIncompleteError: nobody builds it; or the reader was closed.
        """
        if self._patience is not None:
            ready = partial(self.is_there, view, shard)
            self._patience.wait(self.store, ready, f"view {view}")

    def build_seconds(self) -> float:
        """What the cache took to build; of one that is still being built, what is finished."""
        manifest = self.manifest
        if not manifest.complete:
            with suppress(CacheError):
                manifest = read_manifest(self.store)
        if manifest.complete:
            return manifest.build_seconds
        found = self._records.read_present().values()
        return sum(record.milliseconds for record in found) / 1000

    def check_records(self, num_views: int) -> None:
        """Check that the commit records of the first views are this cache's.

        So a cache that holds shards of another one is refused before it is used for hours. A
        remote cache, where each record is a request, and one that is still being built are checked
        shard by shard as they are read.

        Raises:
            CacheCorruptError: naming the shards whose records are missing, damaged or not this
                cache's.
        """
        if self.manifest.complete and not is_remote(self.store):
            faults = record_faults(self._records, self.manifest, num_views)
            if faults:
                raise corrupt(self.location, faults)

    def close(self) -> None:
        """Call off whatever waits for shards, in any thread."""
        if self._patience is not None:
            self._patience.stop()

    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled.

        Raises:
            CacheCorruptError: they are missing or damaged.
        """
        return read_once(self.store, self._layout, "labels")

    def head(self) -> dict[str, np.ndarray]:
        """Return the stored arrays of the teacher's head by name; empty without a stored head.

        Raises:
            CacheCorruptError: it is missing or damaged.
        """
        names = [name for name in self._layout.static_objects if name.startswith("head_")]
        return {name: read_once(self.store, self._layout, name) for name in names}

    def _check_range(self, view: int, shards: range) -> None:
        last_view, last_shard = self.manifest.num_views - 1, self.manifest.num_shards - 1
        if not 0 <= view <= last_view:
            raise OutOfRangeError(f"view {view}: {self.location} has views 0..{last_view}")
        if shards[0] < 0 or shards[-1] > last_shard:
            raise OutOfRangeError(
                f"shard {shards[0]}: a view of {self.location} has shards 0..{last_shard}"
            )

    def check_features(self, features: Sequence[str]) -> None:
        """Check that the cache stores the features of modules.

        Raises:
            CacheMismatchError: naming those that it lacks.
        """
        stored = [one["module"] for one in self.manifest.features]
        lacking = [name for name in features if name not in stored]
        if lacking:
            raise CacheMismatchError(
                f"{self.location} stores the features of {', '.join(stored) or 'no module'}, not "
                f"those of {', '.join(lacking)}: build a cache with them in cache.features"
            )


def _finished(store: Store) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest of a finished cache and its metadata."""
    manifest = read_manifest(store)
    metadata = _sound_metadata(store, manifest) if manifest.complete else None
    if metadata is None:
        raise CacheIncompleteError(
            f"{store.location} is not complete: wait for its build, run the same `kdscale cache "
            "build` again to finish it, or train beside it with --wait"
        )
    return manifest, metadata


def _begun(store: Store, patience: Patience, num_views: int) -> tuple[Manifest, dict[str, bytes]]:
    """Return the same of a cache that may be being built, once its metadata are in place."""
    opened: list[tuple[Manifest, dict[str, bytes]]] = []

    def ready() -> bool:
        with suppress(CacheNotFoundError):
            manifest = read_manifest(store)
            metadata = _sound_metadata(store, manifest)
            if metadata is not None and manifest.num_views >= num_views:
                opened.append((manifest, metadata))
        return bool(opened)

    patience.wait(store, ready, f"a cache of {number_of(num_views, 'view')}")
    return opened[0]


def _sound_metadata(store: Store, manifest: Manifest) -> dict[str, bytes] | None:
    """Return the objects that describe the arrays; None while a builder is writing them.

    Raises:
        CacheCorruptError: they, or labels, are not what the manifest of a finished cache states.
    """
    objects, damaged = fixed_objects_of(store, Layout(manifest))
    if damaged and manifest.complete and read_manifest(store) == manifest:
        raise corrupt(store.location, {key: fault.reason for key, fault in damaged.items()})
    metadata = {key: data for key, data in objects.items() if key.endswith("zarr.json")}
    return None if damaged else metadata


def check_present(cache: Location, manifest: Manifest) -> None:
    """Stop where objects of a finished cache are missing, or its records are another cache's.

    What shards hold is not read; of a remote cache no records either.

    Raises:
        CacheCorruptError: naming them.
    """
    store, layout = open_store(cache), Layout(manifest)
    faults = {key: fault.reason for key, fault in fixed_objects_of(store, layout)[1].items()}
    there = {key for key, _ in store.keys("")}
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            keys = (record_object(view, shard), *layout.shard_objects(view, shard))
            if not there.issuperset(keys):
                faults[shard_name(view, shard)] = ""
    if not faults and not is_remote(store):
        faults = record_faults(CommitRecords(store, layout), manifest, manifest.num_views)
    if faults and read_manifest(store) == manifest:  # else a build that adds views began just now
        raise corrupt(store.location, faults)


def record_faults(records: CommitRecords, manifest: Manifest, num_views: int) -> dict[str, str]:
    """Shards of the first views whose commit record is missing or refused, and why."""
    return {
        shard_name(view, shard): record.reason
        for view in range(num_views)
        for shard, record in enumerate(records.read_each(view, range(manifest.num_shards)))
        if record.state != "ok"
    }
