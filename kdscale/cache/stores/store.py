"""Where a cache lies: a store of named objects, each there whole or not at all."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar
from urllib.request import url2pathname

from kdscale.cache.stores.local import LocalFolder
from kdscale.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
Sound: TypeAlias = Callable[[bytes], bool]
"""Whether bytes are those that were written."""


class Store(Protocol):
    """The objects of one cache, by key: relative, with `/` between parts."""

    @property
    def location(self) -> str:
        """The folder or URL, for messages."""
        ...

    def each(
        self, request: Callable[[Item], Result], items: Iterable[Item], item_bytes: int = 1
    ) -> Iterator[Result]:
        """Yield the result of `request` for each item in order; several at once if that is faster.

        Items are taken as there is place for them. Where one raises, or the caller stops, requests
        that have not begun are dropped.

        Args:
            request: a function of one item that reads this store, from any thread.
            items: any number of them.
            item_bytes: of memory that one takes; large ones are fewer at once.
        """
        ...

    def read(self, key: str, sound: Sound | None = None) -> bytes:
        """All bytes of an object.

        Args:
            key: the object's.
            sound: tells a store that keeps copies whether its copy will do. What is read may be
                unsound all the same: the caller looks.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: the store itself cannot be reached, or refuses.
            OSError: the object cannot be read.
        """
        ...

    def write(self, key: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        """Put an object in its place whole, durably; `check` is called just before, and may raise.

        Raises:
            StorageError: it cannot be written; the old object is untouched.
        """
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object that is not there; False where it is. Of many, one succeeds.

        A store that cannot tell its own earlier attempt from another's may return True where the
        very bytes are there: let them name their writer.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def overwrite(self, key: str, data: bytes) -> None:
        """Write a few bytes as cheaply as can be, durable or not: always as many of them.

        Raises:
            StorageError: they cannot be written.
        """
        ...

    def keys(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Every key below a folder, with its bytes; objects may come and go meanwhile.

        Raises:
            NotADirectoryError: the store itself is a file.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        ...

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove an object; one that is absent is fine.

        Raises:
            StorageError: it cannot be removed.
        """
        ...

    def prune(self, folder: str) -> None:
        """Remove a folder with no object in it, where the store has folders."""
        ...

    def tidy(self, written: str, folder: str = "") -> None:
        """Remove temporary files that killed writers left below a folder; all, when it is empty.

        Args:
            written: key of an object written just now, whose age is compared with that of others.
            folder: the folder.
        """
        ...


Place: TypeAlias = str | Path
"""Where a cache lies, as it is typed: a folder or a URL."""
Location: TypeAlias = Place | Store
"""The same, or a store that is open."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_OBJECT_STORES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")


def open_store(location: Location) -> Store:
    """The store at a place; a store is its own.

    `s3://`, `gs://` and `az://` URLs are object stores; `file://` and plain paths are folders.

    Raises:
        ConfigError: the URL has another scheme, or the package `obstore` is missing.
    """
    if isinstance(location, Path):
        return LocalFolder(location)
    if not isinstance(location, str):
        return location
    url = _URL.fullmatch(location)
    if url is None:
        return LocalFolder(Path(location))
    if url[1].lower() in ("file", "local"):
        return LocalFolder(Path(url2pathname(url[2])))
    if url[1].lower() in _OBJECT_STORES:
        from kdscale.cache.stores.object_store import (
            open_objects,
        )

        return open_objects(str(place_of(location)))
    if url[1].lower() == "hf":
        raise ConfigError(
            f"{location} is a repository of the Hugging Face Hub: `kdscale cache pull {location}` "
            "brings its cache here, and `kdscale cache push PATH URL` one there"
        )
    raise ConfigError(
        f"{location} cannot be opened: no store for {url[1]}://; use a folder, file://PATH, "
        "s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH"
    )


def is_remote(location: Location) -> bool:
    """Whether a place is not a folder of this machine."""
    return not isinstance(open_store(location), LocalFolder)


def place_of(text: str) -> Place:
    """What was typed: a URL as it is, without `/` at its end, and all else a path."""
    url = _URL.fullmatch(text)
    return Path(text) if url is None else f"{url[1]}://{url[2].rstrip('/')}"


def name_of(place: Place) -> str:
    """The last part of a place."""
    return str(place).rpartition("/")[2]


def folder_name_of(place: Place) -> str:
    """Return the name of the folder that a copy of a place gets.

    Raises:
        ConfigError: it is not a name that a folder may have.
    """
    name = name_of(place)
    if name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ConfigError(f"{place} ends in {name!r}, which names no folder: name a PATH as well")
    return name
