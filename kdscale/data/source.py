"""Where images come from: a file, a folder or the hub; what kind it is, and the split in it."""

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.class_names import read_class_names
from kdscale.data.columns import (
    choose_classes,
    find_image_column,
    find_label_column,
    read_labels,
    rename_classes,
)
from kdscale.data.dataset_card import config_error, has_card
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.image_cells import image_cells, resolve_paths
from kdscale.data.image_folder import open_image_folder
from kdscale.data.listing import TABLE_SUFFIXES, Listing, list_folder
from kdscale.data.metadata_files import open_metadata_folder
from kdscale.data.path_patterns import files_of_pattern, is_pattern
from kdscale.data.saved_sets import is_saved, open_saved
from kdscale.data.split_cut import SplitCut, check_cut, cut_split
from kdscale.data.splits import SPLIT_FOLDERS, find_split, same_split
from kdscale.data.table_files import (
    check_shards,
    open_table_files,
    open_table_folder,
    splits_of_names,
)
from kdscale.data.tar_files import TarSplit
from kdscale.errors import DataError, KdscaleError, StorageError
from kdscale.formatting import first_few, number_of, reason_of
from kdscale.regular_files import check_regular

HUB_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)?")
EMPTY_SPLIT = re.compile("corresponds to no data|BatchSize must be greater than 0")
"""Messages of `datasets` about a split without rows."""
UNWRITABLE = frozenset((errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM))
_CONFIG_PROBLEM = re.compile(
    r"(?:Config name is missing|BuilderConfig .* not found).*?\[(.*?)\]", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Which columns, classes and levels of a source are read."""

    image_column: str | None = None
    """Column of images; None = it is found."""
    label_column: str | None = None
    """Column of labels; None = it is found."""
    classes: Sequence[str | int] | None = None
    """Classes whose rows are read (names, or labels as integers), renumbered in this order; None =
    all. Where there are no labels at all, merely the names of the classes."""
    unlabelled: tuple[str, ...] = ()
    """Splits that are read without labels; their folders may be of any depth."""
    class_names: str | None = None
    """File of class names, as of `kdscale.data.class_names.read_class_names`; None = the source's
    own names, or numbers."""
    config: str | None = None
    """Configuration of a data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub; None = the newest."""
    grey_range: tuple[float, float] | None = None
    """Levels of black and white in grey images of more than 8 bits; None = 0 and 65535, if the
    images use that range."""
    cut: SplitCut | None = None
    """Part of the split that is read, where it is cut in two; None = the whole split."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """All splits of a source."""

    splits: Mapping[str, Any]
    """`datasets.Dataset` by name."""
    folders: tuple[Path, ...] = ()
    """Where the files lie that rows of tables name; relative paths are below the first."""
    listing: Listing | None = None
    """The files of a folder; None of another source."""
    read: tuple[str, ...] = ()
    """Those of them that were read."""
    tars: Mapping[str, TarSplit] = field(default_factory=dict)
    """The tars of each split; empty of another source."""


def open_source(
    source: str, *, split: str, require_labels: bool, options: SourceOptions
) -> EncodedSplit:
    """Open a source, find split, columns and classes; arguments as of `load_images`."""
    opened = _open(source, options)
    found = find_split(source, opened.splits, split)
    if options.cut is not None:
        check_cut(source, opened.splits, found, options.cut)
    dataset = opened.splits[found]
    place = f"split '{found}' of {source}"
    if len(dataset) == 0:
        raise DataError(f"{place} is empty: choose another split or point --data at a whole copy")
    image_column = find_image_column(dataset.features, options.image_column, place)
    label_column = None
    if found not in options.unlabelled:
        label_column = find_label_column(
            dataset.features, options.label_column, place, required=require_labels
        )
    labels = read_labels(opened.splits, found, label_column, place)
    labelled_part = options.cut is not None and options.cut.test
    without = np.flatnonzero(labels.values < 0)
    if require_labels and len(without) and not labelled_part:
        raise DataError(
            f"{len(without)} of the {number_of(len(dataset), 'row')} of {place} have no label "
            f"(column '{label_column}'), the first of them row {without[0]}: remove them, choose "
            "another split, or distil without labels (hard_weight = 0)"
        )
    if options.class_names is not None:
        named = read_class_names(Path(options.class_names).expanduser())
        labels = rename_classes(labels, named, place)
    rows, values, names = choose_classes(labels, options.classes, place)
    cells, files = _cells(opened, found, image_column, source)
    encoded = EncodedSplit(
        cells=cells,
        rows=rows,
        labels=values,
        classes=names,
        name=source,
        split=found,
        passed_over=_passed_over(opened, found, image_column, source),
        num_files=len(files),
        grey_range=options.grey_range,
        cells_per_row=2 if opened.tars else 1,
    )
    return encoded if options.cut is None else cut_split(encoded, options.cut)


def has_split(source: str, split: str, options: SourceOptions) -> bool:
    """Return whether a source has a split; "test" also finds a validation split."""
    return same_split(_open(source, options).splits, split) is not None


def _cells(opened: _Opened, split: str, column: str, source: str) -> tuple[Any, list[str]]:
    """The image column of a split, and the files that its rows name."""
    if opened.tars:
        return opened.tars[split].image_cells(column), []
    table = opened.splits[split].select_columns([column]).with_format("arrow")[:]
    cells = image_cells(table.column(0))
    if not opened.folders:
        return cells, []
    return resolve_paths(cells, opened.folders, f"split '{split}' of {source}")


def _passed_over(opened: _Opened, split: str, column: str, source: str) -> tuple[str, ...]:
    """Phrases about the files of the source that were not read, and members of a split's tars."""
    members = opened.tars[split].passed_over(column) if opened.tars else ()
    if opened.listing is None:
        return members
    root, read = opened.listing.root, [*opened.read]
    if opened.folders and opened.listing.of("image"):  # which may be those that rows name
        for split, dataset in opened.splits.items():
            if column in dataset.column_names:
                files = _cells(opened, split, column, source)[1]
                read += [os.path.relpath(file, root) for file in files]
    return (*opened.listing.passed_over(read), *members)


def _open(source: str, options: SourceOptions) -> _Opened:
    path = Path(source).expanduser()
    if path.exists() or is_pattern(source):
        if options.revision is not None:
            raise DataError(
                f"data.revision is {options.revision!r}, but {source} is local, without revisions: "
                "leave it out"
            )
        with _quiet_unless_terminal(), _explained(source):
            opened = _open_folder(path, options) if path.is_dir() else _open_files(path, options)
    elif HUB_NAME.fullmatch(source) and path.suffix not in TABLE_SUFFIXES:
        opened = _open_hub(source, options.config, options.revision)
    else:
        raise DataError(
            f"no data at {source}: there is no such file or folder. Correct the path, or point "
            "--data at a local copy"
        )
    if not opened.splits:
        raise DataError(f"{source} holds no images: point --data at a folder that does")
    return opened


def _open_files(path: Path, options: SourceOptions) -> _Opened:
    """Open one file, or those that a pattern stands for."""
    files = [path] if path.exists() else files_of_pattern(str(path))
    for file in files:
        check_regular(file)
        if file.suffix.lower() not in (*TABLE_SUFFIXES, ".tar"):
            raise DataError(
                f"{file} cannot be used as a data set: wanted a .parquet, .arrow or .tar file, or "
                "a folder"
            )
    _refuse_config(options, f"{path} names files")
    root = Path(os.path.commonpath([file.parent for file in files]))
    tables = [os.path.relpath(file, root) for file in files]
    if files == [path]:
        check_shards(str(root), tables)
        word = re.split(r"[^a-z]", path.stem.lower())[0]
        splits = {SPLIT_FOLDERS.get(word, "train"): tables}
    else:
        splits = splits_of_names(root, tables)
    return _opened(open_table_files(root, splits, options.label_column), _both(root))


def _refuse_config(options: SourceOptions, what: str) -> None:
    if options.config is not None:
        raise DataError(
            f"data.config is {options.config!r}, but {what}, without configurations: leave it out"
        )


def _opened(
    splits: Mapping[str, Any],
    folders: tuple[Path, ...],
    listing: Listing | None = None,
    read: Sequence[str] = (),
) -> _Opened:
    """Return splits of table files, whose tars are set apart."""
    tars = {name: one for name, one in splits.items() if isinstance(one, TarSplit)}
    tables = {name: tars[name].dataset if name in tars else one for name, one in splits.items()}
    return _Opened(tables, folders, listing, tuple(read), tars)


def _open_folder(path: Path, options: SourceOptions) -> _Opened:
    folders = _both(path)
    if is_saved(path):
        _refuse_config(options, f"{path} was written by save_to_disk")
        return _Opened(open_saved(path), folders)
    path = path.resolve()
    listing = list_folder(path)
    if not listing.files:
        raise DataError(f"{path} is an empty folder: name a folder with images in it")
    images, tables = listing.of("image"), listing.of("table")
    if images and tables and not has_card(path):
        raise DataError(
            f"{path} holds both images ({first_few(images)}) and tables ({first_few(tables)}): "
            "move those that are not meant elsewhere, or point --data at one of them"
        )
    if images and not tables:
        _refuse_config(options, f"{path} is a folder of images")
        return _open_images(listing, options.unlabelled)
    if tables or listing.of_suffix(".tar"):
        splits, read = open_table_folder(listing, options.config, options.label_column)
        return _opened(splits, folders, listing, read)
    raise DataError(
        f"{path} holds no images, nor tables of images: it has {first_few(listing.files)}. Wanted "
        "parquet or arrow files, or folders of images; unpack archives first"
    )


def _open_images(listing: Listing, unlabelled: Sequence[str]) -> _Opened:
    metadata = listing.of("metadata")
    splits = open_metadata_folder(listing) if metadata else open_image_folder(listing, unlabelled)
    return _Opened(splits, (), listing, (*listing.of("image"), *metadata))


def _both(folder: Path) -> tuple[Path, ...]:
    """A folder without links, and as it was named."""
    return folder.resolve(), folder.absolute()


def _open_hub(name: str, config: str | None, revision: str | None) -> _Opened:
    from datasets import config as settings
    from datasets import load_dataset
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        with _quiet_unless_terminal():
            splits = dict(load_dataset(name, config, revision=revision))
        stored = (settings.HF_CACHE_HOME, settings.HF_DATASETS_CACHE, HF_HUB_CACHE)
        return _Opened(splits, tuple(folder for one in stored for folder in _both(Path(one))))
    except Exception as error:
        _raise_if_unwritable(error)
        if match := _CONFIG_PROBLEM.search(str(error)):
            names = [one.strip(" '\"") for one in match[1].split(",")]
            raise config_error(name, config, names) from error
        here = Path.cwd()
        raise DataError(
            f"no data at {name}: there is no such file or folder in {here}, and as a data set of "
            f"the hub it cannot be opened ({_one_line(error)}). Check the name and the network, or "
            "point --data at a local copy"
        ) from error


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
def _explained(source: str) -> Iterator[None]:
    """Turn whatever `datasets` raises about a local source into a DataError."""
    try:
        yield
    except KdscaleError:
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
    return f"{type(error).__name__}: {reason_of(error)}"
