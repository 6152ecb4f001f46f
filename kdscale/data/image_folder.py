"""Folders of image files: which split and which class each file belongs to.

The splits are the folders at the top, where all of them have the name of one; the classes are the
folders below. kdscale enumerates the files itself: `datasets` takes words in file names for splits,
the innermost folder for the class, the contents of archives for images, and drops all other
files.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.data.class_names import check_distinguishable
from kdscale.data.image_cells import cells_of_files
from kdscale.data.listing import Listing
from kdscale.data.splits import SPLIT_FOLDERS, split_words
from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of


@dataclass(frozen=True, slots=True)
class _Split:
    """The image files of one split."""

    top: str
    """Folder of the split below the root; empty where the folder has no splits."""
    files: list[str]
    """Relative to `top`, in the order of their paths."""

    @property
    def flat(self) -> bool:
        """Whether no file lies in a class folder."""
        return not any("/" in file for file in self.files)

    def path(self, file: str) -> str:
        """A file relative to the root."""
        return f"{self.top}/{file}" if self.top else file


def open_image_folder(listing: Listing, unlabelled: Collection[str] = ()) -> dict[str, Any]:
    """Each split as a `datasets.Dataset` of columns image (paths) and, with classes, label.

    Args:
        listing: the folder.
        unlabelled: splits whose folders are no classes, and may be of any depth.

    Raises:
        DataError: a file or folder that has no place in this layout; it is named.
    """
    check_archives(listing)
    splits = find_splits(listing)
    for name, split in splits.items():
        if name in unlabelled:
            _check_no_unread_files(listing, split)
        else:
            _check_layout(listing, split)
    with_classes = {
        name: split for name, split in splits.items() if not split.flat and name not in unlabelled
    }
    folders = {name: sorted(_classes(split)) for name, split in with_classes.items()}
    names = sorted({one for classes in folders.values() for one in classes})
    check_distinguishable(folders.values(), str(listing.root))
    # A single folder is no choice of classes: its images are as those of a flat folder.
    labelled = len(names) > 1
    return {
        name: _dataset(listing.root, split, names if labelled and name in with_classes else None)
        for name, split in splits.items()
    }


def find_splits(listing: Listing) -> dict[str, _Split]:
    """The image files of each split, by the split's usual name.

    Raises:
        DataError: folders that are splits lie beside others, or two of them name the same split.
    """
    images = listing.of("image")
    tops = {file.split("/", 1)[0] for file in images if "/" in file}
    named = {top for top in tops if top.lower() in SPLIT_FOLDERS}
    flat = [file for file in images if "/" not in file]
    if named and named == tops and not flat:
        return _split_folders(listing.root, sorted(tops), images)
    if any(file.count("/") > 1 and file.split("/", 1)[0] in named for file in images):
        raise DataError(
            f"{listing.root} holds both split folders ({', '.join(sorted(named))}) and others "
            f"({first_few(sorted(tops - named) or flat, 5)}): move the others elsewhere"
        )
    seeming = {top: split_words(top) for top in sorted(tops)}
    if len(tops) > 1 and all(seeming.values()) and named != tops:
        wanted = sorted({word for words in seeming.values() for word in words})
        raise DataError(
            f"folders {', '.join(seeming)} of {listing.root} seem to be splits, not classes: "
            f"rename them to {' and '.join(wanted)}"
        )
    return {"train": _Split("", images)}


def check_archives(listing: Listing) -> None:
    """An archive is passed over where it lies beside a folder of its name, else refused.

    Raises:
        DataError: an archive that may hold images which nobody has unpacked.
    """
    known = {*listing.folders, listing.root.name}
    packed = [file for file in listing.of("archive") if file.split(".", 1)[0] not in known]
    if packed:
        raise DataError(
            f"{listing.root}: {number_of(len(packed), 'archive')} ({first_few(packed)}) beside no "
            "folder of the same name: unpack, or move elsewhere"
        )


def _split_folders(root: Path, tops: list[str], images: list[str]) -> dict[str, _Split]:
    splits: dict[str, _Split] = {}
    for top in tops:
        name = SPLIT_FOLDERS[top.lower()]
        if name in splits:
            raise DataError(
                f"folders {splits[name].top} and {top} of {root} both name the split {name!r}: "
                "merge them, or move one elsewhere"
            )
        files = [file.removeprefix(f"{top}/") for file in images if file.startswith(f"{top}/")]
        splits[name] = _Split(top, files)
    return splits


def _check_layout(listing: Listing, split: _Split) -> None:
    """Every image lies in a class folder, or none does; nothing else lies among them."""
    strays = [split.path(file) for file in split.files if "/" not in file]
    if strays and not split.flat:
        raise DataError(
            f"{listing.root}: {_images(strays)} beside class folders, in none of them: move each "
            "into its class folder, or elsewhere"
        )
    nested = [split.path(file) for file in split.files if file.count("/") > 1]
    if nested:
        raise DataError(_nested_message(listing, split, nested))
    if not split.flat:
        _check_no_empty_class(listing, split)
    _check_no_unread_files(listing, split)


def _nested_message(listing: Listing, split: _Split, nested: list[str]) -> str:
    folders = sorted({file.rsplit("/", 1)[0] for file in nested})
    tops = sorted({file.split("/", 1)[0] for file in split.files})
    below = {file.split("/")[1].lower() for file in nested}
    if not split.top and len(tops) == 1 and below & SPLIT_FOLDERS.keys():
        remedy = f"point --data at {listing.root / tops[0]}"
    else:
        remedy = (
            "move their images up into the class folder, or elsewhere; where folders are no "
            "classes, set data.unlabelled = true"
        )
    return (
        f"{listing.root}: {number_of(len(folders), 'folder')} inside class folders "
        f"({first_few(folders)}): a class is the folder directly below its split; {remedy}"
    )


def _check_no_empty_class(listing: Listing, split: _Split) -> None:
    depth = split.top.count("/") + 1 if split.top else 0
    filled = {split.path(one) for one in _classes(split)}
    empty = [
        folder
        for folder in listing.folders
        if folder.count("/") == depth
        and (not split.top or folder.startswith(f"{split.top}/"))
        and folder not in filled
    ]
    unread = [file for file in listing.of("other") if file.rsplit("/", 1)[0] in empty]
    if empty:
        holds = f"; {_unread_text(unread)} cannot be read" if unread else ""
        raise DataError(
            f"{listing.root}: {number_of(len(empty), 'class folder')} without an image that can be "
            f"read ({first_few(empty)}){holds}: fill or remove them; images are {_READ}"
        )


def _check_no_unread_files(listing: Listing, split: _Split) -> None:
    """What is no image and lies where images do is a companion that is known, or refused."""
    places = {split.path(file).rpartition("/")[0] for file in split.files}
    unread = [
        file
        for kind in ("other", "table")
        for file in listing.of(kind)
        if file.rpartition("/")[0] in places
    ]
    if unread:
        raise DataError(
            f"{listing.root}: {_unread_text(unread)} among the images cannot be read: convert or "
            f"unpack them, or move them elsewhere; images are {_READ}"
        )


_READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, JPEG 2000 and PPM, whatever their suffix"


def _unread_text(files: list[str]) -> str:
    return f"{number_of(len(files), 'file')} ({first_few(files)})"


def _images(files: list[str]) -> str:
    return f"{number_of(len(files), 'image')} ({first_few(files)})"


def _classes(split: _Split) -> set[str]:
    return {file.split("/", 1)[0] for file in split.files}


def _dataset(root: Path, split: _Split, names: list[str] | None) -> Any:
    """A `datasets.Dataset` of the paths and labels, as its `imagefolder` would make it."""
    import datasets
    import pyarrow as pa

    columns = {"image": cells_of_files([str(root / split.path(file)) for file in split.files])}
    features: dict[str, Any] = {"image": datasets.Image()}
    if names is not None:
        label_of: Mapping[str, int] = {name: label for label, name in enumerate(names)}
        columns["label"] = pa.array(
            [label_of[one.split("/", 1)[0]] for one in split.files], pa.int64()
        )
        features["label"] = datasets.ClassLabel(names=names)
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)), info=info)
