"""Images of a data set in memory: any map-style one, of pictures, arrays, tensors or paths."""

import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from kdscale.data.decoded_store import open_or_decode
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.image_dataset import ImageDataset, describe_split, of_stored
from kdscale.errors import DataError
from kdscale.regular_files import path_inside

log = logging.getLogger(__name__)

IN_MEMORY = "memory:"
"""Prefix of the source that caches and runs record of a data set which no file or address names."""
_PNG_MODES = {"1", "I;16", "L", "LA", "P", "RGB", "RGBA"}
_IMAGE_KEYS = ("image", "img", "pixel_values", "pixels")
_READ_TWICE = 32
"""Samples that are read again, since an augmented data set could never be found again."""
_LABEL_KEYS = ("label", "labels", "fine_label", "target")


class MapDataset(Protocol):
    """What `torch.utils.data.Dataset`, Hugging Face's `Dataset` and a list have in common."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return one sample."""
        ...


def images_of(
    dataset: MapDataset,
    *,
    class_names: Sequence[str] | None = None,
    clean: Sequence[str | Mapping[str, Any]] = (),
    name: str = "dataset",
    root: str | Path = "cache",
) -> ImageDataset:
    """Read all samples of a data set once, and store their pixels below `root`.

    A sample is an image, `(image, label, ...)`, or a mapping of them. An image is a Pillow image, a
    uint8 array [H, W] or [H, W, C], a uint8 tensor [H, W] or [C, H, W], the bytes of an image file,
    its path, or a mapping of `bytes` and `path`; paths are read when they are needed, so a large
    set is better given by them.

    Args:
        dataset: with `len` and integer indices, without augmentation and without normalisation.
        class_names: in the order of the labels; None = those of the data set (`classes`, or the
            features of a Hugging Face data set), else the numbers.
        clean: operations without draws, such as `{"name": "resize", "size": [224, 224]}`, for
            images that are not augmented: those of a test, and a first check of the teacher. Needed
            where images differ in size.
        name: what messages call the data set.
        root: folder below which decoded images are stored.

    Raises:
        DataError: a sample is none of these, or only some samples have labels.
        StorageError: the decoded images cannot be written.
    """
    if len(dataset) == 0:
        raise DataError(f"{name} is empty: wanted a data set with samples")
    cells, labels = [], np.full(len(dataset), -1, dtype=np.int64)
    for index in range(len(dataset)):
        place = f"sample {index} of {name}"
        cell, labels[index] = _read(dataset, index, place)
        if index < _READ_TWICE and _read(dataset, index, place)[0] != cell:
            raise DataError(
                f"{place} has other pixels when it is read again: give the data set without "
                "augmentation, which belongs to the views"
            )
        cells.append(cell)
    encoded = EncodedSplit(
        _column(cells),
        np.arange(len(cells)),
        labels,
        _class_names(dataset, class_names, labels, name),
        name,
        "train",
        num_files=sum(cell["bytes"] is None for cell in cells),
    )
    log.info("%s", describe_split(encoded), extra={"once": True})
    stored = open_or_decode(encoded, path_inside(Path(root), "images"))
    return replace(of_stored(encoded, stored, IN_MEMORY + name), clean=tuple(clean))


def _read(dataset: MapDataset, index: int, place: str) -> tuple[dict[str, bytes | str | None], int]:
    """Return the image of a sample as a cell, and its label or -1."""
    try:
        sample = dataset[index]
        image, label = _parts(sample, place)
        return _cell(image, place), label
    except DataError:
        raise
    except Exception as error:  # whatever a data set, or Pillow's lazy readers, may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{place} cannot be read: {reason}") from error


