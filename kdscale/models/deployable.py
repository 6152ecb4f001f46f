"""A trained model as it is deployed: the pixels of images in, logits out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdscale.documents import check_as, parse_object
from kdscale.errors import ModelError, WeightsError
from kdscale.models.headless import requested_classes
from kdscale.models.preprocess import Preprocess, resize
from kdscale.models.registry import create_model
from kdscale.models.student_files import CONFIG, MODEL_OF_FOLDER, check_files, find_weights
from kdscale.models.untrusted import (
    check_numbers,
    create_named_by_file,
    without_initial_weights,
)
from kdscale.models.weights import load_weights, read_metadata
from kdscale.regular_files import read_document


class Deployable(nn.Module):
    """A model with its preprocessing inside, in evaluation mode.

    Args:
        model: gives logits [B, C] of preprocessed images.
        preprocess: the model's.
        class_names: in the order of the logits.
        size: height and width of the images that the model was tested on; None = not known.
        clean: brings images of any size, uint8 [B, C, H, W], to that size; None = the caller does.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        class_names: Sequence[str],
        size: tuple[int, int] | None = None,
        clean: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.size, self.clean = size, clean
        self.model, self.preprocess, self.class_names = model, preprocess, tuple(class_names)
        for name, values in zip(("scale", "shift"), preprocess.constants(), strict=True):
            self.register_buffer(name, values.clone(), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, float32 [B, C], of uint8 pixels [B, channels, H, W].

        Raises:
            ModelError: the pixels are of another type or size; floats on 0..1 would be taken for
                almost black.
        """
        self.preprocess.check(pixels)
        if self.clean is not None:
            pixels = self.clean(pixels)
        check_size(pixels.shape, self.preprocess, self.size)
        # As `Preprocess` does it, but with what tracing can follow.
        resized = resize(pixels, self.preprocess.size).to(torch.float32)
        logits: Tensor = self.model(resized * self.scale + self.shift)
        return logits.float()


def load_student(path: str | Path, *, trust_code: bool = False) -> Deployable:
    """Return a trained model, ready to be called with uint8 pixels [B, C, H, W].

    The file names its model, and may come from a stranger: by default only kdscale's own models and
    the architectures of torchvision, timm and transformers are created, without code, files or
    downloads of the file's choice.

    Args:
        path: what `kdscale export --format safetensors` wrote, a run's `weights.safetensors`, the
            folder of a finished run or of a pulled student, or `hf://USER/NAME[@REVISION]`.
        trust_code: create whatever model the file names, also `module:factory`, whose code runs.

    Returns:
        The model on the CPU, in evaluation mode; `class_names` and `preprocess` are attributes. One
        without a classifier gives embeddings, and has no class names.

    Raises:
        WeightsError: the file is missing or damaged, or does not state its model.
        ModelError: that model cannot be created here, or only with `trust_code`.
        ConfigError, StorageError: the URL names no repository, or the Hub is not reached.
    """
    path = find_weights(path)
    stated = read_statement(path)
    preprocess = Preprocess.parse(stated.preprocess)
    create = create_model
    if not trust_code:
        create = partial(create_named_by_file, origin=path, weights=path)
    model = create(
        _model_beside(path, stated, trust_code=trust_code)
        if stated.model == MODEL_OF_FOLDER
        else stated.model,
        num_classes=stated.num_classes,
        in_channels=preprocess.channels,
        options=without_initial_weights(stated.model, stated.options),
    )
    if any(is_lazy(one) for one in model.parameters()):
        raise ModelError(
            f"{path}: the model {stated.model} takes shapes from its first images (lazy layers), "
            "which a weights file does not state: name the sizes in its code, or export pt2"
        )
    load_weights(path, model, what="student")
    classes, _ = requested_classes(stated.num_classes, stated.options)
    names = stated.class_names if classes else ()
    return Deployable(model, preprocess, names, size_of(stated.pixels))


def _model_beside(path: Path, stated: "StudentStatement", *, trust_code: bool) -> str:
    """Return the name of the model that config.json beside the weights describes."""
    check_files(path, stated.files)
    config = path.parent / CONFIG
    if not trust_code and config.is_file():
        try:
            described = parse_object(read_document(config))
        except ValueError as error:
            raise WeightsError(f"{config} is damaged ({error}): pull the student again") from error
        check_numbers(described, stated.model, config)
    return f"transformers/{path.parent.absolute()}"


def pixels_of(shape: Sequence[int | str]) -> dict[str, Any]:
    """Describe a model's images in a file, from their channels, height and width.

    A word stands for a side of any length.
    """
    return {"dtype": "uint8", "shape": ["batch", *shape]}


def size_of(pixels: object) -> tuple[int, int] | None:
    """Return height and width from what `pixels_of` gave; None where a file states none."""
    shape = pixels.get("shape") if isinstance(pixels, Mapping) else None
    if not isinstance(shape, list) or len(shape) != 4:
        return None
    height, width = shape[2:]
    return (height, width) if type(height) is int and type(width) is int else None


def check_size(images: Sequence[int], preprocess: Preprocess, size: tuple[int, int] | None) -> None:
    """Raise ModelError where images are not of the size that a model was tested on.

    A model that averages its last maps takes any size, and is wrong far more often.

    Args:
        images: shape of the images, height and width last.
        preprocess: the model's; one that resizes takes any size.
        size: height and width; None = not known.
    """
    height, width = images[-2:]
    if size is not None and preprocess.size is None and (height, width) != size:
        raise ModelError(
            f"the images are {height} x {width} pixels, and the model was tested on {size[0]} x "
            f"{size[1]}: resize them, in a recipe by operations in data.clean"
        )


@dataclass(frozen=True, slots=True)
class StudentStatement:
    """What a weights file states of its model."""

    model: str
    num_classes: NonNegativeInt
    preprocess: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    pixels: dict[str, Any] = field(default_factory=dict)
    """As of `pixels_of`; empty in files of kdscale 0.1."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside the weights of a pushed student, by name."""


def read_statement(path: Path) -> StudentStatement:
    """Return a weights file's metadata, each field of its type.

    Raises:
        WeightsError: a field is missing or of another type.
    """
    found = read_metadata(path)
    if missing := sorted({"model", "num_classes", "preprocess"} - found.keys()):
        raise WeightsError(
            f"{path} does not state its {', '.join(missing)}, wanted a file that kdscale wrote: "
            "weights.safetensors of a run, or what `kdscale export --format safetensors` gives"
        )
    names = {one.name for one in fields(StudentStatement)}
    try:
        stated = check_as(
            StudentStatement, {k: v for k, v in found.items() if k in names and v is not None}
        )
        # A model has a weight for each class at least, and a weight is a byte at least.
        if stated.num_classes > path.stat().st_size:
            raise ValueError(f"num_classes is {stated.num_classes}, wanted no more than its bytes")
    except ValueError as error:
        raise WeightsError(
            f"{path} is not as kdscale writes it ({error}): take the file that it exported"
        ) from error
    return stated
