"""Parquet, Arrow and tar files: which split each belongs to, and whether all are there.

The files are counted here before `datasets` opens them: left to itself it drops those whose names
name no split where others do, reads those that name two twice, and takes the most common suffix for
the format.
"""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kdscale.data.dataset_card import has_card, open_by_card, state_of
from kdscale.data.listing import TABLE_SUFFIXES, Listing, check_no_pointer
from kdscale.data.splits import SPLIT_FOLDERS, split_words
from kdscale.data.table_schemas import check_same_class_names
from kdscale.data.tar_files import open_tars
from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of

_SHARD = re.compile(r"(?P<name>.*?)[-_.](?P<index>\d{5})-of-(?P<total>\d{5})(?P<rest>\W.*)?")


def open_table_folder(
    listing: Listing, config: str | None, label: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The splits of a folder of table files, and the files that were read, relative to it.

    Args:
        listing: the folder.
        config: the configuration to read, of those that the folder's README.md names.
        label: the column of labels, as of `open_tars`.

    Raises:
        DataError: files of several formats or with other class names, a shard that is missing, or a
            file of no or two splits.
    """
    tables = listing.of("table") or listing.of_suffix(".tar")
    check_shards(str(listing.root), tables)
    if has_card(listing.root):
        _check_files(listing.root, tables)
        return open_by_card(listing, tables, config)
    if config is not None:
        raise DataError(
            f"data.config is {config!r}, but {listing.root} has no README.md that names "
            "configurations: leave it out, or point --data at a folder that has"
        )
    return open_table_files(listing.root, splits_of_names(listing.root, tables), label), tables


def open_table_files(
    root: Path, splits: Mapping[str, Sequence[str]], label: str | None
) -> dict[str, Any]:
    """Open table files of one format; all of their rows are read.

    Args:
        root: folder of the files.
        splits: their paths below it, all of one format, by split.
        label: the column of labels, as of `open_tars`.

    Returns:
        A `datasets.Dataset` of each split, or its `TarSplit`.

    Raises:
        DataError: a file is damaged, or has other class names.
    """
    tables = [file for files in splits.values() for file in files]
    _check_files(root, tables)
    suffix = PurePosixPath(tables[0]).suffix.lower()
    if suffix == ".tar":
        return dict(open_tars(root, splits, label))
    return _open_by_datasets(TABLE_SUFFIXES[suffix], root, splits)


def _check_files(root: Path, tables: Sequence[str]) -> None:
    for file in tables:
        check_no_pointer(root / file)
    check_same_class_names(root, tables)


def _open_by_datasets(kind: str, root: Path, splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    from datasets import load_dataset

    paths = {name: [root / file for file in files] for name, files in splits.items()}
    opened = load_dataset(
        kind,
        data_files={
            name: [glob.escape(str(path.resolve())) for path in files]
            for name, files in paths.items()
        },
        description=state_of([path for files in paths.values() for path in files]),
    )
    if kind == "parquet":
        _check_rows(opened, paths)
    return dict(opened)


def check_shards(place: str, files: Iterable[str]) -> None:
    """Refuse files named `NAME-00001-of-00003.SUFFIX` of which some are missing.

    Raises:
        DataError: naming the first that is missing.
    """
    found: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        folder, _, name = file.rpartition("/")
        if match := _SHARD.fullmatch(name):
            shards = found[folder, match["name"]]
            shards[int(match["total"])].add(int(match["index"]))
    for (folder, name), by_total in found.items():
        where = f"{folder}/{name}" if folder else name
        if len(by_total) > 1:
            totals = " and ".join(f"of {total}" for total in sorted(by_total))
            raise DataError(
                f"{place} holds shards {totals} of {where}: move those of the older copy elsewhere"
            )
        ((total, indices),) = by_total.items()
        missing = sorted(set(range(total)) - indices)
        if missing:
            example = f"{where}-{missing[0]:05}-of-{total:05}"
            raise DataError(
                f"{place} holds {len(indices)} of the {number_of(total, 'shard')} of {where}; "
                f"missing: {example}{' and others' if len(missing) > 1 else ''}. Download the "
                "rest, or, where this part is meant, rename its files"
            )


def splits_of_names(root: Path, tables: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split, by folder or name; all are of "train" where none names one.

    Raises:
        DataError: files of several formats, or one that names no split where others do, or two.
    """
    formats = {PurePosixPath(file).suffix.lower(): file for file in tables}
    if len(formats) > 1:
        raise DataError(
            f"{root} holds files of several formats ({first_few(formats.values())}): move those "
            "that are not meant elsewhere"
        )
    named = {file: _split_of(root, file) for file in tables}
    unnamed = [file for file, split in named.items() if split is None]
    if unnamed and len(unnamed) < len(tables):
        raise DataError(
            f"{root}: the name of {first_few(unnamed)} names no split, while those of other files "
            "do: rename to train, validation or test, or move elsewhere"
        )
    splits: dict[str, list[str]] = defaultdict(list)
    for file, split in named.items():
        splits[split or "train"].append(file)
    for split, files in splits.items():
        _check_one_family(root, split, files)
    return splits


def _split_of(root: Path, file: str) -> str | None:
    """The split that a file's folder or name stands for.

    Raises:
        DataError: it stands for several.
    """
    *folders, name = file.split("/")
    for folder in folders:
        if folder.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[folder.lower()]
    stem = PurePosixPath(name).stem
    words = split_words(stem)
    if len(words) > 1:
        raise DataError(
            f"{root}/{file} names several splits ({', '.join(words)}): rename it to one of them"
        )
    if words:
        return words[0]
    shard = _SHARD.fullmatch(name)
    return shard["name"] if shard else None


def _check_one_family(root: Path, split: str, files: Sequence[str]) -> None:
    """The files of a split are shards of one another: names differ in numbers and hashes only."""
    families: dict[str, str] = {}
    for file in files:
        *folders, name = file.split("/")
        top = [one for one in folders if one.lower() not in SPLIT_FOLDERS]
        within = top if len(top) == len(folders) else []  # below a split's folder all belong to it
        family = "/".join([*within, re.sub(r"[0-9a-f]{8,}|\d+", "#", name.lower())])
        families.setdefault(family, file)
    if len(families) > 1:
        raise DataError(
            f"{root}: split {split!r} would be read from files that are no shards of one another "
            f"({first_few(families.values())}): move those that are not meant elsewhere, or rename "
            "them to part-0, part-1, ..."
        )


def _check_rows(opened: Mapping[str, Any], paths: Mapping[str, Sequence[Path]]) -> None:
    import pyarrow.parquet as pq

    for name, files in paths.items():
        wanted = sum(pq.read_metadata(file).num_rows for file in files)
        if len(opened[name]) != wanted:
            raise DataError(
                f"split {name!r}: {number_of(wanted, 'row')} lie in {first_few(map(str, files))}, "
                f"but `datasets` read {len(opened[name]):,}: empty its cache (HF_HOME)"
            )
