"""The store of a cache in a folder of this machine, or of a network disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kdscale.durable import (
    create_folder,
    files_below,
    flush_folder,
    is_abandoned,
    storage_error,
    write_durably,
)

_STALE_SECONDS = 3600  # no write takes as long: a temporary file this old is nobody's


class LocalFolder:
    """The store of a cache in a folder of this machine."""

    requests = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.path)

    def read(self, key: str, sound: Callable[[bytes], bool] | None = None) -> bytes:
        """All bytes of a file."""
        return (self.path / key).read_bytes()

    def write(self, key: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        """Through a temporary file: see `write_durably`."""
        write_durably(self.path / key, data, check)

    def create(self, key: str, data: bytes) -> bool:
        """The file system chooses who creates it; readers may see it before it is whole."""
        file = self.path / key
        try:
            try:
                return _create(file, data)
            except FileNotFoundError:  # the folder: never made, or empty and removed just now
                create_folder(file.parent)
                return _create(file, data)
        except OSError as error:
            raise storage_error(file, error) from error

    def overwrite(self, key: str, data: bytes) -> None:
        """Opened and closed each time, since that is when network disks pass a write on."""
        file = self.path / key
        try:
            create_folder(file.parent)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, data, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(file, error) from error

    def keys(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Every file below a folder, temporary ones too."""
        if self.path.is_file():
            raise NotADirectoryError(str(self.path))
        for place, size in _files(self.path / folder):
            yield f"{folder}/{place}" if folder else place, size

    def size(self, key: str) -> int | None:
        """Bytes of a file; None of a folder."""
        file = self.path / key
        return file.stat().st_size if file.is_file() else None

    def remove(self, key: str, *, durable: bool = True) -> None:
        """A folder in the file's place is put aside, and keeps what it holds."""
        file = self.path / key
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
        for place, _, _ in os.walk(self.path / folder, topdown=False):
            with suppress(OSError):
                Path(place).rmdir()

    def tidy(self, written: str) -> None:
        """Remove temporary files of killed writers, never those of one that still writes."""
        now = (self.path / written).stat().st_mtime  # the clock of the files' own disk
        for leftover in files_below(self.path):
            if not leftover.match(".*.tmp"):
                continue
            with suppress(OSError):
                old = now - leftover.stat().st_mtime > _STALE_SECONDS
                if old or is_abandoned(leftover):
                    leftover.unlink()


def _create(file: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, data)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Paths of all files below a folder, relative to it, and their bytes.

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
            if entry.is_dir():
                below.append(f"{place}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # its writer renamed or removed it just now
                yield f"{place}{entry.name}", entry.stat().st_size
