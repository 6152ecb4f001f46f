"""A sweep's folder: its settings, the address of its database, and a run folder for each trial."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.atomic_write import write_durably
from kdscale.cache.lease import Leases
from kdscale.cache.stores.store import Place
from kdscale.config import Variants, adopt_equal_paths, differences
from kdscale.documents import DAMAGE, read_object, write_object
from kdscale.errors import KdscaleError, RunError
from kdscale.experiment.saved_runs import refuse_changed, refuse_foreign_files, write_recipe
from kdscale.regular_files import path_inside, read_inside
from kdscale.runs.folder import RunFolder
from kdscale.sweep.database import OWN_FILE, Database, check_database, own_database, typed_database

_CACHE = "cache.txt"
_VERSION = 1  # of sweep.json
_LONGEST_PLACE = 1 << 16  # bytes of a cache's folder or URL


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """An existing sweep."""

    path: Path
    variants: Variants
    study: str
    """Name of its study in the database."""
    database: Database
    """Address of the database that stores its trials."""

    def run(self, place: str) -> Path:
        """Return a trial's run folder.

        Raises:
            UnsafePathError: the folder, or the one above it, is a link or a special file.
        """
        return path_inside(self.path, f"trials/{place}")

    def record_cache(self, cache: Place) -> None:
        """Write the location of the cache to `cache.txt`, for `kdscale sweep best`."""
        place = cache.resolve() if isinstance(cache, Path) else cache
        write_durably(self.path / _CACHE, f"{place}\n".encode())

    @property
    def cache(self) -> str | None:
        """Return the cache's folder or URL; None before it is built, or if it is missing."""
        try:
            place = read_inside(self.path, _CACHE, limit=_LONGEST_PLACE).decode().strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not place.isprintable():
            return None
        return place if "://" in place or (place and Path(place).exists()) else None


def is_sweep(folder: Path) -> bool:
    """Return whether a folder has a sweep.

    Raises:
        UnsafePathError: its `sweep.json` is a link or a special file.
    """
    return path_inside(folder, RunFolder(folder).sweep_file.name).is_file()


def begin(folder: Path, variants: Variants, storage: str | None, claims: Leases) -> SweepFolder:
    """Start a sweep in a folder, or check that the one in it has the same settings.

    Args:
        folder: the sweep's folder.
        variants: the recipe, and the fields that vary in it.
        storage: URL of the database; None for a file in the folder.
        claims: leases of this process on the folder.

    Raises:
        RunError: the folder contains other files, or a sweep with other settings.
        RunError: the database cannot be reached.
        ConfigError: the kind of database is unknown.
    """
    if not is_sweep(folder) and RunFolder(folder).has_recipe:
        raise RunError(f"{folder} has the runs of a recipe, and no sweep: name another --run")
    file = RunFolder(folder).sweep_file
    refuse_foreign_files(folder, file.name)
    with claims.exclusive("folder", "another worker begins the sweep: waiting"):
        if not is_sweep(folder):
            typed = None if storage is None else typed_database(storage)
            if typed is not None:
                check_database(typed)
            settings = {
                "version": _VERSION,
                "study": f"{variants.recipe.name}-{os.urandom(4).hex()}",
                "storage": OWN_FILE if typed is None else typed.public_url,
                "recipe": variants.table,
            }
            write_object(file, settings)
        if not RunFolder(folder).has_recipe:  # for readers, and `kdscale report`
            write_recipe(RunFolder(folder), variants.recipe)
    begun = read_folder(folder, storage)
    paths_from = RunFolder(folder).read_paths_from()
    refuse_changed(folder, _changed(begun.variants, variants, paths_from))
    return SweepFolder(folder, variants, begun.study, begun.database)


def read_folder(folder: Path, storage: str | None) -> SweepFolder:
    """Return the sweep of a folder.

    Raises:
        RunError: the folder has none, or its database is another one than `storage`.
    """
    if not is_sweep(folder):
        raise RunError(f"no sweep at {folder}: name a folder that `kdscale sweep RECIPE` wrote")
    try:
        variants, study, url = _sweep_of(folder)
    except DAMAGE as error:
        if isinstance(error, KdscaleError):
            raise
        file = RunFolder(folder).sweep_file
        raise RunError(f"{file} is damaged ({error}): begin in a new folder") from None
    return SweepFolder(folder, variants, study, _database(folder, url, storage))


def _sweep_of(folder: Path) -> tuple[Variants, str, str]:
    """Read recipe, name of the study and URL of the database from `sweep.json`."""
    settings = read_object(RunFolder(folder).sweep_file, root=folder)
    version, study, storage = (settings.get(key) for key in ("version", "study", "storage"))
    if version != _VERSION:
        raise ValueError(f"version is {str(version)[:20]}, this kdscale reads {_VERSION}")
    if not isinstance(study, str) or not 0 < len(study) <= 512 or not study.isprintable():
        raise ValueError("study is not the name of a study")
    if not isinstance(storage, str) or not storage.isprintable():
        raise ValueError("storage is not the URL of a database")
    if not isinstance(settings.get("recipe"), dict):
        raise ValueError("recipe is not a table")
    return Variants(settings["recipe"], str(folder)), study, storage


def _database(folder: Path, url: str, storage: str | None) -> Database:
    """Return the database that the sweep was started with: its own, or the one that was typed."""
    own = own_database(folder)
    if storage is not None:
        typed = typed_database(storage)
        if typed.is_same(own) if url == OWN_FILE else typed.public_url == url:
            return typed
        raise RunError(
            f"{folder} stores its trials in {url}, not in {typed.public_url}: leave out --storage, "
            "or name that one"
        )
    if url == OWN_FILE:
        return own
    raise RunError(
        f"{folder} stores its trials in {url}, according to its sweep.json, and only a database "
        "that you name is opened: add --storage URL (or KDSCALE_SWEEP_STORAGE), with its password"
    )


def _changed(
    before: Variants, now: Variants, paths_from: Path | None
) -> list[tuple[str, Any, Any]]:
    """Return the fields in which two sweeps differ, their numbers of trials aside."""
    ours, theirs = (one.recipe.model_dump() for one in (before, now))
    adopt_equal_paths(ours, theirs, paths_from)
    for table in (ours, theirs):
        table["sweep"].pop("trials")
    return differences(ours, theirs)
