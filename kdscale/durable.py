"""Durable writes: a file is there whole, or not at all, whatever is killed or unplugged."""

import os
from pathlib import Path

from kdscale.errors import StorageError


def write_durably(path: Path, data: bytes) -> None:
    """Write a file through a temporary one: flushed, then renamed, then its folder flushed.

    Missing folders are created, as durably as the file.

    Raises:
        StorageError: the disk is full, read-only or not permitted; the old file is untouched.
    """
    # A random name: process numbers repeat across the machines that share a disk.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        _create_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def _create_folder(folder: Path) -> None:
    """Create a folder and those above it; each is flushed into the one above."""
    if folder.is_dir():
        return
    _create_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


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
