"""Where images come from: `datasets` opens the source, this file finds the split in it."""

import errno
import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.columns import choose_classes, find_image_column, find_label_column, read_labels
from kdscale.errors import DataError, StorageError
from kdscale.wording import number_of

HUB_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)?")
TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "unlabeled": "unlabeled", "unlabelled": "unlabeled",
}  # fmt: skip
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "valid": ("valid", "validation", "val"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "validation", "valid", "val"),
}
EMPTY_SPLIT = re.compile("corresponds to no data|BatchSize must be greater than 0")
"""What `datasets` says of a split without rows."""
ROWS_PER_READ = 1024
UNWRITABLE = frozenset((errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM))


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The chosen rows of one split, images still encoded, labels settled."""

    dataset: Any
    """`datasets.Dataset` in arrow format: the image column of the chosen rows."""
    rows: np.ndarray
    """Row in the split of each sample, for messages."""
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    split: str

    def read(self) -> Iterator[list[bytes]]:
        """The encoded images in order, some at a time."""
        start = 0
        for table in self.dataset.iter(batch_size=ROWS_PER_READ):
            yield [
                self._bytes(start + offset, cell)
                for offset, cell in enumerate(_cells(table.column(0)))
            ]
            start += len(table)

    def read_one(self, sample: int) -> bytes:
        """The encoded image of one sample; any number of threads may call.

        Raises:
            DataError: there is none, or its file cannot be read.
        """
        # Of a row that is asked for by number, `datasets` gives a table of it alone.
        (cell,) = _cells(self.dataset[int(sample)].column(0))
        return self._bytes(sample, cell)

    def place(self, sample: int) -> str:
        """How messages name a sample: its row, and its file where it has one."""
        file = self._file(sample)
        where = f" ({file})" if file else ""
        return f"row {self.rows[sample]} of split '{self.split}' of {self.name}{where}"

    def _file(self, sample: int) -> str:
        column = self.dataset[int(sample)].column(0)
        names = [field.name for field in column.type] if column.type.num_fields else []
        if "path" not in names:
            return ""
        return column.flatten()[names.index("path")][0].as_py() or ""

    def _bytes(self, sample: int, cell: bytes | str | None) -> bytes:
        if not cell:
            raise DataError(f"{self.place(sample)} holds no image: remove the row from the data")
        if isinstance(cell, bytes):
            return cell
        try:
            return Path(cell).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.place(sample)} cannot be read: {cell}: {error.strerror or error}"
            ) from error


def open_source(
    source: str,
    *,
    split: str,
    image_column: str | None,
    label_column: str | None,
    classes: Sequence[str | int] | None,
    require_labels: bool,
) -> EncodedSplit:
    """Open the source, find split, columns and classes. Arguments as in `load_images`."""
    splits = _open_splits(source)
    found = _find_split(source, splits, split)
    dataset = splits[found]
    place = f"split '{found}' of {source}"
    if len(dataset) == 0:
        raise DataError(f"{place} is empty: choose another split or point --data at a whole copy")
    image_column = find_image_column(dataset.features, image_column, place)
    label_column = find_label_column(dataset.features, label_column, place, required=require_labels)
    labels = read_labels(splits, found, label_column, place)
    if require_labels and (unlabelled := int((labels.values < 0).sum())):
        raise DataError(
            f"{unlabelled} of the {number_of(len(dataset), 'row')} of {place} have no label "
            f"(column '{label_column}'): remove them, choose another split, or distil without "
            "labels (hard_weight = 0)"
        )
    rows, values, names = choose_classes(labels, classes, place)
    if len(rows) < len(dataset):
        dataset = dataset.select(rows)
    return EncodedSplit(
        dataset=dataset.select_columns([image_column]).with_format("arrow"),
        rows=rows,
        labels=values,
        classes=names,
        name=source,
        split=found,
    )


def _cells(column: Any) -> Iterator[bytes | str | None]:
    """Bytes, else the path of the file, of each cell of an image column."""
    if column.type.num_fields == 0:
        yield from column.to_pylist()
        return
    parts = {
        field.name: values.to_pylist()
        for field, values in zip(column.type, column.flatten(), strict=True)
    }
    paths = parts.get("path", [None] * len(column))
    yield from (cell or path for cell, path in zip(parts["bytes"], paths, strict=True))


def _open_splits(source: str) -> Mapping[str, Any]:
    path = Path(source).expanduser()
    if path.exists():
        with _quiet_unless_terminal(), _told_in_one_line(source):
            splits = _open_file(path) if path.is_file() else _open_folder(path)
    elif HUB_NAME.fullmatch(source) and path.suffix not in TABLE_SUFFIXES:
        splits = _open_hub(source)
    else:
        raise DataError(
            f"no data at {source}: there is no such file or folder. Correct the path, or point "
            "--data at a local copy"
        )
    if not splits:
        raise DataError(f"{source} holds no images: point --data at a folder that does")
    return splits


def _open_file(path: Path) -> Mapping[str, Any]:
    from datasets import load_dataset

    kind = TABLE_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path} cannot be used as a data set: wanted a .parquet or .arrow file, or a folder"
        )
    word = re.split(r"[^a-z]", path.stem.lower())[0]
    files = {SPLIT_FOLDERS.get(word, "train"): glob.escape(str(path.resolve()))}
    return dict(load_dataset(kind, data_files=files))


def _open_folder(path: Path) -> Mapping[str, Any]:
    from datasets import Dataset, load_dataset, load_from_disk

    if (path / "dataset_dict.json").exists():
        for state in sorted(path.glob("*/state.json")):
            _require_rows(state)
        return dict(load_from_disk(str(path)))
    if (path / "state.json").exists():
        _require_rows(path / "state.json")
        dataset: Dataset = load_from_disk(str(path))
        return {str(dataset.split or "train"): dataset}
    files = [
        Path(folder, file).relative_to(path)
        for folder, _, names in os.walk(path, followlinks=True)
        for file in names
        if not file.startswith(".")
    ]
    suffixes = {file.suffix.lower() for file in files}
    if not suffixes:
        raise DataError(f"{path} is an empty folder: point --data at a folder with images in it")
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if images and suffixes.isdisjoint(TABLE_SUFFIXES):
        return _open_image_folder(path.resolve(), images)
    return dict(load_dataset(str(path.resolve())))


def _require_rows(state: Path) -> None:
    """Of a saved data set; `load_from_disk` fails on an empty one without saying so."""
    if not json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
        raise DataError(f"{state.parent} is an empty data set: save it again with rows in it")


def _open_image_folder(path: Path, images: list[Path]) -> Mapping[str, Any]:
    """The splits are stated here, as folders at the top and nothing else.

    Left to itself, `datasets` also takes words in file and class names for splits ("test_3.png", a
    class of trains) and drops the rest, and reads flat split folders as the classes train and test.
    """
    from datasets import load_dataset

    tops = {file.parts[0] for file in images if len(file.parts) > 1}
    named = {top for top in tops if top.lower() in SPLIT_FOLDERS}
    if named and named == tops and all(len(file.parts) > 1 for file in images):
        files: dict[str, list[str]] = {}
        for top in sorted(tops):
            files.setdefault(SPLIT_FOLDERS[top.lower()], []).append(
                glob.escape(str(path / top)) + "/**"
            )
        depth = 1
    elif any(len(file.parts) > 2 for file in images if file.parts[0] in named):
        others = sorted((tops - named) or {file.name for file in images if len(file.parts) == 1})
        raise DataError(
            f"{path} holds both split folders ({', '.join(sorted(named))}) and others "
            f"({', '.join(others[:5])}): move the others elsewhere"
        )
    else:
        files, depth = {"train": [glob.escape(str(path)) + "/**"]}, 0
    # Splits with class folders are read together, so that they number the classes alike; splits
    # without are read by themselves, since one flat split would take the labels of all.
    opened: dict[str, Any] = {}
    for flat, names in _by_labels(files, depth, images).items():
        part = {name: files[name] for name in names}
        opened |= load_dataset("imagefolder", data_files=part, drop_labels=True if flat else None)
    return opened


def _by_labels(
    files: Mapping[str, list[str]], depth: int, images: list[Path]
) -> dict[bool, list[str]]:
    """The splits by whether all their images lie flat, in no class folder."""
    groups: dict[bool, list[str]] = {}
    for name in files:
        mine = [i for i in images if depth == 0 or SPLIT_FOLDERS[i.parts[0].lower()] == name]
        groups.setdefault(all(len(i.parts) == depth + 1 for i in mine), []).append(name)
    return groups


def _open_hub(name: str) -> Mapping[str, Any]:
    from datasets import load_dataset

    try:
        with _quiet_unless_terminal():
            return dict(load_dataset(name))
    except Exception as error:
        _raise_if_unwritable(error)
        here = Path.cwd()
        raise DataError(
            f"no data at {name}: there is no such file or folder in {here}, and as a data set of "
            f"the hub it cannot be opened ({_one_line(error)}). Check the name and the network, or "
            "point --data at a local copy"
        ) from error


def _find_split(source: str, splits: Mapping[str, Any], wanted: str) -> str:
    for name in SPLIT_ALIASES.get(wanted, (wanted,)):
        if name in splits:
            return name
    raise DataError(
        f"{source} has no split '{wanted}': it has {', '.join(sorted(splits))}. Choose one of them"
    )


@contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Keep the bars of `datasets` out of log files."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def _told_in_one_line(source: str) -> Iterator[None]:
    """Turn whatever `datasets` raises about a local source into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        _raise_if_unwritable(error)
        reason = _one_line(error)
        if EMPTY_SPLIT.search(reason):
            raise DataError(
                f"{source} holds a split that is empty ({reason}): remove its files, or point "
                "--data at a whole copy"
            ) from error
        raise DataError(
            f"{source} cannot be opened as a data set ({reason}). Wanted: a folder of "
            "parquet or arrow files, of class folders with images, or one written by save_to_disk"
        ) from error


def _raise_if_unwritable(error: BaseException) -> None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            raise StorageError(
                f"datasets cannot use its own cache: {_one_line(cause)}. Free some space, or set "
                "HF_HOME to another disk"
            ) from error
        cause = cause.__cause__ or cause.__context__


def _one_line(error: BaseException) -> str:
    """The innermost reason: `datasets` wraps it in 'an error occurred while generating'."""
    while error.__cause__ is not None and type(error).__name__.startswith("DatasetGeneration"):
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
