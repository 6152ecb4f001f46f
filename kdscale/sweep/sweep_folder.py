"""A sweep's folder: what it is a sweep of, where its database is, one run folder a trial."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from kdscale.atomic_write import write_durably
from kdscale.cache.lease import Leases
from kdscale.cache.stores.base import Place
from kdscale.config import Variants, differences, dump_recipe
from kdscale.documents import DAMAGE, read_object, write_object
from kdscale.errors import KdscaleError, RunError
from kdscale.experiment.saved_runs import refuse_changed, refuse_foreign_files
from kdscale.regular_files import path_inside, read_inside
from kdscale.runs.folder import RunFolder
from kdscale.sweep.database import OWN_FILE, Database, check_database, own_database, typed_database

log = logging.getLogger(__name__)

_FILE, _CACHE = "sweep.json", "cache.txt"
_VERSION = 1  # of sweep.json
_LONGEST_PLACE = 1 << 16  # bytes of a cache's folder or URL
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """A sweep that was begun."""

    path: Path
    variants: Variants
    study: str
    """Its name in the database."""
    database: Database
    """Where its trials are stored."""

    def run(self, place: str) -> Path:
        """Return a trial's run folder.

        Raises:
            UnsafePathError: it, or the folder of all, is a link or a special file.
        """
        return path_inside(self.path, f"trials/{place}")

    def keep_cache(self, cache: Place) -> None:
        """Note the cache that serves all trials, for those who train one of them again."""
        place = cache.resolve() if isinstance(cache, Path) else cache
        write_durably(self.path / _CACHE, f"{place}\n".encode())

    @property
    def cache(self) -> str | None:
        """Its folder or URL; None before it was built, and where the folder is gone."""
        try:
            place = read_inside(self.path, _CACHE, limit=_LONGEST_PLACE).decode().strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not place.isprintable():
            return None
        return place if "://" in place or (place and Path(place).exists()) else None


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun there.

    Raises:
        UnsafePathError: what says so is a link or a special file.
    """
    return path_inside(folder, _FILE).is_file()


def begin(folder: Path, variants: Variants, storage: str | None, claims: Leases) -> SweepFolder:
    """Begin a sweep in a folder, or make sure that it is the one to go on with.

    Args:
        folder: the folder.
        variants: the recipe.
        storage: URL of the database; a file in the folder when None.
        claims: of this process, on the folder.

    Raises:
        RunError: it holds something else, or a sweep with other settings.
        RunError: the database does not answer.
        ConfigError: there is no such kind of database.
    """
    if not is_sweep(folder) and RunFolder(folder).has_recipe:
        raise RunError(f"{folder} holds the runs of a recipe, and no sweep: name another --run")
    refuse_foreign_files(folder, _FILE)
    with in_turn(claims, "folder", "another worker begins the sweep: waiting"):
        if not is_sweep(folder):
            typed = None if storage is None else typed_database(storage)
            if typed is not None:
                check_database(typed)
            told = {
                "version": _VERSION,
                "study": f"{variants.recipe.name}-{os.urandom(4).hex()}",
                "storage": OWN_FILE if typed is None else typed.shown,
                "recipe": variants.table,
            }
            write_object(folder / _FILE, told)
        if not RunFolder(folder).has_recipe:  # for people, and `kdscale report`
            RunFolder(folder).write_recipe(dump_recipe(variants.recipe))
    begun = read_folder(folder, storage)
    refuse_changed(folder, _changed(begun.variants, variants))
    return SweepFolder(folder, begun.variants, begun.study, begun.database)


def read_folder(folder: Path, storage: str | None) -> SweepFolder:
    """A sweep that was begun.

    Raises:
        RunError: there is none, or its database is another one than `storage`.
    """
    if not is_sweep(folder):
        raise RunError(f"no sweep at {folder}: name a folder that `kdscale sweep RECIPE` wrote")
    try:
        variants, study, shown = _sweep_of(folder)
    except DAMAGE as error:
        if isinstance(error, KdscaleError):
            raise
        raise RunError(f"{folder / _FILE} is damaged ({error}): begin in a new folder") from None
    return SweepFolder(folder, variants, study, _database(folder, shown, storage))


def _sweep_of(folder: Path) -> tuple[Variants, str, str]:
    """Return what `sweep.json` says: the recipe, the study's name, and the database's URL."""
    told = read_object(folder / _FILE, root=folder)
    version, study, storage = told.get("version"), told.get("study"), told.get("storage")
    if version != _VERSION:
        raise ValueError(f"version is {str(version)[:20]}, this kdscale reads {_VERSION}")
    if not isinstance(study, str) or not 0 < len(study) <= 512 or not study.isprintable():
        raise ValueError("study is not the name of a study")
    if not isinstance(storage, str) or not storage.isprintable():
        raise ValueError("storage is not the URL of a database")
    if not isinstance(told.get("recipe"), dict):
        raise ValueError("recipe is not a table")
    return Variants(told["recipe"], str(folder)), study, storage


def _database(folder: Path, shown: str, storage: str | None) -> Database:
    """Return the database that the sweep was begun with: its own, or the one that was typed."""
    own = own_database(folder)
    if storage is not None:
        typed = typed_database(storage)
        if typed.is_same(own) if shown == OWN_FILE else typed.shown == shown:
            return typed
        raise RunError(
            f"{folder} keeps its trials in {shown}, not in {typed.shown}: leave out --storage, or "
            "name that one"
        )
    if shown == OWN_FILE:
        return own
    raise RunError(
        f"{folder} keeps its trials in {shown}, as its sweep.json says, and only a database that "
        "you name is opened: add --storage URL (or KDSCALE_SWEEP_STORAGE), with its password"
    )


def _changed(before: Variants, now: Variants) -> list[tuple[str, Any, Any]]:
    """In which fields a sweep differs; it may grow."""
    ours, theirs = (one.recipe.model_dump() for one in (before, now))
    for table in (ours, theirs):
        table["sweep"].pop("trials")
    return differences(ours, theirs)


@contextmanager
def in_turn(claims: Leases, name: str, waiting: str) -> Iterator[None]:
    """Wait until no other worker, on whatever machine, does what this one is to do."""
    if not claims.claim(name):
        log.info(waiting)
        while not claims.claim(name):
            sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        claims.release(name)
