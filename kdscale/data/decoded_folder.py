"""One folder of decoded images: `pixels.npy`, `labels.npy`, `keys.npy` and `images.json`."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from kdscale.atomic_write import flush_folder, write_durably
from kdscale.data.decode import decode
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.headers import Headers
from kdscale.data.image_hashes import RowCheck, pixel_keys
from kdscale.data.npy_files import map_array, npy_bytes, npy_header, read_array
from kdscale.data.source_key import FORMAT, VERSION, array_sha256
from kdscale.documents import DAMAGE, checksum_of, parse_as, read_object, write_object
from kdscale.errors import KdscaleError
from kdscale.formatting import reason_of
from kdscale.progress import progress

VERIFIED_BYTES = 512 * 2**20
"""Bytes of pixels that are hashed at every opening (about 0.3 s at 1.7 GB/s); of more, each sample
when it is first taken."""
_DESCRIPTION = "images.json"


@dataclass(frozen=True, slots=True)
class StoredImages:
    """Content of one folder of the store, or the images of a set that is not stored."""

    pixels: np.ndarray | EncodedImages
    labels: np.ndarray
    fingerprint: str
    keys: np.ndarray | None = None
    """uint64 [N]; None where they are not stored."""
    row_check: RowCheck | None = None
    """Checks samples as they are taken; None where all are known to be sound."""
    several_frames: int = 0
    """Number of images of which only the first frame was decoded, as far as it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """Content of `images.json`."""

    format: str
    version: int
    source: str
    split: str
    shape: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]
    """N, C, H, W of the pixels."""
    classes: tuple[str, ...]
    pixels_sha256: str
    labels_sha256: str
    keys_sha256: str | None = None
    several_frames: NonNegativeInt = 0
    """Number of images with more than one frame; 0 in files of earlier versions."""
    fingerprint: str


class DamagedError(Exception):
    """A folder of decoded images is not what was written."""


def content_fingerprint(
    shape: tuple[int, ...], pixels_sha256: str, labels_sha256: str, classes: tuple[str, ...]
) -> str:
    """Identity of decoded content, from the hashes of its uint8 pixels and int64 labels."""
    return checksum_of(
        {
            "shape": list(shape),
            "pixels": pixels_sha256,
            "labels": labels_sha256,
            "classes": list(classes),
        }
    )


def write_folder(encoded: EncodedSplit, headers: Headers, folder: Path) -> None:
    """Decode a split of one size into an empty folder, and flush its files to the disk."""
    num_samples, (height, _), (width, _) = len(encoded.labels), *headers.sizes
    shape: tuple[int, ...] = (num_samples, headers.channels, 0, 0)
    digest, keys = hashlib.sha256(), np.zeros(num_samples, dtype="<u8")
    done = 0
    # Written, not memory-mapped: on a full disk a map ends the process without a message.
    with (
        (folder / "pixels.npy").open("wb") as file,
        progress(num_samples, "images", description=f"decode {encoded.split}") as bar,
    ):
        for pixels in decode(encoded, headers.channels, (height, width)):
            if file.tell() == 0:
                shape = (num_samples, *pixels.shape[1:])
                file.write(npy_header("|u1", shape))
            content = pixels.tobytes()
            file.write(content)
            digest.update(content)
            keys[done : done + len(pixels)] = pixel_keys(pixels)
            done += len(pixels)
            bar.update(len(pixels))
        _flush(file)
    write_durably(folder / "labels.npy", npy_bytes(encoded.labels))
    write_durably(folder / "keys.npy", npy_bytes(keys))
    pixels_sha256, labels_sha256 = digest.hexdigest(), array_sha256(encoded.labels)
    description = _Description(
        format=FORMAT,
        version=VERSION,
        source=encoded.name,
        split=encoded.split,
        shape=shape,  # type: ignore[arg-type]  # four numbers
        classes=encoded.classes,
        pixels_sha256=pixels_sha256,
        labels_sha256=labels_sha256,
        keys_sha256=array_sha256(keys),
        several_frames=headers.several_frames,
        fingerprint=content_fingerprint(shape, pixels_sha256, labels_sha256, encoded.classes),
    )
    write_object(folder / _DESCRIPTION, asdict(description))
    flush_folder(folder)


def open_folder(folder: Path) -> StoredImages:
    """Open a folder of decoded images, after checking what it holds.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        described = parse_as(_Description, read_object(folder / _DESCRIPTION, root=folder.parent))
        _check_description(described)
        labels = read_array(folder, "labels.npy", "<i8", described.shape[:1])
        pixels = map_array(folder, "pixels.npy", "|u1", described.shape)
    except (KdscaleError, *DAMAGE) as error:
        raise DamagedError(reason_of(error)) from error
    if array_sha256(labels) != described.labels_sha256:
        raise DamagedError("labels.npy has changed")
    keys = _keys(folder, described)
    by_row = pixels.nbytes > VERIFIED_BYTES and keys is not None
    if not by_row and array_sha256(pixels) != described.pixels_sha256:
        raise DamagedError("pixels.npy has changed")
    check = RowCheck(keys, folder) if by_row and keys is not None else None
    frames = described.several_frames
    return StoredImages(pixels, labels, described.fingerprint, keys, check, frames)


def _check_description(described: _Description) -> None:
    if (described.format, described.version) != (FORMAT, VERSION):
        raise ValueError("images.json is of another format")
    expected = content_fingerprint(
        described.shape, described.pixels_sha256, described.labels_sha256, described.classes
    )
    if described.fingerprint != expected:
        raise ValueError("images.json does not fit its own fingerprint")


def _keys(folder: Path, described: _Description) -> np.ndarray | None:
    """Return the stored keys; None where there are none, or where they have changed."""
    try:
        keys = read_array(folder, "keys.npy", "<u8", described.shape[:1])
    except (OSError, ValueError, KdscaleError):
        return None
    return keys if array_sha256(keys) == described.keys_sha256 else None


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
