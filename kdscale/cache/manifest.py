"""The description of a cache, stored in it: the manifest, its identity and how two of them differ.

The manifest is the `kdscale` attribute of the group's `zarr.json`, so any Zarr reader shows it. It
is JSON only: `kdscale cache info` reads it without importing Zarr or NumPy. `cache/README.md` is
the specification.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from kdscale.cache.manifest_schema import FieldError, check_table
from kdscale.cache.stores.store import Location, Store, is_remote, open_store
from kdscale.documents import canonical
from kdscale.encodings import Encoding, Float16, Float32, create_encoding
from kdscale.errors import (
    CacheCorruptError,
    CacheError,
    CacheNotFoundError,
    StorageError,
)

ABSENT = "(nothing)"
"""Stands for the value of a field that is not there."""
MANIFEST_KEY = "zarr.json"
"""The object that holds it: the group's metadata."""
FORMAT_VERSION = 4
"""The newest version, of caches without logits; other new caches have version 3. Those of versions
1 and 2 are read, and extended as they are."""
_VIEWS_OF_VERSION_1 = {"generator", "seed", "operations", "count"}
_ENCODINGS_OF_VERSION_1 = {Float32.name, Float16.name}

_IDENTITY = {
    "dataset": ("fingerprint", "num_samples", "classes"),
    "teacher": ("weights_sha256", "preprocess", "precision", "memory_format"),
}
"""What determines the content, beside the views. Chunking, versions and names do not."""
_IDENTITY_IF_PRESENT = {"teacher": ("options",)}
"""Optional fields, which are compared if both have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything known of a cache; `dataset`, `views` and `teacher` are JSON tables."""

    dataset: Mapping[str, Any]
    views: Mapping[str, Any]
    teacher: Mapping[str, Any]
    encoding: str
    top_k: int | None = None
    """Number of stored classes; top-k targets only, as are `temperatures`, of their tails."""
    temperatures: Sequence[float] = ()
    embedding_size: int | None = None
    """Values before the teacher's head; of the encoding `embedding` alone."""
    features: Sequence[Mapping[str, Any]] = ()
    """Outputs stored beside the targets: `module`, `pool` (side of averaged maps, or None), `shape`
    of one sample's."""
    num_views: int
    num_samples: int
    num_classes: int
    shard_samples: int
    chunk_samples: int | None = None
    """Samples of a Zarr chunk where an object holds several, a Zarr shard; a divisor of
    `shard_samples`. None where an object is one chunk."""
    bytes_per_target: int
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    bound_records: bool = True
    """Whether commit records name their cache, view and shard: from format version 3 on."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that determine the content, as nested tables."""
        tables: dict[str, Any] = {
            section: {name: getattr(self, section)[name] for name in names}
            for section, names in _IDENTITY.items()
        }
        for section, names in _IDENTITY_IF_PRESENT.items():
            fields = getattr(self, section)
            tables[section] |= {name: fields[name] for name in names if name in fields}
        views = {name: value for name, value in self.views.items() if name != "count"}
        return {**tables, "views": views, "encoding": self.encoding, **self._encoding_fields}

    @property
    def target_encoding(self) -> Encoding:
        """The encoding with its settings."""
        return create_encoding(
            self.encoding,
            self.num_classes,
            top_k=self.top_k,
            temperatures=self.temperatures,
            embedding_size=self.embedding_size,
        )

    @property
    def _encoding_fields(self) -> dict[str, Any]:
        """The settings of top-k targets; nothing of others."""
        if self.top_k is None:
            return {}
        return {"top_k": self.top_k, "temperatures": list(self.temperatures)}

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the hash of `identity`."""
        return hashlib.sha256(canonical(self.identity)).hexdigest()[:16]

    @property
    def format_version(self) -> int:
        """4 without logits, else 3; without bound records 2, or 1 if version 1 has all of it."""
        if not self.target_encoding.has_logits:
            return 4
        if self.bound_records:
            return 3
        known = self.encoding in _ENCODINGS_OF_VERSION_1 and not self.features
        known = known and "keys" not in self.dataset and self.chunk_samples is None
        known = known and "options" not in self.teacher
        return 1 if known and not self.views.keys() - _VIEWS_OF_VERSION_1 else 2

    @property
    def unverifiable(self) -> str | None:
        """What cannot be verified in a cache of this format version, for people; None: nothing."""
        if self.bound_records:
            return None
        return (
            f"format version {self.format_version}: shards are not bound to their cache, so one "
            "that was copied from another cache cannot be found; one built with `kdscale cache "
            "build` by this kdscale binds them"
        )

    @property
    def build_seconds(self) -> float:
        """Seconds the build took, over all processes and resumes; 0 where it is not recorded."""
        return float(self.build.get("seconds", 0.0))

    @property
    def rows_together(self) -> int:
        """Samples of one teacher batch at most: outputs must not depend on the layout."""
        return self.chunk_samples or self.shard_samples

    @property
    def num_shards(self) -> int:
        """Shards a view: the samples of one view that are committed together."""
        return -(-self.num_samples // self.shard_samples)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First and past-the-last sample of a shard."""
        start = shard * self.shard_samples
        return start, min(start + self.shard_samples, self.num_samples)

    @property
    def bytes_per_sample(self) -> int:
        """Return the bytes stored for one sample in one view: target, features and digest."""
        features: int = sum(prod(one["shape"]) for one in self.features)
        return self.bytes_per_target + 2 * features + 8

    def lacks(self, required: "Manifest") -> Iterator[tuple[str, str, str]]:
        """Return name, stored and required pooling of each feature that is missing or differs.

        Features are no part of the identity: a cache with more of them than required matches.
        """
        stored = {one["module"]: one["pool"] for one in self.features}
        for one in required.features:
            module, pool = one["module"], one["pool"]
            if module not in stored or stored[module] != pool:
                found = _pooling(stored[module]) if module in stored else ABSENT
                yield f"cache.features {module}", found, _pooling(pool)

    def with_num_views(self, num_views: int) -> "Manifest":
        """This manifest of another number of views."""
        return replace(self, num_views=num_views, views={**self.views, "count": num_views})

    def finished(self, build: Mapping[str, Any]) -> "Manifest":
        """This manifest once everything is committed."""
        return replace(self, complete=True, build=build)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is stored and printed."""
        return {
            "format_version": self.format_version,
            "id": self.id,
            "complete": self.complete,
            "num_views": self.num_views,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "shard_samples": self.shard_samples,
            **({} if self.chunk_samples is None else {"chunk_samples": self.chunk_samples}),
            "encoding": self.encoding,
            **self._encoding_fields,
            **({} if self.embedding_size is None else {"embedding_size": self.embedding_size}),
            "bytes_per_target": self.bytes_per_target,
            **({"features": list(self.features)} if self.features else {}),
            "dataset": self.dataset,
            "views": self.views,
            "teacher": self.teacher,
            "fidelity": self.fidelity,
            "build": self.build,
            "versions": self.versions,
            "checksums": self.checksums,
        }


def group_document(manifest: Manifest) -> bytes:
    """The bytes of the group's `zarr.json`."""
    table = manifest.to_json()
    table["checksum"] = _checksum(table)
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"kdscale": table}}
    return json.dumps(document, indent=1, allow_nan=False).encode()


