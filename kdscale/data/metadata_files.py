"""Folders of images whose samples and labels are listed in metadata.csv, .jsonl or .parquet."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdscale.data.image_cells import cells_of_files
from kdscale.data.image_folder import check_archives, find_splits
from kdscale.data.listing import Listing
from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of, reason_of

_FILE_NAME = "file_name"


def open_metadata_folder(listing: Listing) -> dict[str, Any]:
    """Each split as a `datasets.Dataset`: the image and the columns of its metadata, row by row.

    Raises:
        DataError: the metadata cannot be read, or do not list each image of the folder once.
    """
    check_archives(listing)
    splits = find_splits(listing)
    files: dict[str, list[str]] = {name: [] for name in splits}
    for file in listing.of("metadata"):
        of = [name for name, one in splits.items() if not one.top or file.startswith(f"{one.top}/")]
        if not of:
            raise DataError(
                f"{listing.root}: {file} lies beside the folders of the splits, which it cannot "
                "describe: place one in each split's folder, or move it elsewhere"
            )
        files[of[0]].append(file)
    tables = {name: [_read(listing.root / one) for one in those] for name, those in files.items()}
    _check_all_listed(listing, (str(path) for parts in tables.values() for path in _paths(parts)))
    return {name: _dataset(parts) for name, parts in tables.items() if parts}


def _read(path: Path) -> Any:
    """A metadata file as a `pyarrow.Table` whose file names are full paths."""
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    readers = {".csv": csv.read_csv, ".jsonl": json.read_json, ".parquet": parquet.read_table}
    try:
        table = readers[path.suffix.lower()](str(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as metadata of images: {reason_of(error)}"
        ) from error
    if _FILE_NAME not in table.column_names:
        raise DataError(
            f"{path} has no column {_FILE_NAME!r}: it has {first_few(table.column_names)}. Name "
            "the column of paths so, or rename the file if it is not about images"
        )
    place = table.column_names.index(_FILE_NAME)
    names = table.column(place).cast("string").to_pylist()
    paths = [os.path.normpath(path.parent / (name or "?")) for name in names]
    return table.set_column(place, _FILE_NAME, pa.array(paths, pa.string()))


def _paths(tables: Iterable[Any]) -> Iterable[str]:
    for table in tables:
        yield from table.column(_FILE_NAME).to_pylist()


def _dataset(tables: list[Any]) -> Any:
    import datasets
    import pyarrow as pa

    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    cells = cells_of_files(list(_paths([table])))
    table = table.drop_columns(_FILE_NAME).append_column("image", cells)
    table = table.replace_schema_metadata(None)
    columns: Mapping[str, Any] = datasets.Features.from_arrow_schema(table.schema)
    features = datasets.Features({**columns, "image": datasets.Image()})
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=info)


def _check_all_listed(listing: Listing, paths: Iterable[str]) -> None:
    """Compare the images that metadata files list with those in the folder.

    Raises:
        DataError: an image is not listed, listed twice, or not there.
    """
    times = Counter(paths)
    present = {os.path.normpath(listing.root / file): file for file in listing.of("image")}
    metadata = first_few(listing.of("metadata"))
    if missing := sorted(present[path] for path in present.keys() - times.keys()):
        raise DataError(
            f"{listing.root}: {len(missing):,} of {number_of(len(present), 'image')} "
            f"({first_few(missing)}) are in no metadata file ({metadata}): list them or move them "
            "elsewhere, or remove the metadata to take classes from folders"
        )
    if absent := sorted(times.keys() - present.keys()):
        raise DataError(
            f"{listing.root}: {metadata} list {number_of(len(absent), 'image')} that are not in "
            f"the folder ({first_few(absent)}): restore them, or correct the list"
        )
    if twice := [present[path] for path, number in sorted(times.items()) if number > 1]:
        raise DataError(
            f"{listing.root}: {number_of(len(twice), 'image')} ({first_few(twice)}) listed twice "
            "in metadata files: list each once"
        )