def _parts(sample: Any, place: str) -> tuple[Any, int]:
    """Return the image of a sample, and its label or -1."""
    label: Any = None
    if isinstance(sample, Mapping):
        image_key = next((key for key in _IMAGE_KEYS if key in sample), None)
        if image_key is None:
            raise DataError(
                f"{place} has the keys {', '.join(map(str, sample))}, wanted one of "
                f"{', '.join(_IMAGE_KEYS)}"
            )
        label_key = next((key for key in _LABEL_KEYS if key in sample), None)
        others = [k for k, v in sample.items() if isinstance(v, (int, np.integer))]
        if label_key is None and others:
            raise DataError(
                f"{place} has numbers under {', '.join(map(str, others))}, and none of "
                f"{', '.join(_LABEL_KEYS)}: rename the one that is the label, or leave them out"
            )
        label = None if label_key is None else sample[label_key]
        sample = sample[image_key]
    elif isinstance(sample, (tuple, list)):
        label = sample[1] if len(sample) > 1 else None
        sample = sample[0]
    number = -1 if label is None else _class_number(label)
    if number is None or number < -1:
        raise DataError(
            f"{place} has the label {label!r:.80}, wanted a class number from 0 on, or -1 or None "
            "for none"
        )
    return sample, number


def _class_number(label: Any) -> int | None:
    """Return a label as an integer; None where it is none."""
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _cell(image: Any, place: str) -> dict[str, bytes | str | None]:
    """Return an image as an encoded file, without loss, or the path of one."""
    if isinstance(image, (str, os.PathLike)):
        return {"bytes": None, "path": str(Path(image).absolute())}
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
        return _cell(image, place)  # Hugging Face's Image(decode=False)
    if isinstance(image, (bytes, bytearray)):
        return {"bytes": bytes(image), "path": None}
    if isinstance(image, Tensor):
        image = _of_tensor(image, place)
    if isinstance(image, np.ndarray):
        image = _of_array(image, place)
    if not isinstance(image, Image.Image):
        raise DataError(
            f"{place} is a {type(image).__name__}, wanted a Pillow image, a uint8 array or tensor, "
            "or the path of an image file"
        )
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "TIFF")
    return {"bytes": buffer.getvalue(), "path": None}


def _of_tensor(image: Tensor, place: str) -> np.ndarray:
    array: np.ndarray = image.detach().cpu().numpy()
    _check_pixels(array, place)
    if array.ndim == 3 and array.shape[0] not in (1, 3):
        raise DataError(
            f"{place} is a tensor of shape {tuple(array.shape)}, wanted [C, H, W] of 1 or 3 "
            "channels; arrays may be [H, W, C]"
        )
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _of_array(image: np.ndarray, place: str) -> Image.Image:
    _check_pixels(image, place)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise DataError(
            f"{place} is an array of shape {image.shape}, wanted [H, W] or [H, W, C] of 1 or 3 "
            "channels"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _check_pixels(image: np.ndarray, place: str) -> None:
    """Refuse what is no picture any more: normalised or scaled pixels cannot be restored."""
    if image.dtype != np.uint8:
        raise DataError(
            f"{place} has {image.dtype} pixels, wanted uint8: give the data set without ToTensor, "
            "ToDtype and Normalize, since scaling and normalising belong to each model (mean and "
            "std)"
        )


def _column(cells: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})
    return pa.chunked_array([pa.array(cells, kind)])


def _class_names(
    dataset: MapDataset, given: Sequence[str] | None, labels: np.ndarray, name: str
) -> tuple[str, ...]:
    """Return the names of the classes, checked against the labels."""
    present = labels >= 0
    if present.any() and not present.all():
        raise DataError(
            f"{int((~present).sum())} of {len(labels)} samples of {name} have no label (first: "
            f"{int(np.flatnonzero(~present)[0])}): label all of them or none"
        )
    names = given
    if names is None:
        names = getattr(dataset, "classes", None) or _feature_names(dataset)
    if names is None:
        return tuple(str(number) for number in range(int(labels.max()) + 1))
    if len(labels) and int(labels.max()) >= len(names):
        raise DataError(
            f"{name} has the label {int(labels.max())}, and {len(names)} class names: name every "
            "class (class_names)"
        )
    return tuple(str(one) for one in names)


def _feature_names(dataset: MapDataset) -> Sequence[str] | None:
    """Return the class names that the features of a Hugging Face data set state."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    named = [features[key] for key in _LABEL_KEYS if key in features]
    found: Sequence[str] | None = getattr(named[0], "names", None) if named else None
    return found
