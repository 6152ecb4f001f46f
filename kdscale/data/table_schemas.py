"""Class names that parquet and Arrow files state for their integer labels."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdscale.errors import DataError
from kdscale.formatting import first_few


def check_same_class_names(root: Path, files: Iterable[str]) -> None:
    """Refuse files that name the classes of one column differently, or in another order.

    `datasets` applies the names of one file to the integers of all files, in every split.

    Args:
        root: folder of the files.
        files: parquet and Arrow files below it; others state no class names.

    Raises:
        DataError: naming two files and the names in each.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    for file in files:
        for column, names in _class_names(root / file).items():
            other, expected = first.setdefault(column, (file, names))
            if names != expected:
                raise DataError(
                    f"{root}: column {column!r} of {file} numbers the classes "
                    f"[{first_few(names, 5)}], that of {other} [{first_few(expected, 5)}]: one "
                    "number would mean two classes. Write both files with one list of class names, "
                    "or move one of them elsewhere"
                )


def _class_names(path: Path) -> dict[str, list[str]]:
    """Class names of each ClassLabel column that a file describes, by column."""
    with suppress(ValueError, OSError):  # a damaged file is refused by who reads its rows
        info = json.loads((_schema_metadata(path) or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, Mapping)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    return {}


def _schema_metadata(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return pq.read_schema(path).metadata
    if suffix != ".arrow":
        return None
    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).schema.metadata
        except pa.ArrowInvalid:
            return pa.ipc.open_file(file).schema.metadata
