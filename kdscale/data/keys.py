"""A key for each image of a set: its content in 64 bits, whatever its place and its label.

The fingerprint of a set says that two of them differ; their keys say in which images.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from kdscale.data.encoded import EncodedImages

if TYPE_CHECKING:
    from kdscale.data.images import ImageSet

_ROWS = 1024  # copied at once from the memory map


def kind_of(images: "ImageSet") -> str:
    """What the keys are of: `pixels`, or the bytes of `encoded` images, as the fingerprint is."""
    return "pixels" if images.one_size else "encoded"


def image_keys(images: "ImageSet") -> np.ndarray:
    """uint64 [N]: the key of each image, as stored beside decoded images or computed."""
    if isinstance(images.pixels, EncodedImages):
        return _joined(keys_of(batch) for batch in images.pixels.split.read())
    if images.keys is not None:
        return images.keys
    parts = range(0, images.num_samples, _ROWS)
    return _joined(pixel_keys(images.pixels[start : start + _ROWS]) for start in parts)


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


def _joined(parts: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
