"""A column of images as `pyarrow` structs of bytes and path, whatever type its source has."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.errors import DataError
from kdscale.formatting import printable

_FIELDS = ["bytes", "path"]


def cells_of_files(paths: list[str]) -> Any:
    """Return images that lie in files as a `pyarrow.StructArray`."""
    import pyarrow as pa

    no_bytes = pa.nulls(len(paths), pa.binary())
    return pa.StructArray.from_arrays([no_bytes, pa.array(paths, pa.string())], _FIELDS)


def cells_between(content: Any, spans: np.ndarray, names: Sequence[str]) -> Any:
    """Return parts of a buffer as a `pyarrow.StructArray`, without a copy.

    Args:
        content: a `pyarrow.Buffer`.
        spans: int64 [N, 2], ascending: begin and end of each part.
        names: of the parts.

    Returns:
        2 N cells: part n is cell 2 n + 1, and the nameless cell before it is what lies between.
    """
    import pyarrow as pa

    offsets = pa.py_buffer(np.concatenate([[0], spans.reshape(-1)]).astype(np.int64))
    parts = pa.Array.from_buffers(pa.large_binary(), spans.size, [None, offsets, content])
    paths = [name for part in names for name in (None, part)]
    return pa.StructArray.from_arrays([parts, pa.array(paths, pa.string())], _FIELDS)


def image_cells(column: Any) -> Any:
    """Return a `pyarrow.ChunkedArray` of binary data, or of structs with it, as structs of both."""
    import pyarrow as pa

    chunks = []
    for chunk in column.chunks:
        fields = [field.name for field in chunk.type] if chunk.type.num_fields else []
        parts = dict(zip(fields, chunk.flatten(), strict=True)) if fields else {"bytes": chunk}
        images = parts["bytes"]
        if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
            images = pa.array(images.to_pylist(), pa.large_binary())  # views, or nothing at all
        paths = parts.get("path", pa.nulls(len(chunk), pa.string())).cast(pa.string())
        chunks.append(pa.StructArray.from_arrays([images, paths], _FIELDS))
    return pa.chunked_array(chunks)


def resolve_paths(cells: Any, folders: Sequence[Path], place: str) -> tuple[Any, list[str]]:
    """Return `image_cells` with full paths, and the paths of all images that lie in files.

    Args:
        cells: a path beside bytes is a name alone, and stays.
        folders: where files may lie; relative paths are below the first.
        place: the split, for messages.

    Raises:
        DataError: a path leads elsewhere; its row is named.
    """
    import pyarrow as pa

    chunks, files, start = [], [], 0
    for chunk in cells.chunks:
        images, names = chunk.flatten()
        paths = names.to_pylist() if images.null_count else []
        for row, path in enumerate(paths):
            if path and not images[row].is_valid:
                paths[row] = _resolved(path, folders, f"row {start + row} of {place}")
                files.append(paths[row])
        if paths:
            chunk = pa.StructArray.from_arrays([images, pa.array(paths, pa.string())], _FIELDS)
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
