"""Is the cache sound? Completeness, the checksums of all its bytes, and that all are its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdscale.cache.checked_objects import Fault, fixed_objects_of
from kdscale.cache.layout import RECORDS_METADATA, Layout, is_owned, parse_shard_name, shard_name
from kdscale.cache.lease_files import is_lease
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.records import CommitRecords, Record, ShardContent, read_shard_objects
from kdscale.cache.stores.store import Location, Store, open_store
from kdscale.errors import CacheCorruptError
from kdscale.formatting import number_of


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found; shards by name, metadata and labels by key."""

    complete: bool
    num_shards: int
    missing_shards: tuple[str, ...]
    corrupt_shards: tuple[str, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a shard or key is missing or corrupt, by name; some need no reason."""
    unverifiable: str | None = None
    """What cannot be verified in a cache of an earlier format version."""
    unknown: tuple[str, ...] = ()
    """Keys of files, links, pipes and devices that lie in the cache and are not its own."""

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
            "reasons": dict(self.reasons),
            "unverifiable": self.unverifiable,
            "unknown": list(self.unknown),
        }

    def describe(self, path: object) -> str:
        """For people."""
        lines = [] if self.unverifiable is None else [f"  not checked: {self.unverifiable}"]
        if self.unknown:
            more = len(self.unknown) - _MOST_NAMED
            named = [*self.unknown[:_MOST_NAMED], *([f"{more:,} more"] if more > 0 else [])]
            lines.append(f"  not of the cache, and not read: {', '.join(named)}")
        if self.ok:
            ok = f"{path}: ok, {number_of(self.num_shards, 'shard')}, every byte as written"
            return "\n".join([ok, *lines])
        lines = [f"{path}: NOT ok", *lines]
        if not self.complete:
            lines.append("  not complete: run the same `kdscale cache build` again")
        lines += [f"  missing: {self._explained(name)}" for name in self.missing_shards]
        lines += [f"  corrupt: {self._explained(name)}" for name in self.corrupt_shards]
        if self.complete or self.corrupt_shards:
            lines.append(f"rebuild just that: kdscale cache repair {path} --recipe RECIPE")
        return "\n".join(lines)

    def _explained(self, name: str) -> str:
        reason = self.reasons.get(name)
        return name if not reason else f"{name} ({reason})"


def verify(cache: Location) -> VerifyReport:
    """Read every object of a cache and compare it with its recorded checksum.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheError: it is of a newer format, or cannot be read.
    """
    try:
        manifest = read_manifest(cache)
    except CacheCorruptError as error:
        return VerifyReport(False, 0, (), (MANIFEST_KEY,), {MANIFEST_KEY: str(error)})
    verdict = check_shards(cache, manifest)
    if not verdict.ok and read_manifest(cache) != manifest:
        return verify(cache)  # a build took it up meanwhile
    keys = (key for key, _ in open_store(cache).keys(""))
    unknown = sorted(key for key in keys if not is_owned(key) and not is_lease(key))
    return replace(verdict, unknown=tuple(unknown))


_MOST_NAMED = 10


def check_shards(cache: Location, manifest: Manifest) -> VerifyReport:
    """Compare every object of a cache with what a manifest, its own, makes of it."""
    store = open_store(cache)
    found: dict[str, dict[str, str]] = {"missing": {}, "corrupt": {}}
    layout = Layout(manifest)
    sound, damaged = fixed_objects_of(store, layout)
    for key, fault in damaged.items():
        # The next build of an unfinished cache writes these anew, whatever is there.
        found[fault.state if manifest.complete else "missing"][key] = fault.reason
    if RECORDS_METADATA in sound:
        for name, fault in _bad_shards(store, layout).items():
            found[fault.state][name] = fault.reason
    reasons = {**found["missing"], **found["corrupt"]}
    return VerifyReport(
        complete=manifest.complete,
        num_shards=manifest.num_views * manifest.num_shards,
        missing_shards=tuple(found["missing"]),
        corrupt_shards=tuple(found["corrupt"]),
        reasons={name: reason for name, reason in reasons.items() if reason},
        unverifiable=manifest.unverifiable,
    )


def _bad_shards(store: Store, layout: Layout) -> dict[str, Fault]:
    """What is wrong with shards that are missing or corrupt, by name."""
    manifest = layout.manifest
    records, shards = CommitRecords(store, layout), range(manifest.num_shards)
    begun = _views_begun(store, manifest)
    size = manifest.shard_samples * manifest.bytes_per_sample
    bad: dict[str, Fault] = {}
    for view in range(manifest.num_views):
        if begun is not None and view not in begun:
            bad |= {shard_name(view, shard): _MISSING for shard in shards}
            continue
        of_view = records.read_each(view, shards)

        def content_of(
            shard: int, records: Sequence[Record] = of_view, view: int = view
        ) -> ShardContent:
            content = read_shard_objects(store, layout, view, shard, records[shard])
            return content._replace(objects={})

        for shard, content in zip(shards, store.each(content_of, shards, size), strict=True):
            if content.state != "ok":
                bad[shard_name(view, shard)] = Fault(content.state, content.reason)
    return bad


_MISSING = Fault("missing", "")
_MANY_SHARDS = 100_000


def _views_begun(store: Store, manifest: Manifest) -> set[int] | None:
    """Views with a commit record, of a cache that claims very many shards; None of another one.

    A manifest can claim millions of shards that nobody wrote; a request for each takes minutes.
    """
    if manifest.num_views * manifest.num_shards <= _MANY_SHARDS:
        return None
    parts = (key.split("/") for key, _ in store.keys("commits/c"))
    return {int(one[2]) for one in parts if len(one) > 2 and one[2].isascii() and one[2].isdigit()}
