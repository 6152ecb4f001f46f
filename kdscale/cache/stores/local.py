"""The store of a cache in a folder of this machine, or of a network disk."""

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from kdscale.atomic_write import (
    create_folder,
    flush_folder,
    remove_abandoned,
    storage_error,
    temporary_for,
    write_durably,
)
from kdscale.regular_files import check_key, open_inside, path_inside, read_file, text_path_inside

Item = TypeVar("Item")
Result = TypeVar("Result")

_LARGEST_CLAIM, _LARGEST_METADATA = 1 << 16, 256 << 20
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
"""What `link` fails with on file systems without hard links, exFAT and some network disks."""
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux's fcntl.h and fs.h


class LocalFolder:
    """The store of a cache in a folder of this machine.

    The folder may be a symbolic link that a user named. Below it no link is followed, and pipes,
    sockets and devices are refused, each by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = str(path)

    @property
    def location(self) -> str:
        """The folder."""
        return self._root

    def each(
        self, request: Callable[[Item], Result], items: Iterable[Item], item_bytes: int = 1
    ) -> Iterator[Result]:
        """Yield the result of `request` for one item after the other."""
        return map(request, items)

    def read(self, key: str, sound: Callable[[bytes], bool] | None = None) -> bytes:
        """All bytes of a file."""
        folders = check_key(key, self._root).split("/")[:-1]
        text_path_inside(self._root, folders)
        return read_file(f"{self._root}/{key}", limit=_limit(key), flags=os.O_NOFOLLOW)

    def write(self, key: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        """Write through a temporary file: see `write_durably`."""
        write_durably(self._file(key), data, check, root=self.path)

    def create(self, key: str, data: bytes) -> bool:
        """Give a finished temporary file its name unless there is one: whole, or not there."""
        file = self._file(key)
        temporary = temporary_for(file)
        try:
            try:
                _write_new(temporary, data)
            except FileNotFoundError:  # the folder: never made, or empty and removed just now
                create_folder(file.parent)
                _write_new(temporary, data)
            try:
                return _name(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(file, error) from error

    def overwrite(self, key: str, data: bytes) -> None:
        """Write a file in place, opened each time: network disks pass a write on when it closes."""
        file = self._file(key)
        try:
            create_folder(file.parent)
            descriptor = open_inside(self.path, key, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(descriptor, data, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(file, error) from error

    def keys(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """List every file below a folder, temporary ones too, and links, which are not followed."""
        if self.path.is_file():
            raise NotADirectoryError(self._root)
        for place, size in _files(self._file(folder) if folder else self.path):
            yield f"{folder}/{place}" if folder else place, size

    def size(self, key: str) -> int | None:
        """Return the bytes of a file; None of a folder."""
        try:
            about = self._file(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about.st_size if stat.S_ISREG(about.st_mode) else None

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove a file. A folder in its place is renamed, and what it holds stays in it."""
        file = self._file(key)
        try:
            if file.is_dir():
                file.rename(file.with_name(f"{file.name}.put-aside"))
                return
            file.unlink(missing_ok=True)
            if durable and file.parent.is_dir():
                flush_folder(file.parent)
        except OSError as error:
            raise storage_error(file, error) from error

    def prune(self, folder: str) -> None:
        """Remove the folder, and those in it, if nothing else is in them."""
        for place, _, _ in os.walk(self._file(folder) if folder else self.path, topdown=False):
            with suppress(OSError):
                Path(place).rmdir()

    def tidy(self, written: str, folder: str = "") -> None:
        """Remove temporary files of killed writers, never those of one that still writes."""
        remove_abandoned(self._file(folder) if folder else self.path, self._file(written))

    def _file(self, key: str) -> Path:
        return path_inside(self.path, check_key(key, self._root))


def _limit(key: str) -> int | None:
    """Return the largest size of an object that is read whole before anything vouches for it."""
    if key.startswith("claims/"):
        return _LARGEST_CLAIM
    return _LARGEST_METADATA if key.endswith("zarr.json") else None


def _write_new(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, data)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _name(written: Path, file: Path) -> bool:
    """Give a finished file its name if nobody has it; of many who try at once, one succeeds."""
    try:
        file.hardlink_to(written)
    except FileExistsError:
        return written.stat().st_nlink > 1  # made, where a network disk lost its first answer
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_new(written, file)
    return True


def _rename_new(written: Path, file: Path) -> bool:
    """Do the same without hard links; as exclusive as the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        before, after = os.fsencode(written), os.fsencode(file)
        if rename(_AT_FDCWD, before, _AT_FDCWD, after, _RENAME_NOREPLACE) == 0:
            return True
        if ctypes.get_errno() == errno.EEXIST:
            return False
    try:
        _write_new(file, written.read_bytes())  # readers may see it before it is whole
    except FileExistsError:
        return False
    return True


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """List the paths of all files below a folder, relative to it, and their bytes.

    Strings, since a cache has tens of thousands; files and folders may come and go meanwhile.
    """
    below = [""]
    while below:
        place = below.pop()
        try:
            with os.scandir(folder / place) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                below.append(f"{place}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # its writer renamed or removed it just now
                yield f"{place}{entry.name}", entry.stat(follow_symlinks=False).st_size
