"""Reads a finished cache: one view at a time, whole chunks, checksums verified."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import Lock

import numpy as np

from kdscale.cache.layout import (
    COMMITTED,
    DAMAGE,
    RECORDS_METADATA,
    checksum,
    decode,
    fixed_keys,
    once_objects,
    read_arrays,
    read_records,
    record_object,
    shard_name,
    shard_objects,
)
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.parallel import each
from kdscale.cache.patience import Patience
from kdscale.cache.store import Location, Sound, Store, crc, open_store
from kdscale.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheNotFoundError,
    StorageError,
)
from kdscale.wording import number_of


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
        """All samples of one view: the encoding's arrays as stored and `digests` uint32 [N].

        And of `features`, modules of the teacher that the manifest names, the arrays as stored; of
        others nothing is read.

        Raises:
            CacheCorruptError: an object is missing or damaged; its shard is named.
        """
        return self._read(view, range(self.manifest.num_shards), features)

    def read_shard(
        self, view: int, shard: int, features: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """The samples of one shard, like `read_view`.

        Raises:
            CacheCorruptError: an object of it is missing or damaged.
        """
        return self._read(view, range(shard, shard + 1), features)

    def is_there(self, view: int, shard: int) -> bool:
        """Whether a shard has a commit record, whatever that says; it need not be asked again."""
        if (view, shard) not in self._there:
            metadata = self._fixed[RECORDS_METADATA]
            if not read_records(self.store, metadata, view, range(shard, shard + 1)).any():
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
            return float(manifest.build["seconds"])
        return sum(self._seconds(view) for view in range(self.manifest.num_views))

    def _seconds(self, view: int) -> float:
        shards = range(self.manifest.num_shards)
        records = read_records(self.store, self._fixed[RECORDS_METADATA], view, shards)
        milliseconds = records[:, -1]
        return float((milliseconds[milliseconds >= COMMITTED] - COMMITTED).sum()) / 1000

    def close(self) -> None:
        """Call off whatever waits for shards, in any thread."""
        if self._patience is not None:
            self._patience.stop()

    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled.

        Raises:
            CacheCorruptError: they are missing or damaged.
        """
        return read_once(self.store, self.manifest, "labels")

    def head(self) -> dict[str, np.ndarray]:
        """What is kept of the teacher's head, by array name; nothing where nothing is.

        Raises:
            CacheCorruptError: it is missing or damaged.
        """
        names = [name for name in once_objects(self.manifest) if name.startswith("head_")]
        return {name: read_once(self.store, self.manifest, name) for name in names}

    def _read(self, view: int, shards: range, features: Sequence[str]) -> dict[str, np.ndarray]:
        for shard in shards:
            self.wait(view, shard)
        names = read_arrays(self.manifest, features)
        objects = self._checked(view, shards, names)
        first, last = shards[0], shards[-1]
        rows = slice(self.manifest.shard_range(first)[0], self.manifest.shard_range(last)[1])
        try:
            values = {name: np.asarray(decode(name, objects)[view, rows]) for name in names}
        except DAMAGE as error:
            raise CacheCorruptError(
                f"{self.location}: view {view} cannot be decoded: {error}"
            ) from error
        values["digests"] = (values["digests"] - np.uint64(1)).astype(np.uint32)
        return values

    def _checked(self, view: int, shards: range, names: Sequence[str]) -> dict[str, bytes]:
        """The objects of shards, read once and compared with their commit records; metadata too."""
        records = read_records(self.store, self._fixed[RECORDS_METADATA], view, shards)
        objects, damaged = dict(self._fixed), []

        def read(shard: int) -> tuple[str, dict[str, bytes]]:
            record = records[shard - shards[0]]
            return read_shard_objects(self.store, self.manifest, view, shard, record, names)

        size = self.manifest.shard_samples * self.manifest.bytes_per_sample
        answers = each(self.store, read, shards, size)
        for shard, (state, found) in zip(shards, answers, strict=True):
            objects.update(found)
            with self._lock:
                self.bytes_read += sum(map(len, found.values()))
            if state != "ok":
                damaged.append(shard_name(view, shard))
        if damaged:
            raise _corrupt(self.location, damaged)
        return objects


def read_once(store: Store, manifest: Manifest, name: str) -> np.ndarray:
    """What a cache keeps once, such as `labels` or `keys`; of one that is finished or not.

    Raises:
        CacheCorruptError: they are missing or damaged.
    """
    keys = (f"{name}/zarr.json", once_objects(manifest)[name])
    found = {key: _fixed_object(store, manifest, key) for key in keys}
    objects = {key: data for key, data in found.items() if isinstance(data, bytes)}
    if len(objects) < len(keys):
        raise _corrupt(store.location, [key for key in keys if key not in objects])
    return np.asarray(decode(name, objects)[...])


