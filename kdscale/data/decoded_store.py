"""Decoded images on disk: looked up by source bytes, identified by pixels.

`ROOT/KEY/` holds `pixels.npy`, `labels.npy`, `keys.npy` and `images.json`. KEY hashes the encoded
images, labels and class names, so any change of the source leads elsewhere. A folder appears whole,
by rename.

Images of several sizes are not stored: `ROOT/KEY.json` notes what their headers say, and
`ROOT/KEY.*.keys` holds their keys. They are identified by KEY, which also holds the version of the
rules in `decode.py`: decoding all of them to hash their pixels would cost what a pass of training
does.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt
from tqdm import tqdm

from kdscale.atomic_write import flush_folder
from kdscale.data.decode import Headers, SizesDifferError, decode, read_headers
from kdscale.data.deep_images import may_be_deep
from kdscale.data.encoded_images import EncodedImages, read_note, write_note
from kdscale.data.encoded_split import ROWS_PER_READ, EncodedSplit
from kdscale.data.image_hashes import RowCheck, encoded_keys, pixel_keys, read_keys, write_keys
from kdscale.data.npy_files import map_array, npy_header, read_array
from kdscale.documents import DAMAGE, parse_as, read_object, write_object
from kdscale.errors import DataError, KdscaleError, StorageError, UnsafePathError
from kdscale.regular_files import check_no_links, open_inside, open_regular, path_inside

FORMAT = "kdscale-images"
VERSION = 1  # of these files and of the rules in decode.py
VERIFIED_BYTES = 512 * 2**20
"""Bytes of pixels that are hashed at every opening (about 0.3 s at 1.7 GB/s); of more, each sample
when it is first taken."""
_DESCRIPTION = "images.json"

logger = logging.getLogger(__name__)


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


class _DamagedError(Exception):
    """The folder is not what was written."""


def open_or_decode(encoded: EncodedSplit, root: Path) -> StoredImages:
    """The stored copy if there is a sound one, else decode. Any number of processes may call.

    What has several sizes is not decoded, and comes back as it is.
    """
    key = source_key(encoded)
    folder = path_inside(root, key.folder)
    check_no_links(folder)
    if folder.exists():
        try:
            return _open(folder)
        except _DamagedError as error:
            logger.warning("decoded images in %s are damaged (%s): decoding again", folder, error)
    if (noted := read_note(_note(folder))) is not None:
        return _left_encoded(encoded, noted, key, root)
    missing = [one for one in (root, *root.parents) if not one.exists()]
    try:
        return _decode_into(encoded, key, root)
    except BaseException as error:
        _remove_empty(root, folder, missing)
        if isinstance(error, StorageError) or not isinstance(error, OSError):
            raise
        raise StorageError(
            f"cannot write the decoded images of {encoded.name} to {root}: "
            f"{error.strerror or error}. Free some space there, or choose another folder "
            "(--cache-root)"
        ) from error


def _remove_empty(root: Path, folder: Path, missing: Sequence[Path]) -> None:
    """Remove the folders that this command created, if it has decoded nothing into them."""
    if missing:
        with suppress(OSError):
            if [path.name for path in root.iterdir()] == [f".{folder.name}.lock"]:
                (root / f".{folder.name}.lock").unlink()
            for one in missing:
                one.rmdir()


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
        "labels": _sha256(encoded.labels),
        "classes": encoded.classes,
    }
    if not deep:
        key = _sha256_of_json(parts)
        return SourceKey(key, key)
    if encoded.grey_range is not None:
        parts["grey_range"] = encoded.grey_range
    key = _sha256_of_json(parts)
    return SourceKey(key, _sha256_of_json({"source": key, "levels": "checked"}))


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


def content_fingerprint(
    shape: tuple[int, ...], pixels_sha256: str, labels_sha256: str, classes: tuple[str, ...]
) -> str:
    """Identity of decoded content, from the hashes of its uint8 pixels and int64 labels."""
    return _sha256_of_json(
        {
            "shape": list(shape),
            "pixels": pixels_sha256,
            "labels": labels_sha256,
            "classes": list(classes),
        }
    )


def _left_encoded(
    encoded: EncodedSplit, headers: Headers, key: SourceKey, root: Path
) -> StoredImages:
    encoded.labels.flags.writeable = False
    keys = read_keys(_note(root / key.folder), len(encoded.labels))
    images = EncodedImages(encoded, headers)
    return StoredImages(
        images, encoded.labels, key.source, keys, several_frames=headers.several_frames
    )


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _decode_into(encoded: EncodedSplit, key: SourceKey, root: Path) -> StoredImages:
    folder = root / key.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_process(folder) as alone:
        if folder.exists():
            try:
                return _open(folder)  # another process was first
            except _DamagedError:
                _remove(folder)
        headers = read_note(_note(folder)) or read_headers(encoded)
        if headers.one_size:
            try:
                _write_whole(encoded, headers, folder, alone=alone)
            except SizesDifferError:
                headers = replace(headers, one_size=False)
        if not headers.one_size:
            write_keys(_note(folder), encoded_keys(encoded))
            write_note(_note(folder), headers)
            return _left_encoded(encoded, headers, key, root)
    try:
        return _open(folder)
    except _DamagedError as error:
        raise StorageError(
            f"{folder} does not hold what was just written ({error}): check the disk, or choose "
            "another folder (--cache-root)"
        ) from error


def _write_whole(encoded: EncodedSplit, headers: Headers, folder: Path, *, alone: bool) -> None:
    """Write a folder elsewhere, then give it its name; what killed writers left is removed."""
    if alone:
        _remove_leftovers(folder)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.mkdir()
        _write(encoded, headers, partial)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(ours: Path) -> None:
    """Remove what killed writers left of these images, and of others that nobody decodes now."""
    for leftover in ours.parent.glob(".*.partial"):
        lock = ours.parent / f".{leftover.name.split('.')[1]}.lock"
        if lock.name == f".{ours.name}.lock" or _is_free(lock):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    """Whether nobody holds a lock; False where that cannot be told."""
    try:
        descriptor = open_regular(lock, os.O_RDWR | os.O_NOFOLLOW)
    except (OSError, UnsafePathError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write(encoded: EncodedSplit, headers: Headers, folder: Path) -> None:
    num_samples = len(encoded.labels)
    shape: tuple[int, ...] = (num_samples, headers.channels, 0, 0)
    digest, keys = hashlib.sha256(), np.zeros(num_samples, dtype="<u8")
    done = 0
    # Written, not memory-mapped: on a full disk a map ends the process without a message.
    with (
        (folder / "pixels.npy").open("wb") as file,
        tqdm(total=num_samples, desc=f"decode {encoded.split}", unit="img", disable=None) as bar,
    ):
        for pixels in decode(encoded, headers):
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
    for name, rows in (("labels", encoded.labels), ("keys", keys)):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, rows)
            _flush(file)
    pixels_sha256, labels_sha256 = digest.hexdigest(), _sha256(encoded.labels)
    description = _Description(
        format=FORMAT,
        version=VERSION,
        source=encoded.name,
        split=encoded.split,
        shape=shape,  # type: ignore[arg-type]  # four numbers
        classes=encoded.classes,
        pixels_sha256=pixels_sha256,
        labels_sha256=labels_sha256,
        keys_sha256=_sha256(keys),
        several_frames=headers.several_frames,
        fingerprint=content_fingerprint(shape, pixels_sha256, labels_sha256, encoded.classes),
    )
    write_object(folder / _DESCRIPTION, asdict(description))
    flush_folder(folder)


def _open(folder: Path) -> StoredImages:
    """Open a folder of decoded images, after checking what it holds.

    Raises:
        _DamagedError: it is not what was written.
    """
    try:
        described = parse_as(_Description, read_object(folder / _DESCRIPTION, root=folder.parent))
        _check_description(described)
        labels = read_array(folder, "labels.npy", "<i8", described.shape[:1])
        pixels = map_array(folder, "pixels.npy", "|u1", described.shape)
    except (KdscaleError, *DAMAGE) as error:
        raise _DamagedError(" ".join(str(error).split()) or type(error).__name__) from error
    if _sha256(labels) != described.labels_sha256:
        raise _DamagedError("labels.npy has changed")
    keys = _keys(folder, described)
    by_row = pixels.nbytes > VERIFIED_BYTES and keys is not None
    if not by_row and _sha256(pixels) != described.pixels_sha256:
        raise _DamagedError("pixels.npy has changed")
    check = RowCheck(keys, folder) if by_row and keys is not None else None
    frames = described.several_frames
    return StoredImages(pixels, labels, described.fingerprint, keys, check, frames)


def _check_description(described: "_Description") -> None:
    if (described.format, described.version) != (FORMAT, VERSION):
        raise ValueError("images.json is of another format")
    expected = content_fingerprint(
        described.shape, described.pixels_sha256, described.labels_sha256, described.classes
    )
    if described.fingerprint != expected:
        raise ValueError("images.json does not fit its own fingerprint")


def _keys(folder: Path, described: "_Description") -> np.ndarray | None:
    """Return the stored keys; None where there are none, or where they have changed."""
    try:
        keys = read_array(folder, "keys.npy", "<u8", described.shape[:1])
    except (OSError, ValueError, KdscaleError):
        return None
    return keys if _sha256(keys) == described.keys_sha256 else None


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        return  # where locks do not work, another process may be first: its copy is as good
    flush_folder(folder.parent)


def _remove(folder: Path) -> None:
    """Rename first: no one ever opens half a folder."""
    doomed = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    folder.rename(doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink()


@contextmanager
def _only_one_process(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder; False where the file system has none, which is safe but slower."""
    lock = f".{folder.name}.lock"
    descriptor = open_inside(folder.parent, lock, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(descriptor, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that decodes the same images")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def _sha256_of_json(parts: dict[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
