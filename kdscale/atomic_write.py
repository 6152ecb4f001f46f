"""Durable writes: a file is there whole, or not at all, whatever is killed or unplugged."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdscale.errors import StorageError
from kdscale.regular_files import path_inside

_STALE_SECONDS = 3600  # no write takes as long: a temporary file this old is nobody's


def write_durably(
    path: Path,
    data: bytes,
    check: Callable[[], None] | None = None,
    *,
    root: Path | None = None,
) -> None:
    """Write a file of kdscale's own folders: whole or not at all, whatever happens meanwhile.

    It goes through a temporary file: flushed, then renamed, then its folder flushed. Missing
    folders are created, as durably as the file. A file that a user named is for `write_output`.

    Args:
        path: the file.
        data: its bytes.
        check: called just before the renaming, which may come long after the call; it raises where
            the file should no longer be replaced.
        root: the folder that a user named, which the file has to stay in; its own when None.

    Raises:
        StorageError: the disk is full, read-only or not permitted; the old file is untouched.
        UnsafePathError: the file, or a folder between it and `root`, is a link or a special file.
    """
    root = path.parent if root is None else root
    path_inside(root, path.relative_to(root))
    try:
        create_folder(path.parent)
        temporary = temporary_for(path)
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


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user named, like `write_durably`.

    Of a symbolic link, the file that it leads to is replaced; a device or a pipe is written to.

    Raises:
        StorageError: the disk is full, read-only or not permitted; the old file is untouched.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            path.write_bytes(data)
        except OSError as error:
            raise storage_error(path, error) from error
        return
    write_durably(path.resolve() if path.is_symlink() else path, data)


def temporary_for(path: Path) -> Path:
    """Return a new name beside a file for what is to become it; see `is_abandoned`."""
    writer = f"{socket.gethostname()}.{os.getpid()}"
    return path.with_name(f".{path.name}.{writer}.{os.urandom(4).hex()}.tmp")


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


def remove_abandoned(folder: Path, written: Path) -> None:
    """Remove the temporary files below a folder whose writers were killed.

    Args:
        folder: the folder; links in it are not followed.
        written: a file written just now, whose date is the time on the clock of the folder's disk.
    """
    now = written.lstat().st_mtime
    for leftover in files_below(folder):
        if leftover.match(".*.tmp"):
            with suppress(OSError):
                old = now - leftover.lstat().st_mtime > _STALE_SECONDS
                if old or is_abandoned(leftover):
                    leftover.unlink()


@contextmanager
def temporary_folder(parent: Path, what: str) -> Iterator[Path]:
    """Create a folder below another one for a block; remove those that killed processes left.

    Args:
        parent: the folder above, which is created if it is missing.
        what: what it is for, as part of its name.
    """
    create_folder(parent)
    prefix = f".kdscale-{what}"
    writer = f"{socket.gethostname()}.{os.getpid()}"
    with tempfile.TemporaryDirectory(
        dir=parent, prefix=f"{prefix}.{writer}.", suffix=".tmp"
    ) as created:
        now = Path(created).lstat().st_mtime
        for leftover in parent.glob(f"{prefix}*"):
            with suppress(OSError):
                old = now - leftover.lstat().st_mtime > _STALE_SECONDS
                lives = _writer_lives(leftover)
                if lives is False or (old and not lives):
                    shutil.rmtree(leftover)
        yield Path(created)


def is_abandoned(temporary: Path) -> bool:
    """Whether a temporary file's writer ran on this machine and no longer does."""
    return _writer_lives(temporary) is False


def _writer_lives(temporary: Path) -> bool | None:
    """Whether the writer that a temporary name states lives; None of another machine's."""
    head, *rest = temporary.name.rsplit(".", 3)
    if not head.endswith(f".{socket.gethostname()}") or not rest[0].isdecimal():
        return None
    try:
        os.kill(int(rest[0]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


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
    """Return the system's error of writing `path` with a remedy."""
    return StorageError(
        f"cannot write {path} ({error.strerror or error}): free space or change permissions, "
        "then run the same command again; finished work is stored"
    )