def _finished(store: Store) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a finished cache and its metadata, all as the manifest vouches for."""
    manifest = read_manifest(store)
    objects, damaged = fixed_objects_of(store, manifest) if manifest.complete else ({}, {})
    if damaged and read_manifest(store) == manifest:
        raise _corrupt(store.location, list(damaged))
    if damaged or not manifest.complete:  # damaged: a build that adds views began just now
        raise CacheIncompleteError(
            f"{store.location} is not complete: wait for its build, run the same `kdscale cache "
            "build` again to finish it, or train beside it with --wait"
        )
    return manifest, {key: data for key, data in objects.items() if key.endswith("zarr.json")}


def _begun(store: Store, patience: Patience, num_views: int) -> tuple[Manifest, dict[str, bytes]]:
    """As `_finished`, of a cache that may be being built: once its metadata are in place."""
    opened: list[tuple[Manifest, dict[str, bytes]]] = []

    def ready() -> bool:
        with suppress(CacheNotFoundError):
            manifest = read_manifest(store)
            objects, damaged = fixed_objects_of(store, manifest)
            if damaged and manifest.complete and read_manifest(store) == manifest:
                raise _corrupt(store.location, list(damaged))
            if not damaged and manifest.num_views >= num_views:
                opened.append((manifest, objects))
        return bool(opened)

    patience.wait(store, ready, f"a cache of {number_of(num_views, 'view')}")
    manifest, objects = opened[0]
    return manifest, {key: data for key, data in objects.items() if key.endswith("zarr.json")}


def check_present(cache: Location, manifest: Manifest) -> None:
    """Stop where objects of a finished cache are missing; what shards hold is not read.

    Raises:
        CacheCorruptError: naming them.
    """
    store = open_store(cache)
    absent = list(fixed_objects_of(store, manifest)[1])
    there = {key for key, _ in store.keys("")}
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            keys = (record_object(view, shard), *shard_objects(manifest, view, shard))
            if not there.issuperset(keys):
                absent.append(shard_name(view, shard))
    if absent and read_manifest(store) == manifest:  # else a build that adds views began just now
        raise _corrupt(store.location, absent)


def fixed_objects_of(store: Store, manifest: Manifest) -> tuple[dict[str, bytes], dict[str, str]]:
    """Metadata and labels of a cache: the bytes of those that are as the manifest has them.

    And of the others, whether they are `missing` or `corrupt`.
    """
    keys = fixed_keys(manifest)
    found = dict(zip(keys, each(store, partial(_fixed_object, store, manifest), keys), strict=True))
    sound = {key: data for key, data in found.items() if isinstance(data, bytes)}
    return sound, {key: state for key, state in found.items() if isinstance(state, str)}


def _fixed_object(store: Store, manifest: Manifest, key: str) -> bytes | str:
    """Its bytes, or what is wrong with it."""
    data, state = _read(store, key, lambda data: checksum(data) == manifest.checksums.get(key))
    return data if state == "ok" else state


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


def read_shard_objects(
    store: Store,
    manifest: Manifest,
    view: int,
    shard: int,
    record: np.ndarray,
    names: Sequence[str] | None = None,
) -> tuple[str, dict[str, bytes]]:
    """`ok`, `missing` or `corrupt`: a shard's objects against its record; and their bytes.

    All of them, or those of the arrays `names`.
    """
    objects: dict[str, bytes] = {}
    if not record.any():
        return "missing", objects
    if (record < COMMITTED).any():
        return "corrupt", objects
    # The record's last field is a time, without an object.
    for key, expected in zip(shard_objects(manifest, view, shard), record, strict=False):
        if names is not None and key.partition("/")[0] not in names:
            continue
        objects[key], state = _read(store, key, partial(_is_recorded, expected))
        if state != "ok":
            return state, objects
    return "ok", objects


def _is_recorded(expected: np.uint64, data: bytes) -> bool:
    return bool(COMMITTED + np.uint64(crc(data)) == expected)


def _corrupt(location: str, names: list[str]) -> CacheCorruptError:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return CacheCorruptError(
        f"{location}: {shown} missing or damaged: see `kdscale cache verify {location}`, "
        f"and rebuild just that with `kdscale cache repair {location} --recipe RECIPE`"
    )
