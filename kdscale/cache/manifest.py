"""What a cache says of itself: the manifest, its identity and how two of them differ.

The manifest is the `kdscale` attribute of the group's `zarr.json`, so any Zarr reader shows it. It is
JSON only: `kdscale cache info` reads it without importing Zarr or NumPy.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdscale.durable import write_durably
from kdscale.errors import CacheCorruptError, CacheError, CacheMismatchError, CacheNotFoundError

FORMAT_VERSION = 1

_IDENTITY = {
    "dataset": ("fingerprint", "num_samples", "classes"),
    "views": ("generator", "seed", "operations"),
    "teacher": ("weights_sha256", "preprocess", "precision", "memory_format"),
}
"""What determines the content. View count, chunking, versions and names do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything known of a cache; `dataset`, `views` and `teacher` are JSON tables."""

    dataset: Mapping[str, Any]
    views: Mapping[str, Any]
    teacher: Mapping[str, Any]
    encoding: str
    num_views: int
    num_samples: int
    num_classes: int
    shard_samples: int
    bytes_per_target: int
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that determine the content, as nested tables."""
        tables: dict[str, Any] = {
            section: {name: getattr(self, section)[name] for name in names}
            for section, names in _IDENTITY.items()
        }
        return {**tables, "encoding": self.encoding}

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the hash of `identity`."""
        return hashlib.sha256(canonical(self.identity)).hexdigest()[:16]

    @property
    def num_shards(self) -> int:
        """Shards a view: the samples of one view that are committed together."""
        return -(-self.num_samples // self.shard_samples)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First and past-the-last sample of a shard."""
        start = shard * self.shard_samples
        return start, min(start + self.shard_samples, self.num_samples)

    def finished(self, build: Mapping[str, Any]) -> "Manifest":
        """This manifest once everything is committed."""
        return replace(self, complete=True, build=build)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is stored and printed."""
        return {
            "format_version": FORMAT_VERSION,
            "id": self.id,
            "complete": self.complete,
            "num_views": self.num_views,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "shard_samples": self.shard_samples,
            "encoding": self.encoding,
            "bytes_per_target": self.bytes_per_target,
            "dataset": self.dataset,
            "views": self.views,
            "teacher": self.teacher,
            "fidelity": self.fidelity,
            "build": self.build,
            "versions": self.versions,
            "checksums": self.checksums,
        }


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def group_document(manifest: Manifest) -> bytes:
    """The bytes of the group's `zarr.json`."""
    table = manifest.to_json()
    table["checksum"] = hashlib.sha256(canonical(table)).hexdigest()
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"kdscale": table}}
    return json.dumps(document, indent=1, allow_nan=False).encode()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest of the cache at `path`, in one step."""
    write_durably(path / "zarr.json", group_document(manifest))


def read_manifest(path: Path) -> Manifest:
    """The manifest of the cache at `path`.

    Raises:
        CacheNotFoundError: there is no cache there.
        CacheCorruptError: the manifest is not what was written.
        CacheError: it is of a newer format.
    """
    try:
        stored = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CacheNotFoundError(
            f"no cache at {path}: build one with `kdscale cache build RECIPE`, or see `kdscale cache list`"
        ) from None
    try:
        table = json.loads(stored)["attributes"]["kdscale"]
        version = table["format_version"]
    except (ValueError, KeyError, TypeError):
        raise _corrupt(path) from None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version}, this kdscale reads up to {FORMAT_VERSION}: "
            "update kdscale"
        )
    try:
        manifest = _parse(table)
        intact = group_document(manifest) == stored
    except (KeyError, TypeError, ValueError):
        raise _corrupt(path) from None
    if not intact:
        raise _corrupt(path)
    return manifest


def _parse(table: Mapping[str, Any]) -> Manifest:
    derived = {"format_version", "id", "checksum"}
    return Manifest(**{key: value for key, value in table.items() if key not in derived})


def _corrupt(path: Path) -> CacheCorruptError:
    return CacheCorruptError(
        f"the manifest of {path} is damaged (its checksum does not fit): "
        f"remove the folder and rebuild it with `kdscale cache build`"
    )


def describe(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The JSON object of `kdscale cache info`: the manifest and the bytes on disk."""
    table = manifest.to_json()
    table.pop("checksums")
    sizes = (file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {**table, "bytes": sum(sizes)}


def check_identity(path: Path, cache: Manifest, asked: Manifest) -> None:
    """Stop unless the cache holds what is asked for.

    Raises:
        CacheMismatchError: names every differing field with both values.
    """
    differing = list(_differences(cache.identity, asked.identity))
    if cache.num_views < asked.num_views:
        differing.append(("views.count", cache.num_views, asked.num_views))
    if differing:
        lines = [
            f"  {name}: the cache has {_short(a)}, the recipe asks for {_short(b)}"
            for name, a, b in differing
        ]
        raise CacheMismatchError(
            f"{path} holds other targets than the recipe asks for:\n"
            + "\n".join(lines)
            + "\nChange the recipe, name another --cache, or build one with `kdscale cache build`."
        )


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    return text if len(text) <= 200 else f"{text[:197]}…"
