"""The Optuna database of a sweep: its address, and connections that write or only read.

A sweep's own database is a file in its folder. Another one is opened only if the user typed its
URL (`--storage`), never because a file names it.
"""

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage

from kdscale.errors import ConfigError, KdscaleError, RunError, StorageError
from kdscale.regular_files import path_inside

optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # the worker logs the same events

OWN_FILE = "sweep.db"
_TRANSACTION_SECONDS = 60.0  # longest wait of a transaction for those of other workers
_FILE_URL = "sqlite:///sweep.db"
"""URL that Optuna gets for a file, which is opened by its path: not every path fits in a URL."""
_FULL = ("database or disk is full", "disk I/O error")
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, AssertionError,
           RuntimeError, RecursionError, OverflowError)  # fmt: skip
"""Errors that Optuna and SQLAlchemy raise on rows that Optuna has not written."""


@dataclass(frozen=True, slots=True)
class Database:
    """Address of the database that stores a sweep's trials."""

    url: str
    """URL as SQLAlchemy writes it, with the password; the path for the sweep's own file."""
    file: Path | None
    """Path of the SQLite file; None for a database server."""

    @property
    def public_url(self) -> str:
        """Return the URL without the password, for messages and `sweep.json`."""
        return self.url if self.file else _parsed(self.url).render_as_string(hide_password=True)

    def is_same(self, other: "Database") -> bool:
        """Return whether both addresses lead to one database."""
        if self.file is None or other.file is None:
            return self.public_url == other.public_url
        return self.file.resolve() == other.file.resolve()


def own_database(folder: Path) -> Database:
    """Return the database in a sweep's folder, which need not be there yet.

    Raises:
        UnsafePathError: its file, or one of those that SQLite keeps beside it, is a link or a
            special file.
    """
    for ending in ("", "-wal", "-shm", "-journal"):
        path_inside(folder, f"{OWN_FILE}{ending}")
    file = folder.absolute() / OWN_FILE
    return Database(str(file), file)


def typed_database(url: str) -> Database:
    """Return the database that a user named with `--storage`.

    Raises:
        ConfigError: it is not the URL of a database that workers can share.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql", "mysql"):
        raise ConfigError(
            f"--storage {url!r}: wanted sqlite:///FILE on one machine, or "
            "postgresql+psycopg://USER@HOST/DATABASE, where several can see it"
        )
    if parsed.get_backend_name() != "sqlite":
        return Database(url, None)
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise ConfigError(
            f"--storage {url!r} names no file, which the workers would share: wanted "
            "sqlite:///FILE; write ? in a name as %3F, # as %23 and % as %25"
        )
    return Database(parsed.render_as_string(), Path(parsed.database or ""))


def _parsed(url: str) -> sqlalchemy.URL:
    try:
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ConfigError(
            f"--storage {url!r} is no URL of a database: wanted sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from None


def check_database(database: Database) -> None:
    """Connect to a database once, before a sweep's folder names it.

    Raises:
        ConfigError: the kind of database is unknown, or its driver is not installed.
        RunError: the database cannot be reached.
    """
    with explained(database):
        storage = open_to_work(database, heartbeat_seconds=10, patience_seconds=60)
        storage.remove_session()
        storage.engine.dispose()


class Storage(RDBStorage):
    """Optuna's storage, with heartbeats that survive interruptions of the database."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat; skip it on a database error, which would end Optuna's thread."""
        with suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


def open_to_work(database: Database, heartbeat_seconds: int, patience_seconds: int) -> Storage:
    """Open a database for writing; create it if it does not exist.

    Args:
        database: address of the database.
        heartbeat_seconds: seconds between two heartbeats of a trial.
        patience_seconds: seconds without a heartbeat after which a trial has lost its worker.
    """
    url, arguments = database.url, dict[str, Any]()
    if database.file is not None:
        connection = _connect(database.file)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        url, file = _FILE_URL, database.file
        arguments = {"creator": lambda: _connect(file)}
    storage = Storage(
        url.replace("{", "{{").replace("}", "}}"),  # Optuna formats it
        engine_kwargs=arguments,
        heartbeat_interval=heartbeat_seconds,
        grace_period=patience_seconds,
    )
    if database.file is not None:  # or two workers read the same state before one of them writes
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda one: one.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return storage


def _connect(file: Path) -> sqlite3.Connection:
    # SQLAlchemy's pool hands a connection to one thread after another, heartbeats among them.
    return sqlite3.connect(
        file, timeout=_TRANSACTION_SECONDS, isolation_level=None, check_same_thread=False
    )


@contextmanager
def opened_to_read(database: Database) -> Iterator[RDBStorage]:
    """Open an existing database for a block, without changing it or the files beside it.

    Raises:
        RunError: the database is missing or damaged.
    """
    url, arguments = database.url, dict[str, Any]()
    if database.file is not None:
        if not database.file.is_file():
            raise RunError(
                f"the sweep's database {database.file} is missing: put it back, or run the "
                "sweep's command again, which creates a new one and reads the finished runs"
            )
        url, file = _FILE_URL, database.file
        arguments = {"creator": lambda: _connect_to_read(file)}
    elif url.startswith("postgresql"):
        arguments = {"execution_options": {"postgresql_readonly": True}}
    with explained(database), _of_damage(database):
        storage = RDBStorage(
            url.replace("{", "{{").replace("}", "}}"),
            engine_kwargs=arguments,
            skip_table_creation=True,
        )
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _connect_to_read(file: Path) -> sqlite3.Connection:
    """Connect so that SQLite writes nothing, not even its files beside the database.

    A database without a write-ahead log is open nowhere else, so it is read as immutable.
    """
    log = file.with_name(f"{file.name}-wal")
    mode = "mode=ro" if log.is_file() and log.stat().st_size else "mode=ro&immutable=1"
    return sqlite3.connect(
        f"file:{quote(bytes(file.absolute()))}?{mode}", uri=True, timeout=_TRANSACTION_SECONDS
    )


@contextmanager
def _of_damage(database: Database) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, KdscaleError | NotImplementedError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(
            f"the sweep's database {database.public_url} does not contain this sweep's trials "
            f"({reason}): put the right one back, or begin in a new folder"
        ) from error


@contextmanager
def explained(database: Database) -> Iterator[None]:
    """Turn errors of a database into one message; ignore Optuna's warnings of experiments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise ConfigError(
            f"--storage {database.public_url}: its driver is not installed ({error}): for "
            "PostgreSQL, pip install 'psycopg[binary]', and name it "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, StorageInternalError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        where = f"the sweep's database {database.public_url}"
        if any(sign in cause for sign in _FULL):
            raise StorageError(
                f"cannot write {where} ({cause}): free space, then run the same command again, "
                "which resumes the sweep"
            ) from error
        raise RunError(
            f"{where} cannot be reached ({cause}): check that it exists and can be written, then "
            "run the same command again"
        ) from error
