"""Data sets written by `save_to_disk` of `datasets`."""

from pathlib import Path
from typing import Any

from kdscale.data.listing import check_no_pointer
from kdscale.documents import DAMAGE, parse_object
from kdscale.errors import DataError
from kdscale.formatting import first_few
from kdscale.regular_files import path_inside, read_document


def is_saved(path: Path) -> bool:
    """Whether a folder holds a saved data set or saved splits."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def open_saved(path: Path) -> dict[str, Any]:
    """The splits of a saved data set.

    Raises:
        DataError: a file is missing, or lies there without belonging to it.
    """
    from datasets import load_from_disk

    if (path / "dataset_dict.json").exists():
        for state in sorted(path.glob("*/state.json")):
            _check_files(state)
        return dict(load_from_disk(str(path)))
    _check_files(path / "state.json")
    dataset = load_from_disk(str(path))
    return {str(dataset.split or "train"): dataset}


def _check_files(state: Path) -> None:
    """The files of one split are those that its state names, all of them and no others."""
    folder = state.parent
    try:
        listed = [one["filename"] for one in parse_object(read_document(state))["_data_files"]]
    except DAMAGE as error:
        raise DataError(
            f"{state} names no data files ({error}): save the data set again"
        ) from error
    if not listed:
        raise DataError(f"{folder} is empty: save it again with rows in it")
    present = {path.name for path in folder.glob("*.arrow") if not path.name.startswith("cache-")}
    if missing := sorted(set(listed) - present):
        raise DataError(
            f"{folder} misses {len(missing)} of its {len(listed)} files ({first_few(missing)}): "
            "copy the whole folder, or save the data set again"
        )
    if others := sorted(present - set(listed)):
        raise DataError(
            f"{folder} holds files that are not part of the saved data set ({first_few(others)}): "
            "move them elsewhere, or save the data set again"
        )
    for name in listed:
        check_no_pointer(path_inside(folder, name))
