"""Removes a cache, so that what is left of it, whenever that stops, is never taken for one."""

import json
from contextlib import suppress

from kdscale.cache.layout import is_owned
from kdscale.cache.lease import MANIFEST, Leases
from kdscale.cache.lease_files import FOLDER, is_lease
from kdscale.cache.manifest import MANIFEST_KEY
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.cache.wait import living_builder
from kdscale.cache.writer import is_free
from kdscale.errors import CacheError, CacheNotFoundError, UnsafePathError

_RECORDS = "commits/zarr.json"
"""Goes last: by it, what is left of a cache is known as that."""


def check_removable(cache: Location) -> None:
    """Stop unless a cache, a damaged one or what is left of one lies there, and nobody builds it.

    Raises:
        CacheNotFoundError: nothing is there.
        CacheError: something else is there, or somebody builds it.
        UnsafePathError: the place itself is a symbolic link.
    """
    store = open_store(cache)
    if isinstance(store, LocalFolder) and store.path.is_symlink():
        raise UnsafePathError(
            f"{store.location} is a symbolic link, so nothing was removed: remove the link itself, "
            f"or name the cache that it leads to, {store.path.resolve()}"
        )
    try:
        empty = next(iter(store.keys("")), None) is None
    except NotADirectoryError:
        empty = False
    if empty:
        raise CacheNotFoundError(f"nothing to remove at {store.location}: see `kdscale cache list`")
    if not (_has_manifest(store) or _is_left_over(store) or is_free(store)):
        raise CacheError(
            f"{store.location} is not a cache (its zarr.json is not kdscale's, or not there), so "
            "nothing was removed: name a cache, see `kdscale cache list`"
        )
    builder = living_builder(store)
    if builder is not None:
        raise CacheError(
            f"{store.location} is being built by {builder}, so nothing was removed: stop the build "
            "first (Ctrl-C)"
        )


def remove_cache(cache: Location) -> list[str]:
    """Remove the cache at a place, manifest first.

    Returns:
        Keys of what lies there and is none of the cache's, which stays; links are among them.

    Raises:
        CacheNotFoundError: nothing is there.
        CacheError: something else is there, or somebody builds it.
        StorageError: it may not be removed.
    """
    store = open_store(cache)
    check_removable(store)
    with Leases(store) as claims, claims.exclusive(MANIFEST):
        keys = [key for key, _ in store.keys("") if not is_lease(key)]
        ours = [key for key in keys if is_owned(key)]
        store.remove(MANIFEST_KEY)
        for key in sorted(ours, key=_turn):
            with suppress(UnsafePathError):  # a link, or a pipe: named as what is left
                store.remove(key, durable=False)
    for key, _ in list(store.keys(FOLDER)):
        if is_lease(key):
            store.remove(key, durable=False)
    store.prune("")
    return [key for key, _ in store.keys("")]


def _has_manifest(store: Store) -> bool:
    """Whether there is a manifest, sound or not."""
    try:
        return b'"kdscale"' in store.read(MANIFEST_KEY)
    except OSError:
        return False


def _is_left_over(store: Store) -> bool:
    """Whether there are commit records without a manifest."""
    try:
        found = json.loads(store.read(_RECORDS))["dimension_names"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return store.size(MANIFEST_KEY) is None and found == ["view", "shard", "field"]


def _turn(key: str) -> tuple[bool, bool]:
    """Sort chunks before the metadata of their array."""
    return key == _RECORDS, key.endswith("zarr.json")
