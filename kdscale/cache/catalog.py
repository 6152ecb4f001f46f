"""Caches below a root, and what describes one: its manifest, and the bytes that it takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.stores.store import Location, open_store
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


def describe(cache: Location, manifest: Manifest) -> dict[str, Any]:
    """The JSON object of `kdscale cache info`: the manifest and the bytes stored.

    A finished cache records them: listing 80,000 files takes a second.
    """
    table = manifest.to_json()
    table.pop("checksums")
    if manifest.complete and "bytes" in manifest.build:
        document = open_store(cache).size(MANIFEST_KEY) or 0
        return {**table, "bytes": manifest.build["bytes"] + document}
    return {**table, "bytes": bytes_stored(cache)}


def content_bytes(cache: Location) -> int:
    """Bytes of what belongs to a cache, but for its manifest: `build.bytes`."""
    return sum(size for key, size in open_store(cache).keys("") if _is_content(key))


def _is_content(key: str) -> bool:
    folder, _, name = key.rpartition("/")
    return bool(folder) and not folder.startswith("claims") and not name.startswith(".")


def bytes_stored(cache: Location) -> int:
    """Bytes of all that lies at a cache's place; it may be being built."""
    return sum(size for _, size in open_store(cache).keys(""))
