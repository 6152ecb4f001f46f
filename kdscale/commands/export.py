"""Export a trained model, with its preprocessing, into a file that others can run.

A model without a classifier gives embeddings where this file speaks of logits.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.atomic_write import rename_durably, storage_error, temporary_folder
from kdscale.commands.traceable_clean import TraceableClean
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.distributed import create_accelerator
from kdscale.errors import ConfigError, ExportError
from kdscale.experiment.datasets import clean_images
from kdscale.experiment.model_line import log_model
from kdscale.experiment.models import model_of
from kdscale.experiment.trained_models import TrainedModel
from kdscale.models.deployable import Deployable, pixels_of
from kdscale.models.formats import FORMATS, Forward, explained
from kdscale.models.untrusted import is_code
from kdscale.teacher.frozen_teacher import freeze
from kdscale.version import __version__

log = logging.getLogger(__name__)

_IMAGES = 64
_TOLERANCE = 1e-4
"""Tolerance of a logit, as a share of the largest one (at least 1): kernels sum in other orders."""


def export(
    trained: TrainedModel,
    format_name: str,
    *,
    cache_root: Path,
    out: Path | None = None,
    overwrite: bool = False,
    with_preprocessing: bool = False,
) -> dict[str, Any]:
    """Export a trained model, in float32, and check that the file gives the same logits.

    Args:
        trained: the model of a finished run.
        format_name: a key of `FORMATS`.
        cache_root: folder of decoded images.
        out: the file to write; None = in the run's folder, named after the model's role.
        overwrite: replace the file if it exists.
        with_preprocessing: put the operations of `data.clean` into the graph, which then takes
            images of any size.

    Returns:
        The file, its bytes, and how its logits for test images differ.

    Raises:
        ExportError: the file exists, cannot be made, or gives other logits; nothing is written.
        KdscaleError: data or weights cannot be used.
    """
    create_accelerator()  # float32 means float32
    path = out or Path(trained.name) / _file_name(trained, format_name)
    _check_place(path, format_name, overwrite=overwrite)
    clean = _clean_of(trained, format_name) if with_preprocessing else None
    test = clean_images(trained.recipe, cache_root)
    classifier = model_of(
        trained.recipe, trained.section, test, what=trained.role,
        named_by=trained.named_by(trained.section),
    )  # fmt: skip
    pixels = DeviceImages(test, _CPU).gather(torch.arange(min(_IMAGES, test.num_samples)))[0]
    model = freeze(
        classifier.model, classifier.preprocess, precision="float32",
        memory_format="contiguous", device=_CPU,
    )  # fmt: skip
    log_model(
        trained.role, trained.section.model, classifier.model, test,
        device=_CPU, precision="float32",
    )  # fmt: skip
    if trained.precision != "float32":
        log.info("trained in %s, exported in float32", trained.precision)
    height, width = pixels.shape[2:]
    program = Deployable(
        classifier.model, classifier.preprocess, test.classes, (height, width), clean
    )
    expected = model.outputs(pixels).output
    about = describe_model(trained, program, pixels.shape[1:], test.num_classes, expected.shape[1])
    images = pixels.split([1, len(pixels) - 1]) if len(pixels) > 1 else (pixels,)
    if clean is not None:
        images = _as_decoded(test, len(pixels))
    check = _write_checked(path, format_name, program, about, images, expected)
    return {
        "run": trained.name,
        "file": str(path),
        "format": format_name,
        "bytes": path.stat().st_size,
        **check,
        "example": FORMATS[format_name].example.format(
            file=_quoted(path),
            trust=", trust_code=True" if is_code(trained.section.model) else "",
        ),
        **about,
    }


_CPU = torch.device("cpu")


def _quoted(path: Path) -> str:
    """Return a path as a Python string literal."""
    return json.dumps(str(path), ensure_ascii=False)


def _file_name(trained: TrainedModel, format_name: str) -> str:
    return (
        f"{trained.role}{'' if trained.weights == 'last' else f'-{trained.weights}'}.{format_name}"
    )


def _check_place(path: Path, format_name: str, *, overwrite: bool) -> None:
    if path.suffix != f".{format_name}":
        raise ExportError(
            f"{path} is no name for a {format_name} file: let it end in .{format_name}, or choose "
            "another --format"
        )
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists: name another --out, or add --overwrite")


def describe_model(
    trained: TrainedModel,
    program: Deployable,
    shape: Sequence[int | str],
    num_classes: int,
    width: int | None = None,
) -> dict[str, Any]:
    """Return the description of the model in its file, with all keys of a weights file.

    Args:
        trained: the model and its recipe.
        program: the model as it is exported.
        shape: channels, height and width of the images that it takes.
        num_classes: of the data set.
        width: values of an output; None = one for each class.
    """
    if program.clean is not None:
        shape = (shape[0], "height", "width")
    headless = trained.section.headless
    output = {"dtype": "float32", "shape": ["batch", num_classes if width is None else width]}
    return {
        "kdscale": __version__,
        "model": trained.section.model,
        "options": dict(trained.section.options),
        "num_classes": num_classes,
        "class_names": [] if headless else list(program.class_names),
        "clean": list(trained.recipe.data.clean),
        "clean_in_graph": program.clean is not None,
        "grey_range": trained.recipe.data.grey_range,
        "preprocess": program.preprocess.describe(),
        "pixels": pixels_of(shape),
        ("embedding" if headless else "logits"): output,
    }


def _write_checked(
    path: Path,
    format_name: str,
    program: Deployable,
    about: dict[str, Any],
    images: Sequence[Tensor],
    expected: Tensor,
) -> dict[str, Any]:
    """Write a temporary file, compare its logits with the model's, and rename it."""
    kind = FORMATS[format_name]
    try:
        with temporary_folder(path.parent, "export") as place:
            written = place / path.name
            with explained(format_name):
                kind.write(program, _example(program, images[0]), about, written)
                check = compare(kind.read(written), images, expected)
            _refuse_unlike(check, format_name)
            rename_durably(written, path)
    except OSError as error:
        raise storage_error(path, error) from error
    return check


