"""The metadata of an array, made of its layout to be compared with what is stored."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdscale.cache.layout import ArrayLayout


def describes(data: bytes, layout: ArrayLayout) -> bool:
    """Whether the stored metadata of an array are those of a layout, and nothing else.

    Another version of Zarr may have written them with other white space or without what is empty.
    """
    try:
        found = {**_EMPTY, **json.loads(data, parse_float=_refuse_float)}
    except (ValueError, TypeError, RecursionError):
        return False
    return any(found == {**_EMPTY, **one} for one in _documents(layout))


def _refuse_float(text: str) -> float:
    raise ValueError(f"{text}: metadata hold whole numbers, and 2.0 would equal 2")


_EMPTY: dict[str, Any] = {"attributes": {}, "storage_transformers": []}


_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def _documents(layout: ArrayLayout) -> Iterator[dict[str, Any]]:
    """The metadata of an array; of single bytes an order of bytes may be stated or not."""
    yield _document(layout, _LITTLE)
    if np.dtype(layout.dtype).itemsize == 1:
        yield _document(layout, {"name": "bytes"})


def _document(layout: ArrayLayout, order: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an array, as Zarr's specification has them."""
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    codecs: list[dict[str, Any]] = [order, zstd, {"name": "crc32c"}]
    if layout.objects != layout.chunks:
        inside = {
            "chunk_shape": list(layout.chunks),
            "codecs": codecs,
            "index_codecs": [_LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inside}]
    grid = {"name": "regular", "configuration": {"chunk_shape": list(layout.objects)}}
    fill_value = "NaN" if np.isnan(layout.fill_value) else layout.fill_value
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "dimension_names": list(layout.dimension_names),
    }
