"""The files of a data folder, each by what it is: image, table, archive, companion or other.

Nothing is dropped here without a name: whoever reads a folder takes the files of one kind, and has
to refuse or to report every other one.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of, printable

Kind = Literal["image", "table", "metadata", "archive", "document", "other"]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
"""Suffixes of tables of images, and the builder of `datasets` that reads each."""
METADATA_NAMES = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
ARCHIVE_SUFFIXES = frozenset((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"))
DOCUMENT_SUFFIXES = frozenset(
    (".cff", ".csv", ".html", ".json", ".jsonl", ".log", ".md", ".md5", ".pdf", ".rst", ".sha256",
     ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml")
)  # fmt: skip
DOCUMENT_NAMES = frozenset(
    ("authors", "citation", "copying", "license", "licence", "notice", "readme")
)
_SYSTEM_FILES = frozenset(("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"))
_SYSTEM_FOLDERS = frozenset(
    ("$recycle.bin", "@eadir", "__macosx", "__pycache__", "lost+found", "system volume information")
)
_SIGNATURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP"
    rb"|P[1-6]\s|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
"""First bytes of the image formats that `kdscale.data.decode` reads."""
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Listing:
    """All files below a folder, as relative paths with `/`, in the order of their paths."""

    root: Path
    files: dict[str, Kind]
    folders: tuple[str, ...]
    """Folders that are neither hidden nor an operating system's."""
    hidden: Counter[str] = field(default_factory=Counter)
    """Hidden files and folders, and those of operating systems: how many have each name."""
    links: int = 0
    """Number of symbolic links that were followed."""

    def of(self, kind: Kind) -> list[str]:
        """The files of one kind."""
        return [file for file, its_kind in self.files.items() if its_kind == kind]

    def of_suffix(self, suffix: str) -> list[str]:
        """The files whose names end in a suffix, in small letters or capitals."""
        return [file for file in self.files if file.lower().endswith(suffix)]

    def passed_over(self, read: Iterable[str] = ()) -> tuple[str, ...]:
        """Phrases about every file that is not among `read`, by kind, with counts."""
        unread = self.files.keys() - set(read)
        documents = Counter(_ending(file) for file in unread if self.files[file] == "document")
        others = sorted(file for file in unread if self.files[file] != "document")
        notes = [f"{number_of(number, 'file')} {ending}" for ending, number in documents.items()]
        notes += [f"{number_of(len(others), 'other file')} ({first_few(others)})"] if others else []
        if self.hidden:
            names = first_few(sorted(self.hidden))
            notes.append(f"{number_of(self.hidden.total(), 'hidden or system file')} ({names})")
        return tuple(notes)


def list_folder(root: Path) -> Listing:
    """List a folder; symbolic links to files and folders are followed.

    Raises:
        DataError: a link leads nowhere, in a circle or to a folder that is listed already, a name
            is not UTF-8, or there is a pipe, a socket or a device.
    """
    hidden: Counter[str] = Counter()
    files: dict[str, Kind] = {}
    folders: list[str] = []
    links = 0
    top = os.path.realpath(root)
    for relative, entry in _walk(root, "", {top: "."}, (top,), hidden):
        links += entry.is_symlink()
        if entry.is_dir():
            folders.append(relative)
        else:
            files[relative] = _kind(relative, entry.path)
    return Listing(root, dict(sorted(files.items())), tuple(sorted(folders)), hidden, links)


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file with these first bytes is a Git LFS pointer in place of the file."""
    return head.startswith(LFS_POINTER)


def check_no_pointer(path: Path) -> None:
    """Refuse a file that Git LFS has not downloaded.

    Raises:
        DataError: the file is a pointer.
    """
    if is_lfs_pointer(_head(path)):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull' in "
            f"{path.parent}, or download the file"
        )


def _walk(
    root: Path, below: str, seen: dict[str, str], parents: tuple[str, ...], hidden: Counter[str]
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield every entry with its path; `seen` collects the real path of each folder."""
    with os.scandir(root / below) as entries:
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            if is_hidden(entry.name):
                hidden[entry.name] += 1
                continue
            _check_name(root, relative)
            if entry.is_dir():
                yield relative, entry
                link = entry.is_symlink()
                real = os.path.realpath(entry.path) if link else f"{parents[-1]}/{entry.name}"
                if real in parents:
                    raise DataError(
                        f"{root / relative} is a link to a folder around it, {real}: remove it"
                    )
                if (other := seen.setdefault(real, relative)) != relative:
                    raise DataError(
                        f"{root}: {printable(relative)} and {printable(other)} are one folder, "
                        "by a link, so its images would be read twice, under two names: remove "
                        "the link, or copy the images that are meant"
                    )
                yield from _walk(root, relative, seen, (*parents, real), hidden)
            elif entry.is_file():
                yield relative, entry
            else:
                what = "a link to nothing" if entry.is_symlink() else "not a regular file"
                raise DataError(f"{root / relative} is {what}: remove it, or restore its file")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or an operating system's."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES | _SYSTEM_FOLDERS


def _check_name(root: Path, relative: str) -> None:
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{os.fsencode(relative)!r} below {root} is a name that is not UTF-8: rename it"
        ) from error


def _kind(relative: str, path: str) -> Kind:
    name = PurePosixPath(relative).name.lower()
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if name in METADATA_NAMES:
        return "metadata"
    if suffix in TABLE_SUFFIXES:
        return "table"
    if suffix in ARCHIVE_SUFFIXES:
        return "archive"
    if suffix in DOCUMENT_SUFFIXES or stem in DOCUMENT_NAMES:
        return "document"
    return "image" if _SIGNATURES.match(_head(Path(path))) else "other"


def _ending(file: str) -> str:
    path = PurePosixPath(file)
    return path.suffix.lower() or path.name


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
