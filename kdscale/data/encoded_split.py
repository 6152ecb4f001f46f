"""The chosen rows of one split, images still encoded, read within a bounded amount of memory."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.errors import DataError
from kdscale.formatting import printable
from kdscale.regular_files import read_regular

ROWS_PER_READ = 1024
BYTES_PER_READ = 64 << 20
"""Encoded bytes after which `read` yields a batch; one more image may come on top."""


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The chosen rows of one split, images still encoded, labels settled."""

    cells: Any
    """The image column of the whole split, as of `kdscale.data.image_cells.image_cells`, or as of
    `cells_between` where `cells_per_row` is 2."""
    rows: np.ndarray
    """Row in the split of each sample, ascending."""
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    split: str
    passed_over: tuple[str, ...] = ()
    """Phrases about the files of the source that were not read."""
    num_files: int = 0
    """Number of samples whose image lies in a file that a table names."""
    grey_range: tuple[float, float] | None = None
    """Levels of black and white in images of more than 8 bits a pixel; None: 0 and 65535."""
    cells_per_row: int = 1
    """Number of cells for each row, the last of which is the image."""
    cut: str = ""
    """Phrase about the part of the split that these rows are; empty of a whole split."""

    def read(self) -> Iterator[list[bytes]]:
        """The encoded images in order, `ROWS_PER_READ` or about `BYTES_PER_READ` at a time."""
        batch: list[bytes] = []
        size = sample = 0
        for cells in self._cells():
            for cell in cells:
                image = cell if cell and isinstance(cell, bytes) else self._bytes(sample, cell)
                batch.append(image)
                size += len(image)
                sample += 1
                if size >= BYTES_PER_READ or sample % ROWS_PER_READ == 0:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def sizes(self) -> np.ndarray:
        """int64 [N]: bytes of each encoded image, without reading it; 0 where there is none."""
        parts = [_sizes(chunk, local) for chunk, local in self._chunks()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def read_one(self, sample: int) -> bytes:
        """The encoded image of one sample; any number of threads may call.

        Raises:
            DataError: there is none, or its file cannot be read.
        """
        cell = self._cell(sample).as_py()
        return self._bytes(sample, cell["path"] if cell["bytes"] is None else cell["bytes"])

    def place(self, sample: int) -> str:
        """How messages name a sample: its row, and its file where it has one."""
        file = self._file(sample)
        where = f" ({printable(file)})" if file else ""
        return f"row {self.rows[sample]} of split '{self.split}' of {self.name}{where}"

    def short_place(self, sample: int) -> str:
        """How messages name a sample of a split that is known: its file, else its row."""
        return printable(self._file(sample)) or f"row {self.rows[sample]}"

    def _file(self, sample: int) -> str:
        return self._cell(sample)["path"].as_py() or ""

    def _cell(self, sample: int) -> Any:
        return self.cells[int(self._places(self.rows[sample]))]

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """The cell of each row's image."""
        return rows * self.cells_per_row + self.cells_per_row - 1

    def _chunks(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Each chunk of the column, and the chosen rows in it, counted from its start."""
        start, places = 0, self._places(self.rows)
        for chunk in self.cells.chunks:
            first, last = np.searchsorted(places, (start, start + len(chunk)))
            if last > first:
                yield chunk, places[first:last] - start
            start += len(chunk)

    def _cells(self) -> Iterator[list[bytes | str | None]]:
        """Yield the chosen cells in order, of each chunk or about `BYTES_PER_READ` at a time."""
        for chunk, local in self._chunks():
            if chunk.nbytes <= BYTES_PER_READ:
                yield _cells(_select(chunk, local))
                continue
            ends = np.cumsum(_bytes_inside(chunk, local))
            first = 0
            while first < len(local):
                begun = ends[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(ends, begun + BYTES_PER_READ)))
                yield _cells(_select(chunk, local[first:last]))
                first = last

    def _bytes(self, sample: int, cell: bytes | str | None) -> bytes:
        if not cell:
            raise DataError(f"{self.place(sample)} holds no image: remove the row from the data")
        if isinstance(cell, bytes):
            return cell
        try:
            return read_regular(Path(cell))
        except OSError as error:
            raise DataError(
                f"{self.place(sample)} cannot be read: {cell}: {error.strerror or error}"
            ) from error


def _select(chunk: Any, local: np.ndarray) -> Any:
    if int(local[-1]) - int(local[0]) + 1 == len(local):
        return chunk.slice(int(local[0]), len(local))  # without a copy
    return chunk.take(local)


def _cells(column: Any) -> list[bytes | str | None]:
    """Bytes, else the path of the file, of each cell of an image column."""
    images, paths = (part.to_pylist() for part in column.flatten())  # None where the cell is
    return [path if one is None else one for one, path in zip(images, paths, strict=True)]


def _bytes_inside(chunk: Any, local: np.ndarray) -> np.ndarray:
    """Return the bytes inside each cell, int64: 0 for paths and for none."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.binary_length(chunk.flatten()[0]), 0)
    chosen: np.ndarray = lengths.to_numpy(zero_copy_only=False).astype(np.int64)[local]
    return chosen


def _sizes(chunk: Any, local: np.ndarray) -> np.ndarray:
    """Bytes of each image, inside the cell or in its file."""
    sizes = _bytes_inside(chunk, local)
    elsewhere = np.flatnonzero(sizes == 0)
    if len(elsewhere):
        for place, cell in zip(elsewhere, _cells(_select(chunk, local[elsewhere])), strict=True):
            if isinstance(cell, str):
                with suppress(OSError):  # `read` raises it, and names the row
                    sizes[place] = Path(cell).stat().st_size
    return sizes
