"""A sweep's folder: what it is a sweep of, where its database is, one run folder a trial."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import sqlalchemy

from kdscale.cache.claims import Claims
from kdscale.cache.store import Place
from kdscale.config import Variants, differences
from kdscale.durable import write_durably
from kdscale.engine.runs import refuse_changed, refuse_foreign_files
from kdscale.errors import ConfigError, RunError
from kdscale.run_folder import RunFolder
from kdscale.stages.sweep.study import check_database

log = logging.getLogger(__name__)

_FILE, _CACHE = "sweep.json", "cache.txt"
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """A sweep that was begun."""

    path: Path
    variants: Variants
    study: str
    """Its name in the database."""
    url: str
    """Of the database."""

    def run(self, place: str) -> Path:
        """A trial's run folder."""
        return self.path / "trials" / place

    def keep_cache(self, cache: Place) -> None:
        """Note the cache that serves all trials, for those who train one of them again."""
        place = cache.resolve() if isinstance(cache, Path) else cache
        write_durably(self.path / _CACHE, f"{place}\n".encode())

    @property
    def cache(self) -> str | None:
        """Its folder or URL; None before it was built, and where the folder is gone."""
        kept = self.path / _CACHE
        place = kept.read_text().strip() if kept.is_file() else ""
        return place if "://" in place or (place and Path(place).exists()) else None


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun there."""
    return (folder / _FILE).is_file()


def begin(folder: Path, variants: Variants, storage: str | None, claims: Claims) -> SweepFolder:
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
    if not is_sweep(folder) and (folder / "recipe.toml").is_file():
        raise RunError(f"{folder} holds the runs of a recipe, and no sweep: name another --run")
    refuse_foreign_files(folder, _FILE)
    with in_turn(claims, "folder", "another worker begins the sweep: waiting"):
        if not is_sweep(folder):
            shown = _OWN if storage is None else _shown(storage)
            if storage is not None:
                check_database(storage)
            told = {
                "version": 1,
                "study": f"{variants.recipe.name}-{os.urandom(4).hex()}",
                "storage": shown,
                "recipe": variants.table,
            }
            write_durably(folder / _FILE, json.dumps(told, indent=2).encode() + b"\n")
        if not (folder / "recipe.toml").is_file():  # for people, and `kdscale report`
            RunFolder(folder).write_recipe(variants.recipe)
    begun = read_folder(folder, storage)
    refuse_changed(folder, _changed(begun.variants, variants))
    return SweepFolder(folder, begun.variants, begun.study, begun.url)


def read_folder(folder: Path, storage: str | None) -> SweepFolder:
    """A sweep that was begun.

    Raises:
        RunError: there is none, or its database is another one than `storage`.
    """
    if not is_sweep(folder):
        raise RunError(f"no sweep at {folder}: name a folder that `kdscale sweep RECIPE` wrote")
    try:
        told: Mapping[str, Any] = json.loads((folder / _FILE).read_text())
        variants, shown = Variants(told["recipe"], str(folder)), str(told["storage"])
        return SweepFolder(folder, variants, told["study"], _database(folder, shown, storage))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise RunError(f"{folder / _FILE} is damaged ({error}): begin in a new folder") from None


_OWN = "sweep.db"


def _own_database(folder: Path) -> str:
    return f"sqlite:///{(folder / _OWN).resolve()}"


def _shown(url: str) -> str:
    """A database's URL without its password, which is kept nowhere.

    Raises:
        ConfigError: it is none.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(
            f"--storage {url!r} is no URL of a database: wanted sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql", "mysql"):
        raise ConfigError(
            f"--storage {url!r}: wanted sqlite:///FILE on one machine, or "
            "postgresql+psycopg://USER@HOST/DATABASE, where several can see it"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"--storage {url!r} names no file, which the workers would share")
    return parsed.render_as_string(hide_password=True)


def _database(folder: Path, shown: str, storage: str | None) -> str:
    """The URL of the database that the sweep was begun with."""
    own = shown == _OWN
    given = _shown(storage) if storage is not None else None
    if given is not None and given != (_shown(_own_database(folder)) if own else shown):
        raise RunError(
            f"{folder} keeps its trials in {shown}, not in {given}: leave out --storage, or name "
            "that one"
        )
    if own:
        return _own_database(folder)
    if storage is None and sqlalchemy.make_url(shown).password is not None:
        raise RunError(
            f"{folder} keeps its trials in {shown}, and passwords are not kept: name it with "
            "--storage or KDSCALE_SWEEP_STORAGE"
        )
    return storage or shown


def _changed(before: Variants, now: Variants) -> list[tuple[str, Any, Any]]:
    """In which fields a sweep differs; it may grow."""
    ours, theirs = (one.recipe.model_dump() for one in (before, now))
    for table in (ours, theirs):
        table["sweep"].pop("trials")
    return differences(ours, theirs)


@contextmanager
def in_turn(claims: Claims, name: str, waiting: str) -> Iterator[None]:
    """Wait until no other worker, on whatever machine, does what this one is to do."""
    if not claims.claim(name):
        log.info(waiting)
        while not claims.claim(name):
            sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        claims.release(name)
