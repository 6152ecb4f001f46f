"""The key of a split's images: a hash of the encoded images, labels and class names."""

import hashlib
from dataclasses import dataclass

import numpy as np

from kdscale.data.deep_images import may_be_deep
from kdscale.data.encoded_split import ROWS_PER_READ, EncodedSplit
from kdscale.documents import checksum_of
from kdscale.errors import DataError

FORMAT = "kdscale-images"
VERSION = 1  # of the files of decoded images, and of the rules in decode.py


@dataclass(frozen=True, slots=True)
class SourceKey:
    """What decides the decoded content of a split; columns and subset are implied by it."""

    source: str
    """sha256, and the fingerprint of images that are not stored."""
    folder: str
    """Name of the folder; another one for sets that may have more than 8 bits a channel, whose
    levels older versions did not check."""


def source_key(encoded: EncodedSplit) -> SourceKey:
    """The key of a split; reads all of its encoded images."""
    images_sha256, deep = _digest_images(encoded)
    parts: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "images": images_sha256,
        "labels": array_sha256(encoded.labels),
        "classes": encoded.classes,
    }
    if not deep:
        key = checksum_of(parts)
        return SourceKey(key, key)
    if encoded.grey_range is not None:
        parts["grey_range"] = encoded.grey_range
    key = checksum_of(parts)
    return SourceKey(key, checksum_of({"source": key, "levels": "checked"}))


def _digest_images(encoded: EncodedSplit) -> tuple[str, bool]:
    """sha256 of the encoded images, those of each `ROWS_PER_READ` rows behind their sizes.

    Returns:
        The hash, and whether an image may have more than 8 bits a channel.
    """
    images, sizes = hashlib.sha256(), None
    sample, deep = 0, False
    for batch in encoded.read():
        found = np.array([len(one) for one in batch], dtype="<i8")
        if sample % ROWS_PER_READ == 0:
            rows = min(ROWS_PER_READ, len(encoded.labels) - sample)
            if sizes is None and len(batch) < rows:  # too large to be read at once
                sizes = encoded.sizes().astype("<i8")
            images.update((found if sizes is None else sizes[sample : sample + rows]).tobytes())
        if sizes is not None:
            _check_unchanged(encoded, sample, found, sizes)
        images.update(b"".join(batch))
        deep = deep or may_be_deep(batch)
        sample += len(batch)
    return images.hexdigest(), deep


def _check_unchanged(
    encoded: EncodedSplit, start: int, found: np.ndarray, sizes: np.ndarray
) -> None:
    for offset in np.flatnonzero(found != sizes[start : start + len(found)])[:1]:
        raise DataError(
            f"{encoded.place(start + offset)} has {found[offset]} bytes, and had "
            f"{sizes[start + offset]} just now: run the command again once nothing changes the data"
        )


def array_sha256(array: np.ndarray) -> str:
    """Return the SHA-256 (hex) of an array's bytes, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()
