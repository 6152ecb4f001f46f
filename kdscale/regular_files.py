"""Access to regular files only: no symbolic link out of a folder, no pipe, no device.

Cache, run and sweep folders may come from a stranger or from a half-finished copy. A link in them
could make a read return, or a write replace, a file anywhere on the machine; a pipe blocks its
reader for ever, and a device has no end. The checks look at the file system once, before the
access: they protect against what a folder contains, not against a process that exchanges files
while kdscale runs.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdscale.errors import UnsafePathError

_LARGEST_DOCUMENT = 256 << 20
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_OBJECT_KEY = re.compile(rf"{_PART}(?:/{_PART})*")


def path_inside(root: Path, relative: str | Path) -> Path:
    """Return `root / relative` after checking that the file system keeps it below `root`.

    Args:
        root: the folder that a user named; it may itself be a symbolic link.
        relative: a path below it. It need not exist.

    Raises:
        UnsafePathError: `relative` is absolute or contains `..`, or one of its parts exists and is
            a symbolic link or a special file.
    """
    parts = PurePosixPath(relative).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in str(relative):
        raise UnsafePathError(
            f"{str(relative)[:200]!r} is not a path below {root}: wanted a relative path without "
            "'..'; the folder does not come from kdscale, or was changed"
        )
    return Path(text_path_inside(str(root), parts))


def text_path_inside(root: str, parts: Iterable[str]) -> str:
    """Return what `path_inside` returns, as text: for thousands of files.

    Args:
        root: the folder that a user named.
        parts: of the path below it, each a name: not empty, `.` or `..`.
    """
    path, exists = root, True
    for part in parts:
        path = f"{path}/{part}"
        if exists:
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                exists = False
                continue
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise refused(Path(path), mode)
    return path


def read_inside(root: Path, relative: str | Path, *, limit: int | None = None) -> bytes:
    """Read a regular file below a folder.

    Args:
        root: the folder that a user named.
        relative: the file's path below it.
        limit: largest size accepted, in bytes; None for any.

    Raises:
        UnsafePathError: see `path_inside`; or the file is larger than `limit`.
        OSError: it cannot be read.
    """
    return read_file(path_inside(root, relative), limit=limit, flags=os.O_NOFOLLOW)


def read_regular(path: Path, *, limit: int | None = None) -> bytes:
    """Read a file that a user named; a symbolic link to a regular file is accepted.

    Args:
        path: the file.
        limit: largest size accepted, in bytes; None for any.

    Raises:
        UnsafePathError: it is a pipe, a socket or a device, or larger than `limit`.
        OSError: it cannot be read.
    """
    return read_file(path, limit=limit)


def read_document(path: Path, *, root: Path | None = None) -> bytes:
    """Read a file that holds JSON or TOML: like `read_inside` or `read_regular`, at most 256 MiB.

    Args:
        path: the file.
        root: the folder it has to stay in; None for a file that a user named.
    """
    if root is None:
        return read_regular(path, limit=_LARGEST_DOCUMENT)
    return read_inside(root, path.relative_to(root), limit=_LARGEST_DOCUMENT)


def check_no_links(folder: Path) -> None:
    """Raise UnsafePathError if a folder of few files contains a link or a special file.

    For folders of which many files are written: the folder itself may be a link.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            with suppress(FileNotFoundError):  # it was removed just now
                _check_type(path, path.lstat().st_mode)


def open_inside(root: Path, relative: str | Path, flags: int) -> int:
    """Open a regular file below a folder, without waiting, and return its descriptor.

    Args:
        root: the folder that a user named.
        relative: the file's path below it.
        flags: of `os.open`, such as `os.O_RDWR | os.O_CREAT`.

    Raises:
        UnsafePathError: see `path_inside`.
        OSError: it cannot be opened.
    """
    return open_regular(path_inside(root, relative), flags | os.O_NOFOLLOW)


def open_regular(path: Path | str, flags: int) -> int:
    """Open a file as `os.open` does, without waiting, and return its descriptor.

    Raises:
        UnsafePathError: it is a pipe, a socket or a device; or a link, with `os.O_NOFOLLOW`.
        OSError: it cannot be opened.
    """
    return _open(path, flags)[0]


def _open(path: Path | str, flags: int) -> tuple[int, int]:
    """Open a file as `open_regular` does; its descriptor and its size in bytes."""
    try:
        # O_NONBLOCK: opening a pipe without a writer would otherwise block.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe or socket nobody reads
            _check_type(Path(path), os.lstat(path).st_mode)
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status.st_size
    os.close(descriptor)
    _check_type(Path(path), status.st_mode)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def check_regular(path: Path) -> None:
    """Raise UnsafePathError if a file that a user named exists and is not a regular file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    _check_type(path, mode)


def _check_type(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise refused(path, mode)


def refused(path: Path, mode: int) -> UnsafePathError:
    """Build the error for a file of the wrong type; `mode` is its `st_mode`."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    kind = kinds.get(stat.S_IFMT(mode), "a special file")
    return UnsafePathError(
        f"{path} is {kind}, wanted a regular file: kdscale follows no links in its own folders and "
        "reads no special files; remove it, or copy what it points to into its place"
    )


def read_file(path: Path | str, *, limit: int | None = None, flags: int = 0) -> bytes:
    """Read what `open_regular` opens; arguments as of `read_regular`."""
    descriptor, size = _open(path, os.O_RDONLY | flags)
    try:
        if limit is not None and size > limit:
            raise UnsafePathError(
                f"{path} has {size} bytes, wanted at most {limit}: it was not written by "
                "kdscale, or was changed"
            )
        data = os.read(descriptor, size + 1)
        if len(data) == size:
            return data
        parts = [data]  # one of gigabytes, or that changes just now
        while part := os.read(descriptor, size + 1):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def check_key(key: str, where: str) -> str:
    """Return a key of a store after checking that it stays below the store, as a path as well.

    Args:
        key: parts with `/` between them.
        where: the store, for the message.

    Raises:
        UnsafePathError: it is absolute, has an empty part, `.`, `..`, a backslash or a NUL.
    """
    if _OBJECT_KEY.fullmatch(key) is None:
        raise UnsafePathError(
            f"{key[:200]!r} is not the key of an object of {where}: wanted names with / between "
            "them, without '..', empty parts and backslashes; it does not come from kdscale, or "
            "was changed"
        )
    return key
