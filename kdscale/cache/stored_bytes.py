"""Bytes that a cache takes where it lies, and its description with them."""

from typing import Any

from kdscale.cache.manifest import MANIFEST_KEY, Manifest
from kdscale.cache.stores.store import Location, open_store


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
