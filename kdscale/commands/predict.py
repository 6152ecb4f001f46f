"""Classify images of your own with a trained model: from an image file to class names."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale.data.decode import decode_file
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import create_accelerator
from kdscale.documents import check_as
from kdscale.errors import DataError, ExportError, KdscaleError, ModelError
from kdscale.experiment.trained_models import Trust, Weights, trained_model_of
from kdscale.formatting import number_of
from kdscale.hub import is_hub
from kdscale.models.deployable import load_student
from kdscale.models.formats import FORMATS, Forward
from kdscale.models.headless import NUM_CLASSES
from kdscale.models.preprocess import Preprocess
from kdscale.models.student_files import WEIGHTS, find_weights

log = logging.getLogger(__name__)

_SUFFIXES = {
    ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
"""Endings of image files in folders; a file that is named by itself may have any."""
_AT_ONCE = 64
"""Images of a batch, at most."""


@dataclass(frozen=True, slots=True)
class ImageClassifier:
    """A trained model, and the preparation of images for it."""

    description: str
    """Model, number of parameters where it is known, and device, in words."""
    forward: Forward
    """Logits float32 [B, classes] of uint8 pixels [B, C, H, W], on the CPU."""
    class_names: tuple[str, ...]
    """Names in the order of the logits; empty if the model does not state them."""
    channels: int
    """Channels of the pixels: 1 or 3."""
    clean: Pipeline
    """Operations of `data.clean`: resizing and cropping, as of the test images."""
    grey_range: tuple[float, float] | None = None
    """Black and white of grey images of more than 8 bits: `data.grey_range`."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The most probable classes of one image."""

    file: Path
    classes: tuple[str, ...] = ()
    """Most probable first."""
    probabilities: tuple[float, ...] = ()
    """Probabilities of those classes, 0..1."""
    error: str | None = None
    """Why the image has no prediction; None where it has one."""

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as a JSON object."""
        if self.error is not None:
            return {"file": str(self.file), "error": self.error}
        found = zip(self.classes, self.probabilities, strict=True)
        return {
            "file": str(self.file),
            "predictions": [{"class": name, "probability": value} for name, value in found],
        }


def open_classifier(
    model: str | Path, *, weights: Weights = "last", trust_code: bool = False
) -> ImageClassifier:
    """Open the model of a finished run, a pushed student, or a file of `kdscale export`.

    Args:
        model: the run's folder, that of a pulled student or its address `hf://USER/NAME`, or a
            .safetensors, .onnx or .pt2 file.
        weights: which weights of a run.
        trust_code: create whatever model the run or file names, also `module:factory`.

    Raises:
        RunError: the run is not finished, or holds several models.
        WeightsError, ModelError, ExportError: the file cannot be used.
        ConfigError, StorageError: the address names no repository, or the Hub is not reached.
    """
    if is_hub(model) or (Path(model) / WEIGHTS).is_file():
        model = find_weights(model)
    model = Path(model)
    if model.is_dir():
        return _of_run(model, weights, trust_code=trust_code)
    if weights != "last":
        raise ExportError(f"--weights {weights} is for the folder of a run, {model} is a file")
    kind = FORMATS.get(model.suffix.removeprefix("."))
    if kind is None:
        raise ExportError(
            f"{model} is neither a run's folder nor a file of {', '.join(FORMATS)}: name what "
            "`kdscale train` or `kdscale export` wrote"
        )
    about = _stated(model, kind.describe(model))
    _check_classifies(model, about)
    if model.suffix == ".safetensors":
        description, forward = _on_device(model, about, trust_code=trust_code)
    else:
        description, forward = _describe(about, "cpu"), kind.read(model)
    if "clean" not in about:
        log.warning("%s does not state data.clean: images are given to it as they are", model)
    return ImageClassifier(
        description,
        forward,
        tuple(about.get("class_names") or ()),
        _channels(about),
        Pipeline.parse(() if about.get("clean_in_graph") else about.get("clean") or ()),
        about.get("grey_range"),
    )


def predict(
    classifier: ImageClassifier, files: Sequence[Path], *, top_k: int
) -> Iterator[ImagePrediction]:
    """Classify images, in their order.

    Args:
        classifier: the model.
        files: of images, in any format and size that `docs/images.md` names.
        top_k: number of classes of each, at most as many as there are.

    Yields:
        One prediction a file; a file that cannot be decoded has an error in place of classes.
    """
    log.info("%s; %s", classifier.description, number_of(len(files), "image"))
    for start in range(0, len(files), _AT_ONCE):
        opened = [_open(classifier, file) for file in files[start : start + _AT_ONCE]]
        for _, group in groupby(opened, key=lambda one: one.shape):
            yield from _classified(classifier, list(group), top_k)


def image_files(places: Sequence[Path]) -> list[Path]:
    """Return named files, and the images below named folders in the order of their names.

    Raises:
        DataError: a folder has no image.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            found.append(place)
            continue
        files = sorted(path for path in place.rglob("*") if path.is_file())
        images = [path for path in files if path.suffix.lower() in _SUFFIXES]
        if not images:
            raise DataError(
                f"{place} has no image: none of its {number_of(len(files), 'file')} ends in "
                f"{', '.join(sorted(_SUFFIXES))}"
            )
        others = Counter(path.suffix or "no suffix" for path in files) - Counter(
            path.suffix for path in images
        )
        if others:
            listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
            log.info("%s: passed over files that are no images: %s", place, listed)
        found += images
    return found