def write_manifest(
    cache: Location, manifest: Manifest, check: Callable[[], None] | None = None
) -> None:
    """Replace the manifest of a cache, in one step; `check` as of `Store.write`."""
    open_store(cache).write(MANIFEST_KEY, group_document(manifest), check)


def read_manifest(cache: Location) -> Manifest:
    """The manifest of the cache at a place, all its fields of the types and ranges they can have.

    Raises:
        CacheNotFoundError: there is no cache there.
        CacheCorruptError: the manifest is not what was written, or not kdscale's.
        CacheError: it is of a newer format, or may not be read.
    """
    store = open_store(cache)
    path, stored = store.location, _read_document(store)
    table = _table(path, stored)
    version = table.get("format_version")
    if type(version) is not int or version < 1:
        raise _damaged(path, "format_version is no version")
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {str(version)[:20]}, this kdscale reads up to "
            f"{FORMAT_VERSION}: update kdscale"
        )
    try:
        check_table(table)
        manifest = _parse(table)
        intact = group_document(manifest) == stored
    except FieldError as error:
        raise _damaged(path, str(error)) from None
    except KeyError as error:
        raise _damaged(path, f"{error.args[0]} is missing") from None
    except (TypeError, ValueError, ArithmeticError):
        raise _damaged(path) from None
    if not intact:
        raise _damaged(path)
    return manifest


def _read_document(store: Store) -> bytes:
    path = store.location
    try:
        size = None if is_remote(store) else store.size(MANIFEST_KEY)
        if size is not None and size > _LARGEST_DOCUMENT:
            raise _damaged(path, f"{size} bytes, wanted at most {_LARGEST_DOCUMENT}")
        return store.read(MANIFEST_KEY)
    except (FileNotFoundError, NotADirectoryError):
        raise CacheNotFoundError(
            f"no cache at {path}: build one with `kdscale cache build RECIPE`, "
            "or see `kdscale cache list`"
        ) from None
    except StorageError:
        raise
    except OSError as error:
        raise CacheError(
            f"cannot read {path}/{MANIFEST_KEY} ({error.strerror}): change its permissions, "
            "or name another cache"
        ) from error


_LARGEST_DOCUMENT = 64 << 20
"""Bytes of a manifest: one of 21,841 classes takes 1 MB."""


def _table(path: str, stored: bytes) -> dict[str, Any]:
    """The attribute `kdscale`, its checksum verified: that holds for every format version."""
    try:
        table = json.loads(stored)["attributes"]["kdscale"]
        expected = table["checksum"]
        rest = {key: value for key, value in table.items() if key != "checksum"}
        intact = _checksum(rest) == expected
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        if all(word in stored for word in (b'"kdscale"', b'"checksums"')):  # ours, if no JSON now
            raise _damaged(path) from None
        raise CacheCorruptError(
            f"{path}/{MANIFEST_KEY} is damaged, or was not written by kdscale (no manifest in its "
            "attribute `kdscale`): name another folder (see `kdscale cache list`), or remove this "
            "one and rebuild it with `kdscale cache build`"
        ) from None
    if not intact:
        raise _damaged(path)
    return rest


def _checksum(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(table)).hexdigest()


def _parse(table: Mapping[str, Any]) -> Manifest:
    fields = {key: value for key, value in table.items() if key not in ("format_version", "id")}
    return Manifest(**fields, bound_records=table["format_version"] >= 3)


def _damaged(path: str, reason: str = "") -> CacheCorruptError:
    because = f" ({reason})" if reason else ""
    return CacheCorruptError(
        f"the manifest of {path} is damaged{because}: "
        f"`kdscale cache repair {path} --recipe RECIPE` writes it anew"
    )


def _pooling(pool: int | None) -> str:
    return "its output as it is" if pool is None else f"its output pooled to {pool} x {pool}"