def _refuse_unlike(check: dict[str, Any], format_name: str) -> None:
    if not check["max_logit_difference"] <= check["tolerance"]:  # NaN is no agreement
        raise ExportError(
            f"the {format_name} file gives other logits than the run's weights: they differ by up "
            f"to {check['max_logit_difference']:.2g}, wanted at most {check['tolerance']:.2g}; "
            "nothing is written. Choose another --format"
        )


def _example(program: Deployable, images: Tensor) -> Tensor:
    """Return two images to trace with: a batch of one would make the batch size a constant.

    Where any size is taken, they have one that equals none of the model's own.
    """
    height, width = (61, 83) if program.clean is not None else images.shape[2:]
    return images.new_zeros(2, images.shape[1], height, width)


def _clean_of(trained: TrainedModel, format_name: str) -> TraceableClean:
    if format_name == "safetensors":
        raise ConfigError(
            "--with-preprocessing is for onnx and pt2: safetensors has no graph. Its metadata has "
            "data.clean, which `kdscale predict` applies"
        )
    return TraceableClean(trained.recipe.data.clean)


def _as_decoded(test: ImageDataset, number: int) -> list[Tensor]:
    """Return the first images of a split before `data.clean`, each uint8 [1, C, H, W]."""
    if isinstance(test.pixels, EncodedImages):  # of several sizes, which no batch can hold
        return [torch.from_numpy(test.pixels.decode(sample))[None] for sample in range(number)]
    images = DeviceImages(replace(test, clean=()), _CPU)
    return [images.gather(torch.tensor([index]))[0] for index in range(number)]


@torch.no_grad()
def compare(forward: Forward, images: Sequence[Tensor], expected: Tensor) -> dict[str, Any]:
    """Compare logits of batches of images with the expected ones [B, C]."""
    found = torch.cat([forward(batch) for batch in images])
    return {
        "num_images": len(expected),
        "max_logit_difference": float((found - expected).abs().max()),
        "tolerance": _TOLERANCE * max(1.0, float(expected.abs().max())),
        "top1_agreement": float((found.argmax(1) == expected.argmax(1)).double().mean()),
    }
