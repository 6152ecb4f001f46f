"""Local copies of what is read from a remote cache, shared by all that read on this machine."""

import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, cast

from kdscale.cache.stores.store import Location, Sound, Store, is_remote, open_store
from kdscale.regular_files import check_key, open_inside, path_inside, read_file

log = logging.getLogger(__name__)

_LOCKS, _ROOM = "locks", "room"
_OF_A_CACHE = re.compile(r"copies-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Copies:
    """Where copies lie, and how many bytes of them; what was used least recently goes first."""

    folder: Path
    limit_bytes: int

    def over(self, cache: Location) -> Location:
        """A cache, read through copies where it is remote."""
        return cast(Store, ReadThrough(open_store(cache), self)) if is_remote(cache) else cache


class ReadThrough:
    """A remote store, with copies of the objects that a checksum vouches for.

    A copy is used where its bytes are those that were written, and fetched anew where they are
    not: so neither a damaged copy nor one of an object that was replaced is ever taken for it.
    Objects without a checksum elsewhere, the manifest and commit records, are always read remotely.
    Of several processes that want an object at once, one fetches it.
    """

    def __init__(self, remote: Store, copies: Copies) -> None:
        self._remote, self._limit = remote, copies.limit_bytes
        self._root = copies.folder
        name = hashlib.sha256(remote.location.encode()).hexdigest()[:16]
        self._folder = copies.folder / f"copies-{name}"
        self._usable, self._telling = True, Lock()

    def __getattr__(self, name: str) -> Any:
        """Return what the remote store has: all but reading is its own."""
        return getattr(self._remote, name)

    def read(self, key: str, sound: Sound | None = None) -> bytes:
        """Return all bytes of an object, of a copy where `sound` accepts its bytes."""
        if sound is None or not self._usable:
            return self._remote.read(key)
        check_key(key, self._remote.location)
        copy = path_inside(self._root, f"{self._folder.name}/{key}")
        found = _sound_copy(copy, sound)
        if found is not None:
            return found
        try:
            with self._locked(self._lock_of(key)):
                found = _sound_copy(copy, sound)  # another process fetched it meanwhile
                if found is not None:
                    return found
                data = self._remote.read(key)
                if sound(data):
                    self._keep(copy, data)
                return data
        except _NoCopies as error:
            with self._telling:
                if self._usable:
                    log.warning("no local copies in %s (%s): reading from %s each time",
                                self._root, error, self._remote.location)  # fmt: skip
                self._usable = False
            return self._remote.read(key)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Be the only one, thread or process, that holds a lock; it ends with its process."""
        try:
            path_inside(self._root, _LOCKS).mkdir(parents=True, exist_ok=True)
            descriptor = open_inside(self._root, f"{_LOCKS}/{name}", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _NoCopies(error.strerror) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _lock_of(self, key: str) -> str:
        """What to hold while an object is fetched: one of a few, since their files stay."""
        return hashlib.sha256(f"{self._folder.name}/{key}".encode()).hexdigest()[:2]

    def _keep(self, copy: Path, data: bytes) -> None:
        """Put a copy in its place whole; nothing is flushed, since every use looks at its bytes."""
        if len(data) > self._limit:
            return
        temporary = copy.with_name(f".{copy.name}.{os.urandom(4).hex()}.tmp")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(_ROOM):
                self._make_room(len(data))
                try:
                    with temporary.open("xb") as file:
                        file.write(data)
                    temporary.replace(copy)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        except FileNotFoundError:
            return  # the folder was removed just now
        except OSError as error:
            raise _NoCopies(error.strerror) from error

    def _make_room(self, wanted: int) -> None:
        files = sorted(_files(self._root), key=lambda file: file[1])
        total = wanted + sum(size for _, _, size in files)
        for path, _, size in files:
            if total <= self._limit:
                return
            with suppress(FileNotFoundError):  # another process makes room, too
                Path(path).unlink()
            total -= size


class _NoCopies(Exception):  # noqa: N818  (nothing fails: what is read comes from the remote store)
    """The folder of copies cannot be written."""


def _sound_copy(copy: Path, sound: Sound) -> bytes | None:
    """The bytes of a copy that will do; marks it as used."""
    try:
        data = read_file(copy, flags=os.O_NOFOLLOW)
        if not sound(data):
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(copy, follow_symlinks=False)
    except OSError:
        return None
    return data


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Path, time of last use and bytes of all copies; they come and go meanwhile.

    What else lies in the folder is not ours to count, nor to remove.
    """
    for folder in root.iterdir():
        if not _OF_A_CACHE.fullmatch(folder.name) or folder.is_symlink():
            continue
        for place, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    path = os.path.join(place, name)  # noqa: PTH118  (thousands)
                    about = os.lstat(path)
                    if stat.S_ISREG(about.st_mode):
                        yield path, about.st_mtime_ns, about.st_size
