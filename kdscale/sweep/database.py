"""The database of a sweep: which one it is, and how it is opened, to work or only to look.

A sweep's own database is a file in its folder. Another one is opened only where its URL was typed
(`--storage`), never because a file names it.
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

optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what it says, the worker says

OWN_FILE = "sweep.db"
_TRANSACTION_SECONDS = 60.0  # that a transaction may have to wait for the others
_FILE_URL = "sqlite:///sweep.db"
"""What Optuna is told of a file, which is opened by its path: a URL cannot hold every name."""
_FULL = ("database or disk is full", "disk I/O error")
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, AssertionError,
           RuntimeError, RecursionError, OverflowError)  # fmt: skip
"""What Optuna and SQLAlchemy raise on rows that Optuna has not written."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where a sweep's trials are stored."""

    url: str
    """As SQLAlchemy writes it, with its password; of the sweep's own file its path."""
    file: Path | None
    """The SQLite file; None of a database server."""

    @property
    def shown(self) -> str:
        """Its URL for messages and for `sweep.json`, without the password."""
        return self.url if self.file else _parsed(self.url).render_as_string(hide_password=True)

    def is_same(self, other: "Database") -> bool:
        """Whether both are one database, as far as their addresses tell."""
        if self.file is None or other.file is None:
            return self.shown == other.shown
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
    """Find out that a database cannot be used before a folder says that it is the sweep's.

    Raises:
        ConfigError: there is no such kind of database, or what reads it is not installed.
        RunError: it does not answer.
    """
    with explained(database):
        storage = open_to_work(database, heartbeat_seconds=10, patience_seconds=60)
        storage.remove_session()
        storage.engine.dispose()


class Storage(RDBStorage):
    """Optuna's storage, with heartbeats that survive a database that does not answer."""

    def record_heartbeat(self, trial_id: int) -> None:
        """A beat that a database misses is not the last one, as it would be in Optuna's thread."""
        with suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


def open_to_work(database: Database, heartbeat_seconds: int, patience_seconds: int) -> Storage:
    """Open a database, and create it if it is not there.

    Args:
        database: the database.
        heartbeat_seconds: between two heartbeats of a trial.
        patience_seconds: a trial without a heartbeat for so long has lost its worker.
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
    """Open a database that is there, for a block; nothing in it, or beside it, is changed.

    Raises:
        RunError: it is not there, or damaged.
    """
    url, arguments = database.url, dict[str, Any]()
    if database.file is not None:
        if not database.file.is_file():
            raise RunError(
                f"the sweep's database {database.file} is missing: put it back, or run the "
                "sweep's command again, which makes a new one and reads what is trained already"
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
    """Connect so that SQLite writes nothing, not even the files that it keeps beside a database.

    Without a log beside it, nobody has the database open, and it is read as it is.
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
            f"the sweep's database {database.shown} holds something else than this sweep's trials "
            f"({reason}): put the right one back, or begin in a new folder"
        ) from error


@contextmanager
def explained(database: Database) -> Iterator[None]:
    """Turn what a database says into one message; what Optuna says of experiments is dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise ConfigError(
            f"--storage {database.shown}: what speaks to it is not installed ({error}): for "
            "PostgreSQL, pip install 'psycopg[binary]', and name it "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, StorageInternalError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        if any(sign in cause for sign in _FULL):
            raise StorageError(
                f"cannot write the sweep's database {database.shown} ({cause}): free space, then "
                "run the same command again; what is trained is kept"
            ) from error
        raise RunError(
            f"the sweep's database {database.shown} does not answer ({cause}): check that it is "
            "there and can be written, then run the same command again"
        ) from error
