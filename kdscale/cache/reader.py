"""Reads a finished cache: one view at a time, whole chunks, checksums verified."""

from pathlib import Path

import numpy as np

from kdscale.cache.layout import SHARD_ARRAYS, checksum, open_array, shard_name
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.errors import CacheCorruptError, CacheIncompleteError


class CacheReader:
    """A finished cache opened for reading.

    Raises:
        CacheNotFoundError: nothing there.
        CacheIncompleteError: the build has not finished.
        CacheCorruptError: manifest or metadata are not what was written.
    """

    def __init__(self, path: Path) -> None:
        from zarr.storage import LocalStore

        self.path = path
        self.manifest: Manifest = read_manifest(path)
        if not self.manifest.complete:
            raise CacheIncompleteError(
                f"{path} is not complete: run the same `kdscale cache build` again to finish it"
            )
        check_metadata(path, self.manifest)
        store = LocalStore(path, read_only=True)
        self._arrays = {name: open_array(store, name) for name in (*SHARD_ARRAYS, "labels")}

    def read_view(self, view: int) -> dict[str, np.ndarray]:
        """All samples of one view: `logits` [N, C] as stored and `digests` uint32 [N].

        Raises:
            CacheCorruptError: a chunk is missing or damaged; its shard is named.
        """
        try:
            return self._read(view, 0, self.manifest.num_samples)
        except _DAMAGE:
            raise self._name_damaged(view) from None

    def read_shard(self, view: int, shard: int) -> dict[str, np.ndarray]:
        """The samples of one shard, like `read_view`.

        Raises:
            CacheCorruptError: a chunk is missing or damaged.
        """
        try:
            return self._read(view, *self.manifest.shard_range(shard))
        except _DAMAGE:
            raise self._name_damaged(view) from None

    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled."""
        return np.asarray(self._arrays["labels"][:])

    def _read(self, view: int, start: int, stop: int) -> dict[str, np.ndarray]:
        values = {name: np.asarray(self._arrays[name][view, start:stop]) for name in SHARD_ARRAYS}
        if np.isnan(values["logits"]).any() or not values["digests"].all():
            raise ValueError("an absent chunk was read as the fill value")
        values["digests"] = (values["digests"] - np.uint64(1)).astype(np.uint32)
        return values

    def _name_damaged(self, view: int) -> CacheCorruptError:
        damaged = []
        for shard in range(self.manifest.num_shards):
            try:
                self._read(view, *self.manifest.shard_range(shard))
            except _DAMAGE:
                damaged.append(shard_name(view, shard))
        return CacheCorruptError(
            f"{self.path}: {', '.join(damaged)} missing or damaged: see `kdscale cache verify "
            f"{self.path}`, then remove the cache and build it again"
        )


_DAMAGE = (ValueError, RuntimeError, OSError, EOFError)
"""What Zarr's codecs raise on bytes that are not what was written."""


def check_metadata(path: Path, manifest: Manifest) -> None:
    """Stop unless every object that the manifest vouches for has the bytes it had.

    Raises:
        CacheCorruptError: names the object.
    """
    damaged = damaged_metadata(path, manifest)
    if damaged:
        raise CacheCorruptError(
            f"{path}: {', '.join(damaged)} missing or damaged: remove the cache and build it again"
        )


def damaged_metadata(path: Path, manifest: Manifest) -> list[str]:
    """Keys of vouched-for objects whose bytes are missing or changed."""
    return [
        key
        for key, expected in manifest.checksums.items()
        if not (path / key).is_file() or checksum((path / key).read_bytes()) != expected
    ]
