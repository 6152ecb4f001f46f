"""A key for each image of a set: its content in 64 bits, whatever its place and its label.

Fingerprints of two sets differ or not; their keys find the images that differ.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from kdscale.atomic_write import write_durably
from kdscale.data.encoded_split import EncodedSplit
from kdscale.errors import DataError, KdscaleError
from kdscale.regular_files import read_inside

_ROWS = 1024  # copied at once from the memory map


def keys_of_store(pixels: np.ndarray) -> np.ndarray:
    """uint64 [N]: keys of decoded images [N, C, H, W], read some rows at a time."""
    parts = range(0, len(pixels), _ROWS)
    return _joined(pixel_keys(pixels[start : start + _ROWS]) for start in parts)


def encoded_keys(split: EncodedSplit) -> np.ndarray:
    """uint64 [N]: keys of images as they are encoded."""
    return _joined(keys_of(batch) for batch in split.read())


def pixel_keys(pixels: np.ndarray) -> np.ndarray:
    """uint64 [N]: keys of decoded images, uint8 [N, C, H, W]; their shape is part of them."""
    shape = np.array(pixels.shape[1:], dtype="<u4").tobytes()
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return keys_of(rows, shape)


def keys_of(contents: "Iterable[bytes] | np.ndarray", before: bytes = b"") -> np.ndarray:
    """uint64: of each content the first 8 bytes of its SHA-256, read as a little-endian number."""
    start = hashlib.sha256(before)
    keys = bytearray()
    for content in contents:
        one = start.copy()
        one.update(content)
        keys += one.digest()[:8]
    return np.frombuffer(bytes(keys), dtype="<u8")


class RowCheck:
    """Compares stored pixels with their keys, each sample once, when it is first used.

    For stores that are too large to be hashed at every opening. It hashes the copy that is used,
    not the file once more: about 5 us for a CIFAR-10 image, in the first epoch alone.

    Args:
        keys: uint64 [N], as `pixel_keys` gave them when the pixels were written.
        folder: the store's, for messages.
    """

    def __init__(self, keys: np.ndarray, folder: Path) -> None:
        self._keys, self._folder = keys, folder
        self._unchecked = np.ones(len(keys), dtype=bool)
        self.pending = len(keys)
        """Number of samples that are not checked yet."""

    def __call__(self, index: np.ndarray, pixels: np.ndarray) -> None:
        """Check uint8 pixels [B, C, H, W] of the samples `index`, int64 [B].

        Raises:
            DataError: naming samples that are not what was written.
        """
        fresh = self._unchecked[index]
        if not fresh.any():
            return
        samples = index[fresh]
        bad = samples[pixel_keys(pixels[fresh]) != self._keys[samples]]
        if len(bad):
            named = ", ".join(map(str, sorted(set(bad.tolist()))[:5]))
            raise DataError(
                f"the decoded images in {self._folder} are damaged: {len(bad)} of the samples used "
                f"now are not what was written (numbers {named}); remove that folder, and the "
                "images are decoded again; what was saved of a run stays"
            )
        self._unchecked[samples] = False
        self.pending -= len(np.unique(samples))

    def check_all(self, pixels: np.ndarray) -> None:
        """Check all samples, of pixels [N, C, H, W].

        Raises:
            DataError: see above.
        """
        for start in range(0, len(pixels), _ROWS):
            rows = pixels[start : start + _ROWS]
            self(np.arange(start, start + len(rows)), rows)


def write_keys(note: Path, keys: np.ndarray) -> None:
    """Write the keys of images that stay encoded beside their headers; the name has their hash."""
    data = keys.astype("<u8").tobytes()
    write_durably(note.with_name(f"{note.stem}.{_hash(data)}.keys"), data)


def read_keys(note: Path, num_samples: int) -> np.ndarray | None:
    """Return the keys that `write_keys` wrote; None where there are none that are sound."""
    for file in note.parent.glob(f"{note.stem}.*.keys"):
        try:
            data = read_inside(file.parent, file.name, limit=8 * num_samples)
        except (OSError, KdscaleError):
            continue
        if file.name.split(".")[-2] == _hash(data) and len(data) == 8 * num_samples:
            return np.frombuffer(data, dtype="<u8")
    return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _joined(parts: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
