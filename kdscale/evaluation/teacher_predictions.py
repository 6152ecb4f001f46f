"""A teacher's top-1 predictions for the clean images of a split, computed once for all students.

`ROOT/predictions/KEY.npy`, int32 [N], followed by the SHA-256 of KEY and array (32 bytes, which
NumPy does not read). KEY hashes everything that determines the predictions: images, teacher,
preprocessing, precision and memory format.
"""

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from kdscale.atomic_write import remove_abandoned, write_durably
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.distributed import broadcast_from_main
from kdscale.evaluation.evaluator import examine
from kdscale.formatting import number_of
from kdscale.regular_files import read_inside
from kdscale.teacher.frozen_teacher import FrozenTeacher

log = logging.getLogger(__name__)

_VERSION = 2  # part of KEY; in version 1, samples with NaN logits had class 0
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class TeacherPredictions:
    """A teacher's top-1 class for each clean image of a split."""

    classes: Tensor
    """int64 [N] on the CPU: see `metrics.predict`."""
    sha256: str
    """SHA-256 of the teacher's weights."""


def predictions_of(
    teacher: FrozenTeacher, images: ImageDataset, root: Path, accelerator: Accelerator
) -> TeacherPredictions:
    """Return a teacher's predictions, the same in every process; compute and store missing ones.

    Args:
        teacher: the teacher, with its precision and memory format.
        images: a labelled split.
        root: folder of stored predictions.
        accelerator: its processes share the work.
    """
    path = _path(teacher, images, root)
    stored = broadcast_from_main(accelerator, _read(path, images.num_samples))
    if stored is not None:
        return TeacherPredictions(stored, teacher.weights_sha256)
    log.info("teacher predictions of %s, once", number_of(images.num_samples, "test image"))
    on_device, samples = DeviceImages(images, accelerator.device), torch.arange(images.num_samples)
    examined = examine(teacher.logits, on_device, samples, images.num_classes, accelerator)
    store_predictions(teacher, images, root, examined.predictions, accelerator)
    return TeacherPredictions(examined.predictions, teacher.weights_sha256)


def store_predictions(
    teacher: FrozenTeacher,
    images: ImageDataset,
    root: Path,
    classes: Tensor,
    accelerator: Accelerator,
) -> None:
    """Store predictions int64 [N] of another pass; other arguments as of `predictions_of`."""
    if accelerator.is_main_process:
        _write(_path(teacher, images, root), classes, root)


def _path(teacher: FrozenTeacher, images: ImageDataset, root: Path) -> Path:
    decides = {
        "version": _VERSION,
        "images": images.fingerprint,
        "clean": list(images.clean),
        "teacher": teacher.describe(),
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return root / "predictions" / f"{key}.npy"


def _digest(path: Path, data: bytes) -> bytes:
    """Return the checksum of an array under its key: a renamed file does not match it."""
    return hashlib.sha256(path.stem.encode() + data).digest()


def _write(path: Path, classes: Tensor, root: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, classes.numpy().astype("<i4"))
    data = buffer.getvalue()
    write_durably(path, data + _digest(path, data), root=root)
    remove_abandoned(path.parent, path)


def _read(path: Path, num_samples: int) -> Tensor | None:
    """Return the stored classes; None where there are none, or where they are damaged.

    Raises:
        UnsafePathError: the file is a link or a special file.
    """
    try:
        whole = read_inside(path.parent.parent, path.relative_to(path.parent.parent))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the teacher's predictions %s cannot be read (%s)", path, error)
        return None
    data, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if _digest(path, data) != digest:
        log.warning(
            "the teacher's predictions %s are damaged, of another teacher or other images, or of "
            "an earlier kdscale", path,
        )  # fmt: skip
        return None
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    return torch.from_numpy(stored.astype(np.int64)) if stored.shape == (num_samples,) else None
