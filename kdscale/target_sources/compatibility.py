"""Check that a cache matches the required manifest; name the images in which data sets differ."""

from dataclasses import replace
from functools import partial

import numpy as np

from kdscale.cache.checked_objects import read_once
from kdscale.cache.dataset_diff import Rows, changes
from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest
from kdscale.cache.manifest_diff import check_identity
from kdscale.cache.stores.store import Location, open_store
from kdscale.data.image_dataset import ImageDataset
from kdscale.errors import CacheError


def check_compatible(
    path: Location, cache: Manifest, required: Manifest, images: ImageDataset
) -> None:
    """Check that a cache matches the required manifest.

    Args:
        path: the cache's place.
        cache: its manifest.
        required: the required manifest.
        images: the data set at hand, to say in which images the cache's differs.

    Raises:
        CacheMismatchError: names every differing field with both values.
    """
    store = open_store(path)
    explain = partial(differing_images, store, cache, images)
    check_identity(store.location, cache, required, explain)


def differing_images(cache: Location, manifest: Manifest, images: ImageDataset) -> list[str]:
    """In which images the data set at hand differs from the one that a cache was built from.

    Nothing where the cache is of an earlier version, or cannot be read.
    """
    if manifest.dataset.get("keys") != images.key_kind:
        return []
    store, layout = open_store(cache), Layout(manifest)
    try:
        keys, labels = (read_once(store, layout, name) for name in ("keys", "labels"))
    except CacheError:
        return []
    before = Rows(keys, labels, manifest.dataset["classes"])
    return changes(before, Rows(images.image_keys(), images.labels, images.classes))


def with_keys(required: Manifest, images: ImageDataset) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Return a manifest with the kind of the images' keys, and the keys to store."""
    dataset = {**required.dataset, "keys": images.key_kind}
    return replace(required, dataset=dataset), {"keys": images.image_keys()}