# --------------------------------------------------------------------------- models


def _of_run(run: Path, weights: Weights, *, trust_code: bool) -> ImageClassifier:
    trained = trained_model_of(run, trust=Trust(code=trust_code), weights=weights)
    data, path = trained.recipe.data, Path(str(trained.section.weights))
    about = _stated(path, FORMATS["safetensors"].describe(path))
    _check_classifies(run, about)
    levels = data.grey_range
    return ImageClassifier(
        *_on_device(path, about, trust_code=trust_code),
        tuple(about.get("class_names") or ()),
        _channels(about),
        Pipeline.parse(data.clean),
        None if levels is None else (levels[0], levels[1]),
    )


@dataclass(frozen=True, slots=True)
class _Statement:
    """What a file states of its model, as far as it is used here."""

    options: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    pixels: dict[str, Any] = field(default_factory=dict)
    grey_range: tuple[float, float] | None = None
    clean: tuple[dict[str, Any] | str, ...] = ()
    clean_in_graph: bool = False


def _stated(model: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return a file's description of its model, once the fields that are used have their types.

    Raises:
        ExportError: one has another.
    """
    names = {one.name for one in fields(_Statement)}
    try:
        stated = check_as(_Statement, {k: v for k, v in about.items() if k in names and v})
        shape = stated.pixels.get("shape", [None, 1, None, None])
        if not isinstance(shape, list) or len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(f"the shape of its pixels is {shape}, wanted 1 or 3 channels")
    except ValueError as error:
        raise ExportError(
            f"{model} does not describe its model as kdscale does ({error}): take the file that "
            "it exported"
        ) from error
    return about


def _check_classifies(model: Path, about: Mapping[str, Any]) -> None:
    """Raise ModelError for a model without a classifier."""
    if (about.get("options") or {}).get(NUM_CLASSES) == 0:
        raise ModelError(
            f"{model} has no classifier (num_classes = 0), so it names no class: `kdscale "
            "evaluate` measures its embeddings by k-NN, and kdscale.load_student gives them"
        )


def _describe(about: Mapping[str, Any], device: object, parameters: str = "") -> str:
    """Return name, parameters and classes of a model as far as its file states them, in words."""
    classes = len(about.get("class_names") or ()) or about.get("num_classes")
    known = [f"model {about.get('model', 'without a name')}", parameters]
    known += [number_of(classes, "class", "classes")] if isinstance(classes, int) else []
    return f"{', '.join(filter(None, known))}; float32 on {device}"


def _on_device(path: Path, about: Mapping[str, Any], *, trust_code: bool) -> tuple[str, Forward]:
    """Return the model of a weights file on this process's device, and its description."""
    device = create_accelerator().device
    student = load_student(path, trust_code=trust_code).to(device)
    parameters = number_of(sum(one.numel() for one in student.parameters()), "parameter")

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        logits: Tensor = student(pixels.to(device)).cpu()
        return logits

    return _describe(about, device, parameters), forward


def _channels(about: dict[str, Any]) -> int:
    """Return the channels of the pixels that a model was trained on, else those it takes."""
    if about.get("pixels"):
        return int(about["pixels"]["shape"][1])
    return Preprocess.parse(about["preprocess"]).channels


# --------------------------------------------------------------------------- images


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image ready for the model, or why there is none."""

    file: Path
    pixels: Tensor | None
    """uint8 [1, C, H, W]."""
    error: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the properties that images of one batch have in common."""
        return () if self.pixels is None else tuple(self.pixels.shape)


def _open(classifier: ImageClassifier, file: Path) -> _Opened:
    try:
        pixels = decode_file(file, classifier.channels, classifier.grey_range)
    except DataError as error:
        return _Opened(file, None, str(error))
    batch = torch.from_numpy(np.array(pixels, order="C"))[None]
    clean = classifier.clean
    return _Opened(file, clean.apply(batch, 0, torch.zeros(1, dtype=torch.int64)))


def _classified(
    classifier: ImageClassifier, images: Sequence[_Opened], top_k: int
) -> Iterator[ImagePrediction]:
    """Classify images of one shape, or pass on why they have none."""
    pixels = [one.pixels for one in images if one.pixels is not None]
    if not pixels:
        yield from (ImagePrediction(one.file, error=one.error) for one in images)
        return
    try:
        logits = classifier.forward(torch.cat(pixels))
    except KdscaleError as error:  # other channels or another size than the model takes
        yield from (ImagePrediction(one.file, error=f"{one.file}: {error}") for one in images)
        return
    found = logits.double().softmax(1).topk(min(top_k, logits.shape[1]))
    names = classifier.class_names
    if names and len(names) != logits.shape[1]:
        raise ModelError(
            f"the model gives {number_of(logits.shape[1], 'logit')}, and its file has "
            f"{number_of(len(names), 'class name')}: export it again"
        )
    for one, values, places in zip(images, found.values, found.indices, strict=True):
        classes = tuple(names[place] if names else str(place) for place in places.tolist())
        yield ImagePrediction(one.file, classes, tuple(values.tolist()))
