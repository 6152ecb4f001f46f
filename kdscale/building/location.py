"""Where a cache may lie: a free name, and room for it."""

import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from kdscale.cache.catalog import bytes_stored
from kdscale.cache.lease import MANIFEST, Leases
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.writer import is_free
from kdscale.errors import (
    CacheCorruptError,
    CacheNotFoundError,
    ConfigError,
    StorageError,
    UnsafePathError,
)

log = logging.getLogger(__name__)


def check_place(cache: Place | None) -> None:
    """Stop where no cache can be.

    Raises:
        ConfigError: it is a file.
    """
    if isinstance(cache, Path) and cache.is_file():
        raise ConfigError(f"--cache {cache} is a file: name a folder, such as cache/NAME.zarr")


def mention_ending(cache: Place | None) -> None:
    """Say so where a cache will only be found by its name."""
    if isinstance(cache, Path) and cache.suffix != ".zarr":
        log.warning("%s has no ending .zarr: it is not listed, nor found without --cache", cache)


def free_path(root: Path, name: str, required: Manifest) -> Path:
    """NAME.zarr, or with the identity and then a number in its name where others hold that.

    Raises:
        CacheCorruptError: a cache of that name is damaged, so nobody knows what it holds.
    """
    other = f"{name}-{required.id[:8]}"
    names = chain([name, other], (f"{other}-{number}" for number in count(2)))
    return next(
        path for path in (root / f"{one}.zarr" for one in names) if not _is_taken(path, required)
    )


def _is_taken(path: Path, required: Manifest) -> bool:
    """Whether something else is there than a cache that fits, which began just now."""
    try:
        if path.is_file():
            return True
        found = read_manifest(path)
    except CacheNotFoundError:  # as a build leaves it that was killed before its first manifest
        return not is_free(path)
    except CacheCorruptError:
        if b'"kdscale"' in (path / "zarr.json").read_bytes():
            raise
        return True
    return found.id != required.id or any(found.lacks(required))


def clear_abandoned(root: Path) -> None:
    """Remove folders of caches that killed builds left before they wrote a manifest."""
    for path in root.glob("*.zarr"):
        if path.is_dir() and not path.is_symlink() and is_free(path):
            with suppress(OSError, UnsafePathError):  # it is not ours to write to
                with Leases(path) as claims:
                    if claims.claim(MANIFEST):  # what dead builders left is cleared before
                        claims.tidy()
                path.rmdir()


def check_space(path: Place, required: Manifest) -> None:
    """Stop before anything is written, so that a build too large leaves what is there as it is.

    Raises:
        StorageError: there is too little.
    """
    wanted, free = space(path, required)
    if free is not None and free < wanted:
        raise StorageError(
            f"{path} needs about {wanted / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free: "
            "free some, choose another --cache-root, or fewer views"
        )


def space(path: Place, required: Manifest) -> tuple[int, int | None]:
    """Bytes that a build may write, were nothing compressed, and bytes that are free.

    An existing cache may store more features than a recipe requires, of further views too. A
    remote store does not know its free bytes.
    """
    with suppress(CacheNotFoundError, CacheCorruptError):
        required = replace(required, features=read_manifest(path).features)
    total = required.num_views * required.num_samples * required.bytes_per_sample
    wanted = total - bytes_stored(path)
    if not isinstance(path, Path):
        return max(0, wanted), None
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return max(0, wanted), shutil.disk_usage(folder).free
