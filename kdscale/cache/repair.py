"""Takes out of a cache what is bad, so that a build replaces just that."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdscale.cache.layout import (
    checksum,
    fixed_objects,
    record_object,
    shard_arrays,
    shard_objects,
)
from kdscale.cache.manifest import Manifest, canonical, read_manifest
from kdscale.cache.verify import Verdict, judge
from kdscale.cache.writer import changing_manifest, lay_out
from kdscale.durable import flush_folder, storage_error, write_durably
from kdscale.errors import CacheCorruptError


def take_out(path: Path, labels: np.ndarray, restored: Manifest | None = None) -> Verdict:
    """Make a damaged cache an unfinished one that misses what was bad, ready for its build.

    Bad shards lose their commit records before anything else, so that a kill at any moment leaves a
    cache in which more is missing, and never one that passes for sound.

    Args:
        path: the cache's folder.
        labels: int64 [N], those of the manifest's data set.
        restored: in place of a manifest that is damaged.

    Returns:
        What was wrong.

    Raises:
        CacheCorruptError: the manifest is damaged.
        StorageError: the disk is full, read-only or not permitted.
    """
    with changing_manifest(path) as held:
        manifest = read_manifest(path) if restored is None else restored
        found = judge(path, manifest)
        if found.ok and restored is None:
            return found
        objects = fixed_objects(manifest, labels)
        if _RECORDS in (*found.missing_shards, *found.corrupt_shards):
            _put_aside(path / _RECORDS)
            write_durably(path / _RECORDS, objects[_RECORDS])
            found = _together(found, judge(path, manifest))  # its shards can be judged now
        _remove_records(path, manifest, found.bad_shards)
        for key in objects:
            _put_aside(path / key)
        lay_out(path, replace(manifest, complete=False), labels, held)
    if restored is None:
        return found
    return replace(found, corrupt_shards=("zarr.json", *found.corrupt_shards))


_RECORDS = "commits/zarr.json"


def _together(one: Verdict, other: Verdict) -> Verdict:
    missing = dict.fromkeys((*one.missing_shards, *other.missing_shards))
    corrupt = dict.fromkeys((*one.corrupt_shards, *other.corrupt_shards))
    return replace(other, missing_shards=tuple(missing), corrupt_shards=tuple(corrupt))


def _remove_records(path: Path, manifest: Manifest, shards: Iterable[tuple[int, int]]) -> None:
    for view, shard in shards:
        record = path / record_object(view, shard)
        try:
            for key in (record_object(view, shard), *shard_objects(manifest, view, shard)):
                _put_aside(path / key)
            record.unlink(missing_ok=True)
            if record.parent.is_dir():
                flush_folder(record.parent)
        except OSError as error:
            raise storage_error(record, error) from error


def _put_aside(file: Path) -> None:
    """Make way where a folder lies in the place of a file; it keeps what it holds."""
    if file.is_dir():
        file.rename(file.with_name(f"{file.name}.put-aside"))


def restored_manifest(path: Path, asked: Manifest, labels: np.ndarray) -> Manifest:
    """The manifest of a cache whose own is damaged, with all that it vouched for.

    Args:
        path: the cache's folder.
        asked: what the recipe asks for; number of views and size of shards are the cache's.
        labels: int64 [N], those of the data set.

    Raises:
        CacheCorruptError: what is left does not say that the cache is the recipe's.
    """
    remains = (path / "zarr.json").read_bytes()
    if not _names(remains, asked):
        raise CacheCorruptError(
            f"the manifest of {path} is damaged, and what is left of it does not name what the "
            "recipe asks for: repair it with the recipe it was built with, or remove the folder"
        )
    first = f"{shard_arrays(asked)[0]}/zarr.json"
    for views, shard_samples in _shapes(path / first):
        count = {**asked.views, "count": views}
        manifest = replace(
            asked, num_views=views, shard_samples=shard_samples, views=count, complete=True
        )
        objects = fixed_objects(manifest, labels)
        if all(_holds(path / key, objects[key]) for key in (first, _RECORDS)):
            checksums = {key: checksum(data) for key, data in objects.items()}
            return replace(manifest, checksums=checksums)
    raise CacheCorruptError(
        f"manifest and metadata of {path} are both damaged, so its shards cannot be told apart: "
        "remove the folder and rebuild it with `kdscale cache build`"
    )


def _names(remains: bytes, asked: Manifest) -> bool:
    """Whether a damaged manifest still names the identity that is asked for, or says all of it."""
    text = remains.decode(errors="replace")
    if f'"id": "{asked.id}"' in text:
        return True
    identity = json.loads(canonical(asked.identity))
    try:
        stated = json.loads(text, strict=False)["attributes"]["kdscale"]
        sections = ("dataset", "teacher", "views")
        said = {one: {name: stated[one][name] for name in identity[one]} for one in sections}
        stored = {name: stated[name] for name in identity if name not in sections}
        return bool({**said, **stored} == identity)
    except (ValueError, LookupError, TypeError):
        return False


def _shapes(metadata: Path) -> Iterator[tuple[int, int]]:
    """Number of views and samples of a shard, as the metadata of an array has them."""
    try:
        stored = json.loads(metadata.read_bytes())
        shape, chunks = stored["shape"], stored["chunk_grid"]["configuration"]["chunk_shape"]
        yield int(shape[0]), int(chunks[1])
    except (OSError, ValueError, LookupError, TypeError):
        return


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.read_bytes() == data
    except OSError:
        return False
