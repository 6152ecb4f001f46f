"""Decoded images on disk: looked up by source bytes, identified by pixels.

`ROOT/KEY/` holds `pixels.npy`, `labels.npy`, `keys.npy` and `images.json`. KEY hashes the encoded
images, labels and class names, so any change of the source leads elsewhere. A folder appears whole,
by rename.

Images of several sizes are not stored: `ROOT/KEY.json` has the content of their headers,
and `ROOT/KEY.*.keys` their keys. They are identified by KEY, which also holds the version of the
rules in `decode.py`: decoding all of them to hash their pixels would cost what a pass of training
does.
"""

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kdscale.atomic_write import flush_folder
from kdscale.data.decode import SizesDifferError
from kdscale.data.decoded_folder import DamagedError, StoredImages, open_folder, write_folder
from kdscale.data.encoded_images import EncodedImages, read_note, write_note
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.headers import Headers, read_headers
from kdscale.data.image_hashes import encoded_keys, read_keys, write_keys
from kdscale.data.source_key import SourceKey, source_key
from kdscale.errors import StorageError, UnsafePathError
from kdscale.regular_files import check_no_links, open_inside, open_regular, path_inside

logger = logging.getLogger(__name__)


def open_or_decode(encoded: EncodedSplit, root: Path) -> StoredImages:
    """Open the stored copy if there is a sound one, else decode. Any number of processes may call.

    What has several sizes is not decoded, and comes back as it is.
    """
    key = source_key(encoded)
    folder = path_inside(root, key.folder)
    check_no_links(folder)
    if folder.exists():
        try:
            return open_folder(folder)
        except DamagedError as error:
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
                return open_folder(folder)  # another process was first
            except DamagedError:
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
        return open_folder(folder)
    except DamagedError as error:
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
        write_folder(encoded, headers, partial)
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
    """Whether a lock is free; False where that cannot be found out."""
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
    """Lock a folder; yield False where the file system has no locks, which is safe but slower."""
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
