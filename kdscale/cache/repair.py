"""Takes out of a cache what is bad, so that a build replaces just that."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from kdscale.cache.layout import (
    RECORDS_METADATA,
    Layout,
    checksum,
    claim_name,
    fixed_objects,
    record_object,
)
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.manifest_schema import MAX_SHARDS
from kdscale.cache.records import CommitRecords, read_shard_objects
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.cache.verify import VerifyReport, check_shards
from kdscale.cache.writer import changing_manifest, holds, write_metadata
from kdscale.documents import DAMAGE, canonical
from kdscale.errors import CacheCorruptError, StorageError


def discard_bad_shards(
    cache: Location,
    labels: np.ndarray,
    restored: Manifest | None = None,
    once: Mapping[str, np.ndarray] | None = None,
) -> VerifyReport:
    """Make a damaged cache an unfinished one that misses what was bad, ready for its build.

    Bad shards lose their commit records before anything else, so that a kill at any moment leaves a
    cache in which more is missing, and never one that passes for sound.

    Args:
        cache: where it lies.
        labels: int64 [N], those of the manifest's data set.
        restored: in place of a manifest that is damaged.
        once: see `fixed_objects`.

    Returns:
        What was wrong.

    Raises:
        CacheCorruptError: the manifest is damaged.
        StorageError: the disk is full, read-only or not permitted.
    """
    store = open_store(cache)
    with changing_manifest(store) as leases:
        manifest = read_manifest(store) if restored is None else restored
        found = check_shards(store, manifest)
        if found.ok and restored is None:
            return found
        objects = fixed_objects(manifest, labels, once)
        if RECORDS_METADATA in (*found.missing_shards, *found.corrupt_shards):
            _make_way(store, RECORDS_METADATA)
            store.write(RECORDS_METADATA, objects[RECORDS_METADATA])
            found = _together(found, check_shards(store, manifest))  # its shards can be judged now
        _remove_records(store, manifest, found.bad_shards, leases)
        for key in objects:
            _make_way(store, key)
        write_metadata(store, replace(manifest, complete=False), labels, leases, once)
    if restored is None:
        return found
    return replace(found, corrupt_shards=(MANIFEST_KEY, *found.corrupt_shards))


def _together(one: VerifyReport, other: VerifyReport) -> VerifyReport:
    missing = dict.fromkeys((*one.missing_shards, *other.missing_shards))
    corrupt = dict.fromkeys((*one.corrupt_shards, *other.corrupt_shards))
    return replace(
        other,
        missing_shards=tuple(missing),
        corrupt_shards=tuple(corrupt),
        reasons={**one.reasons, **other.reasons},
    )


def _remove_records(
    store: Store, manifest: Manifest, shards: Iterable[tuple[int, int]], claims: Leases
) -> None:
    """Remove the records of bad shards, each under its claim: a builder may be at work.

    A shard that a builder has committed since it was judged is judged again, and stays.
    """
    layout = Layout(manifest)
    records = CommitRecords(store, layout)
    for view, shard in shards:
        record = record_object(view, shard)
        for key in (record, *layout.shard_objects(view, shard)):
            _make_way(store, key)
        if store.size(record) is None:
            continue
        with claims.exclusive(claim_name(view, shard)):
            stored = records.read(view, shard)
            if read_shard_objects(store, layout, view, shard, stored).state != "ok":
                store.remove(record)


def _make_way(store: Store, key: str) -> None:
    """Put aside what lies in the place of an object and is none: a folder."""
    if store.size(key) is None:
        store.remove(key, durable=False)


def restored_manifest(
    cache: Location,
    required: Manifest,
    labels: np.ndarray,
    once: Mapping[str, np.ndarray] | None = None,
) -> Manifest:
    """The manifest of a cache whose own is damaged, with all that it vouched for.

    Args:
        cache: where it lies.
        required: what the recipe requires; number of views and size of shards are the cache's.
        labels: int64 [N], those of the data set.
        once: see `fixed_objects`; the images' keys are left out where the cache has none.

    Raises:
        CacheCorruptError: what is left does not show that the cache is the recipe's.
    """
    store = open_store(cache)
    path, remains = store.location, store.read(MANIFEST_KEY)
    if not _names(remains, required):
        raise CacheCorruptError(
            f"the manifest of {path} is damaged, and what is left of it does not name what the "
            "recipe asks for: repair it with the recipe it was built with, or remove the folder"
        )
    if not store.size("keys/zarr.json"):  # a cache of an earlier version
        dataset = {name: value for name, value in required.dataset.items() if name != "keys"}
        required = replace(required, dataset=dataset)
    first = f"{Layout(required).shard_arrays[0]}/zarr.json"
    for views, shard_samples, chunk_samples, bound in _shapes(store, first, required.num_samples):
        manifest = replace(
            required.with_num_views(views),
            shard_samples=shard_samples,
            chunk_samples=chunk_samples,
            bound_records=bound,
            complete=True,
        )
        objects = fixed_objects(manifest, labels, once)
        if all(holds(store, key, objects[key]) for key in (first, RECORDS_METADATA)):
            checksums = {key: checksum(data) for key, data in objects.items()}
            return replace(manifest, checksums=checksums)
    raise CacheCorruptError(
        f"manifest and metadata of {path} are both damaged, or its cache.features are not the "
        "recipe's, so its shards cannot be distinguished: repair it with the recipe it was built "
        "with, or remove the folder and rebuild it with `kdscale cache build`"
    )


def _names(remains: bytes, required: Manifest) -> bool:
    """Return whether a damaged manifest still has the required identity or all fields of it."""
    text = remains.decode(errors="replace")
    if f'"id": "{required.id}"' in text:
        return True
    identity = json.loads(canonical(required.identity))
    try:
        stated = json.loads(text, strict=False)["attributes"]["kdscale"]
        sections = ("dataset", "teacher", "views")
        same = {one: {name: stated[one][name] for name in identity[one]} for one in sections}
        stored = {name: stated[name] for name in identity if name not in sections}
        return bool({**same, **stored} == identity)
    except DAMAGE:
        return False


def _shapes(
    store: Store, metadata: str, num_samples: int
) -> Iterator[tuple[int, int, int | None, bool]]:
    """What the metadata of an array state of a cache, or leave open.

    Number of views, samples of a shard and of a chunk, and whether records are bound to the cache.
    """
    try:
        stored = json.loads(store.read(metadata))
        shape, chunks = stored["shape"], stored["chunk_grid"]["configuration"]["chunk_shape"]
        codec = stored["codecs"][0]
        sizes = [shape[0], chunks[1]]
        if codec["name"] == "sharding_indexed":
            sizes.append(codec["configuration"]["chunk_shape"][1])
    except StorageError:
        raise
    except DAMAGE:
        return
    if not all(type(size) is int and size >= 1 for size in sizes):
        return
    views, shard_samples, *chunk = sizes
    if views * -(-num_samples // shard_samples) <= MAX_SHARDS:
        for bound in (True, False):
            yield views, shard_samples, chunk[0] if chunk else None, bound
