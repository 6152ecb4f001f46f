"""Images of tables whose cells hold the path of a file in place of the image's bytes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdscale.errors import DataError
from kdscale.formatting import printable


def resolve_paths(cells: Any, folders: Sequence[Path], place: str) -> tuple[Any, list[str]]:
    """Return an image column with full paths, and the paths of all images that lie in files.

    Args:
        cells: `pyarrow.ChunkedArray`: bytes, or structs of bytes and path. A path beside bytes is
            a name alone, and stays.
        folders: where files may lie; relative paths are below the first.
        place: the split, for messages.

    Raises:
        DataError: a path leads elsewhere; its row is named.
    """
    import pyarrow as pa

    fields = [field.name for field in cells.type] if cells.type.num_fields else []
    if "path" not in fields:
        return cells, []
    chunks, files, start = [], [], 0
    for chunk in cells.chunks:
        columns = dict(zip(fields, chunk.flatten(), strict=True))
        paths = columns["path"].to_pylist() if columns["bytes"].null_count else []
        for row, path in enumerate(paths):
            if path and not columns["bytes"][row].is_valid:
                paths[row] = _resolved(path, folders, f"row {start + row} of {place}")
                files.append(paths[row])
        if paths:
            columns["path"] = pa.array(paths, columns["path"].type)
            chunk = pa.StructArray.from_arrays(list(columns.values()), fields=list(cells.type))
        chunks.append(chunk)
        start += len(chunk)
    return pa.chunked_array(chunks, cells.type), files


def _resolved(path: str, folders: Sequence[Path], row: str) -> str:
    full = os.path.normpath(folders[0] / path)
    if not any(full.startswith(f"{folder}{os.sep}") for folder in folders):
        raise DataError(
            f"{row} names {printable(path)!r} as its image, which is not below {folders[0]}, and "
            "images of a data set are read from its folder alone: copy them there, or store them "
            "in the table"
        )
    return full
