"""Durable writes: a file is there whole, or not at all, whatever is killed or unplugged."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from kdscale.errors import StorageError


def write_durably(path: Path, data: bytes, check: Callable[[], None] | None = None) -> None:
    """Write a file through a temporary one: flushed, then renamed, then its folder flushed.

    Missing folders are created, as durably as the file. What is no file (a device, a pipe) is
    written to, not replaced; of a link, what it leads to is replaced.

    Args:
        path: the file.
        data: its bytes.
        check: called just before the renaming, which may come long after the call; it raises where
            the file should no longer be replaced.

    Raises:
        StorageError: the disk is full, read-only or not permitted; the old file is untouched.
    """
    writer = f"{socket.gethostname()}.{os.getpid()}"  # see is_abandoned
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_into(path, data)
        return
    if path.is_symlink():
        path = path.resolve()
    temporary = path.with_name(f".{path.name}.{writer}.{os.urandom(4).hex()}.tmp")
    try:
        create_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def _write_into(device: Path, data: bytes) -> None:
    try:
        device.write_bytes(data)
    except OSError as error:
        raise storage_error(device, error) from error


def rename_durably(written: Path, path: Path) -> None:
    """Give a written file its name, in the same file system; what had that name is replaced.

    Raises:
        StorageError: the disk is read-only or not permitted; the old file is untouched.
    """
    try:
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def is_abandoned(temporary: Path) -> bool:
    """Whether a temporary file's writer ran on this machine and no longer does."""
    head, *rest = temporary.name.rsplit(".", 3)
    if not head.endswith(f".{socket.gethostname()}") or not rest[0].isdecimal():
        return False
    try:
        os.kill(int(rest[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    return False


def create_folder(folder: Path) -> None:
    """Create a folder and those above it; each is flushed into the one above."""
    if folder.is_dir():
        return
    create_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder; files and folders may come and go meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def flush_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the system said of writing `path`, with what to do."""
    return StorageError(
        f"cannot write {path} ({error.strerror or error}): free space or change permissions, "
        "then run the same command again; what is finished is kept"
    )
