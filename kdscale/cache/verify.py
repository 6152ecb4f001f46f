"""Is the cache sound? Completeness and the checksums of all its bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdscale.cache.layout import RECORDS_METADATA, parse_shard_name, read_records, shard_name
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.parallel import each
from kdscale.cache.reader import fixed_objects_of, read_shard_objects
from kdscale.cache.store import Location, open_store
from kdscale.errors import CacheCorruptError
from kdscale.wording import number_of


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

    def describe(self, path: object) -> str:
        """For people."""
        if self.ok:
            return f"{path}: ok, {number_of(self.num_shards, 'shard')}, every byte as written"
        lines = [f"{path}: NOT ok"]
        if not self.complete:
            lines.append("  not complete: run the same `kdscale cache build` again")
        lines += [f"  missing: {name}" for name in self.missing_shards]
        lines += [f"  corrupt: {name}" for name in self.corrupt_shards]
        if self.complete or self.corrupt_shards:
            lines.append(f"rebuild just that: kdscale cache repair {path} --recipe RECIPE")
        return "\n".join(lines)


def verify(cache: Location) -> Verdict:
    """Read every object of a cache and compare it with its recorded checksum.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheError: it is of a newer format, or cannot be read.
    """
    try:
        manifest = read_manifest(cache)
    except CacheCorruptError:
        return Verdict(False, 0, (), (MANIFEST_KEY,))
    verdict = judge(cache, manifest)
    if not verdict.ok and read_manifest(cache) != manifest:
        return verify(cache)  # a build took it up meanwhile
    return verdict


def judge(cache: Location, manifest: Manifest) -> Verdict:
    """Compare every object of a cache with what a manifest, its own, makes of it."""
    store = open_store(cache)
    found: dict[str, list[str]] = {"ok": [], "missing": [], "corrupt": []}
    sound, damaged = fixed_objects_of(store, manifest)
    for key, state in damaged.items():
        # The next build of an unfinished cache writes these anew, whatever is there.
        found[state if manifest.complete else "missing"].append(key)
    if RECORDS_METADATA in sound:
        shards = range(manifest.num_shards)
        for view in range(manifest.num_views):
            records = read_records(store, sound[RECORDS_METADATA], view, shards)

            def state_of(shard: int, records: np.ndarray = records, view: int = view) -> str:
                return read_shard_objects(store, manifest, view, shard, records[shard])[0]

            size = manifest.shard_samples * manifest.bytes_per_sample
            for shard, state in zip(shards, each(store, state_of, shards, size), strict=True):
                found[state].append(shard_name(view, shard))
    return Verdict(
        complete=manifest.complete,
        num_shards=manifest.num_views * manifest.num_shards,
        missing_shards=tuple(found["missing"]),
        corrupt_shards=tuple(found["corrupt"]),
    )
