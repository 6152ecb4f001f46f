"""Is the cache sound? Completeness and the checksums of all its bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import LocalStore

from kdscale.cache.layout import COMMITTED, open_array, shard_name, shard_objects
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.reader import damaged_metadata
from kdscale.cache.store import crc
from kdscale.errors import CacheCorruptError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found; shards by name, damaged metadata by key."""

    complete: bool
    num_shards: int
    missing_shards: tuple[str, ...]
    corrupt_shards: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Complete, nothing missing, nothing corrupt."""
        return self.complete and not self.missing_shards and not self.corrupt_shards

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `kdscale cache verify --json`."""
        return {
            "ok": self.ok,
            "complete": self.complete,
            "num_shards": self.num_shards,
            "missing_shards": list(self.missing_shards),
            "corrupt_shards": list(self.corrupt_shards),
        }

    def describe(self, path: Path) -> str:
        """For people."""
        if self.ok:
            return f"{path}: ok, {self.num_shards} shards, every byte as written"
        lines = [f"{path}: NOT ok"]
        if not self.complete:
            lines.append("  not complete: run the same `kdscale cache build` again")
        lines += [f"  missing: {name}" for name in self.missing_shards]
        lines += [f"  corrupt: {name}" for name in self.corrupt_shards]
        return "\n".join(lines)


def verify(path: Path) -> Verdict:
    """Read every object of the cache at `path` and compare it with its recorded checksum.

    Raises:
        CacheNotFoundError: there is no cache.
    """
    try:
        manifest = read_manifest(path)
    except CacheCorruptError:
        return Verdict(False, 0, (), ("zarr.json",))
    damaged = damaged_metadata(path, manifest)
    if "commits/zarr.json" in damaged:
        return Verdict(manifest.complete, 0, (), tuple(damaged))
    missing = []
    total = manifest.num_views * manifest.num_shards
    commits = open_array(LocalStore(path, read_only=True), "commits")
    for view, shard in np.ndindex(manifest.num_views, manifest.num_shards):
        state = _shard_state(path, manifest, commits, view, shard)
        if state == "missing":
            missing.append(shard_name(view, shard))
        elif state == "corrupt":
            damaged.append(shard_name(view, shard))
    return Verdict(manifest.complete, total, tuple(missing), tuple(damaged))


def _shard_state(path: Path, manifest: Manifest, commits: Any, view: int, shard: int) -> str:
    try:
        record = np.asarray(commits[view, shard])
    except (ValueError, RuntimeError, OSError):
        return "corrupt"
    if (record < COMMITTED).any():
        return "missing"
    # The record's last field is a time, without an object.
    for key, expected in zip(shard_objects(manifest, view, shard), record, strict=False):
        file = path / key
        if not file.is_file():
            return "missing"
        if COMMITTED + np.uint64(crc(file.read_bytes())) != expected:
            return "corrupt"
    return "ok"
