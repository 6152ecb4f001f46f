"""Finds caches below a root by what they hold, reading manifests alone."""

from collections.abc import Iterator
from pathlib import Path

from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.errors import CacheError, KdscaleError, UnsafePathError


def list_caches(root: Path) -> Iterator[tuple[Path, Manifest | KdscaleError]]:
    """Every cache folder `NAME.zarr` in `root`, with its manifest or why it cannot be read."""
    for path in sorted(root.glob("*.zarr")):
        try:
            yield path, read_manifest(path)
        except (CacheError, UnsafePathError) as error:
            yield path, error


def find_cache(root: Path, required: Manifest) -> Path | None:
    """Return a cache with the required identity and features.

    One that is finished with enough views first, else the largest begun.
    """
    fitting = [
        (path, manifest)
        for path, manifest in list_caches(root)
        if isinstance(manifest, Manifest)
        and manifest.id == required.id
        and not any(manifest.lacks(required))
    ]
    if not fitting:
        return None
    return max(
        fitting,
        key=lambda f: (f[1].complete and f[1].num_views >= required.num_views, f[1].num_views),
    )[0]
