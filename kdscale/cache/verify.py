"""Is the cache sound? Completeness and the checksums of all its bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from kdscale.cache.layout import open_array, parse_shard_name, read_records, shard_name
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.reader import damaged_objects, shard_state
from kdscale.errors import CacheCorruptError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found; shards by name, metadata and labels by key."""

    complete: bool
    num_shards: int
    missing_shards: tuple[str, ...]
    corrupt_shards: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Complete, nothing missing, nothing corrupt."""
        return self.complete and not self.missing_shards and not self.corrupt_shards

    @property
    def bad_shards(self) -> list[tuple[int, int]]:
        """View and shard of what is missing or corrupt, metadata and labels left out."""
        names = (*self.missing_shards, *self.corrupt_shards)
        return [found for name in names if (found := parse_shard_name(name)) is not None]

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
        if self.complete or self.corrupt_shards:
            lines.append(f"rebuild just that: kdscale cache repair {path} --recipe RECIPE")
        return "\n".join(lines)


def verify(path: Path) -> Verdict:
    """Read every object of the cache at `path` and compare it with its recorded checksum.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheError: it is of a newer format, or cannot be read.
    """
    try:
        manifest = read_manifest(path)
    except CacheCorruptError:
        return Verdict(False, 0, (), ("zarr.json",))
    verdict = judge(path, manifest)
    if not verdict.ok and read_manifest(path) != manifest:
        return verify(path)  # a build took it up meanwhile
    return verdict


def judge(path: Path, manifest: Manifest) -> Verdict:
    """Compare every object of the cache at `path` with what a manifest, its own, makes of it."""
    found: dict[str, list[str]] = {"ok": [], "missing": [], "corrupt": []}
    damaged = damaged_objects(path, manifest)
    for key in damaged:
        # The next build of an unfinished cache writes these anew, whatever is there.
        absent = not manifest.complete or not (path / key).exists()
        found["missing" if absent else "corrupt"].append(key)
    if "commits/zarr.json" not in damaged:
        commits = open_array(LocalStore(path, read_only=True), "commits")
        for view in range(manifest.num_views):
            for shard, record in enumerate(read_records(commits, view)):
                state = shard_state(path, manifest, view, shard, record)
                found[state].append(shard_name(view, shard))
    return Verdict(
        complete=manifest.complete,
        num_shards=manifest.num_views * manifest.num_shards,
        missing_shards=tuple(found["missing"]),
        corrupt_shards=tuple(found["corrupt"]),
    )
