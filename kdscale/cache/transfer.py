"""Copies a finished cache to another store, row for row, laid out as suits it there."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from kdscale.cache.catalog import content_bytes
from kdscale.cache.checked_objects import fixed_objects_of, read_once
from kdscale.cache.layout import (
    Layout,
    claim_name,
    shard_name,
    with_large_objects,
    with_plain_objects,
)
from kdscale.cache.lease import MANIFEST, Leases
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest, write_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import read_shard_objects
from kdscale.cache.stores.store import Location, Store, is_remote, open_store
from kdscale.cache.writer import ShardWriter, changing_manifest, create_or_resume
from kdscale.errors import CacheError, CacheMismatchError, CacheNotFoundError, StorageError
from kdscale.formatting import number_of

log = logging.getLogger(__name__)


def transfer(
    source: Location,
    destination: Location,
    advance: Callable[[int], object] = lambda _: None,
    *,
    large: bool | None = None,
) -> dict[str, int]:
    """Copy a finished cache, every object checked where it is read and where it was written.

    The destination is a cache only when its manifest is written, last. Stopped at any moment, the
    same call goes on: what is there and right is left as it is.

    Args:
        source: of a finished cache.
        destination: where nothing is, or a cache of the same identity that was begun or finished.
        advance: called with the number of samples of each finished shard.
        large: whether objects shall be large; as suits the destination when None.

    Returns:
        How many shards were `copied`, and how many were there (`kept`).

    Raises:
        CacheNotFoundError, CacheIncompleteError, CacheCorruptError: of the source.
        CacheMismatchError: the destination holds another cache, or more views.
        StorageError: the destination cannot be written, or keeps other bytes than were written.
    """
    reader, store = CacheReader(source), open_store(destination)
    there = _found(store)
    _check_same(reader, store, there)
    large = is_remote(store) if large is None else large
    lay_out = with_large_objects if large else with_plain_objects
    required = replace(lay_out(reader.manifest), build={})
    layout = Layout(required)
    once = {name: read_once(reader.store, layout, name) for name in layout.static_objects}
    begun = create_or_resume(store, required, once.pop("labels"), once=once)
    writer = ShardWriter(store, begun)
    with Leases(store) as claims:
        done = {"copied": 0, "kept": 0}
        for view in range(begun.num_views):
            for shard in range(begun.num_shards):
                done[_bring(reader, writer, store, view, shard, claims)] += 1
                start, stop = begun.shard_range(shard)
                advance(stop - start)
        if not begun.complete:
            _finish(reader.manifest, store, claims)
    _check_fixed(store)
    return done


def _check_same(reader: CacheReader, store: Store, there: Manifest | None) -> None:
    """Stop unless nothing is there, or (a part of) the very cache."""
    ours, place = reader.manifest, store.location
    if reader.location == place:
        raise CacheMismatchError(f"{place} is the cache itself: name another place")
    if there is not None and there.id != ours.id:
        raise CacheMismatchError(
            f"{place} holds another cache ({there.id}) than {reader.location} ({ours.id}): name "
            "another place, or remove what is there"
        )
    if there is not None and list(there.features) != list(ours.features):
        raise CacheMismatchError(
            f"{place} holds this cache with other features than {reader.location}: name another "
            "place, or remove what is there"
        )
    if there is not None and there.num_views > ours.num_views:
        raise CacheMismatchError(
            f"{place} has {number_of(there.num_views, 'view')} of this cache, {reader.location} "
            f"{ours.num_views}: copy them the other way, or name another place"
        )


def _found(store: Store) -> Manifest | None:
    try:
        return read_manifest(store)
    except CacheNotFoundError:
        return None


def _bring(
    reader: CacheReader, writer: ShardWriter, store: Store, view: int, shard: int, claims: Leases
) -> str:
    """Copy one shard of the destination, unless it is there and right."""
    if _is_sound(store, writer, view, shard):
        return "kept"
    name = claim_name(view, shard)
    with claims.exclusive(name):
        values, seconds = _rows(reader, view, *writer.manifest.shard_range(shard))
        writer.write(view, shard, values, seconds, partial(claims.check, name))
    if not _is_sound(store, writer, view, shard):
        raise StorageError(
            f"{store.location} does not keep what is written: {shard_name(view, shard)} reads back "
            "as other bytes: run the same command again, or name another place"
        )
    return "copied"


def _is_sound(store: Store, writer: ShardWriter, view: int, shard: int) -> bool:
    """Whether a shard's objects, read back, are those of its record."""
    record = writer.records.read(view, shard)
    return read_shard_objects(store, writer.layout, view, shard, record)[0] == "ok"


def _rows(
    reader: CacheReader, view: int, start: int, stop: int
) -> tuple[dict[str, np.ndarray], float]:
    """The rows `start` to `stop` of a view as they are stored, and their share of the seconds."""
    size = reader.manifest.shard_samples
    shards = range(start // size, -(-stop // size))
    features = [one["module"] for one in reader.manifest.features]
    parts = [reader.read_shard(view, shard, features) for shard in shards]
    within = slice(start - shards[0] * size, stop - shards[0] * size)
    values = {
        name: np.concatenate([part[name] for part in parts])[within]
        for name in Layout(reader.manifest).shard_arrays
    }
    values["digests"] = values["digests"].astype(np.uint64) + np.uint64(1)
    build = reader.manifest.build_seconds
    outputs = reader.manifest.num_views * reader.manifest.num_samples
    return values, build * (stop - start) / outputs


def _finish(source: Manifest, store: Store, claims: Leases) -> None:
    """The manifest last: that of the source, but for the layout and its checksums."""
    with changing_manifest(store, claims) as held:
        begun = read_manifest(store)
        finished = replace(
            source,
            shard_samples=begun.shard_samples,
            chunk_samples=begun.chunk_samples,
            build={**source.build, "bytes": content_bytes(store)},
            checksums=begun.checksums,
            bound_records=begun.bound_records,
            complete=True,
        )
        write_manifest(store, finished, partial(held.check, MANIFEST))
        store.tidy(MANIFEST_KEY)
        held.clear()


def _check_fixed(store: Store) -> None:
    damaged = fixed_objects_of(store, Layout(read_manifest(store)))[1]
    if damaged:
        raise CacheError(
            f"{store.location}: {', '.join(damaged)} read back as other bytes than were written: "
            "remove the place and run the same command again"
        )
