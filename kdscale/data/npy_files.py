"""NumPy files whose type and shape are known before they are read.

Their headers are compared, not parsed: what NumPy raises of a damaged one has no end.
"""

import io
import math
import os
from pathlib import Path

import numpy as np

from kdscale.regular_files import path_inside, read_inside


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what `numpy.save` writes before the bytes of an array."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """Return what `numpy.save` writes of an array in C order."""
    return npy_header(array.dtype.str, array.shape) + array.tobytes()


def read_array(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array, which cannot be written to; errors as of `map_array`."""
    header = npy_header(dtype, shape)
    data = read_inside(folder, name, limit=_size(header, dtype, shape))
    if len(data) != _size(header, dtype, shape) or not data.startswith(header):
        raise _other(name)
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape)


def map_array(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array into memory; it cannot be written to.

    Args:
        folder: the folder that the file has to stay in.
        name: of the file.
        dtype: as in a header, such as "<i8".
        shape: of the array.

    Raises:
        UnsafePathError: the file is a link or a special file, or (when read) too large.
        ValueError: it does not hold an array of this type and shape.
        OSError: it cannot be read.
    """
    header = npy_header(dtype, shape)
    with path_inside(folder, name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != _size(header, dtype, shape) or file.read(len(header)) != header:
            raise _other(name)
        return np.memmap(file, dtype, "r", len(header), shape)


def _size(header: bytes, dtype: str, shape: tuple[int, ...]) -> int:
    return len(header) + math.prod(shape) * np.dtype(dtype).itemsize


def _other(name: str) -> ValueError:
    return ValueError(f"{name} has another header or size than was written")
