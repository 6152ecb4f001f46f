"""Write a recipe for a folder of images and a teacher, after looking at both."""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.atomic_write import write_output
from kdscale.config import parse_recipe
from kdscale.config.recipe import parse_toml
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.headers import Headers, read_headers
from kdscale.data.image_dataset import describe_split
from kdscale.data.source import SourceOptions, open_source
from kdscale.errors import ConfigError, ModelError, StorageError
from kdscale.experiment.cache_spec import check_recipe
from kdscale.formatting import number_of, shortened
from kdscale.models.checkpoints import read_metadata
from kdscale.models.deployable import size_of
from kdscale.models.preprocess import Preprocess
from kdscale.models.untrusted import create_named_by_file

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIDE = 224
_SMALL = 96
"""Largest side of images that are cropped with padding, and that a small student is chosen for."""
_VIEWS, _STUDENT_EPOCHS, _TEACHER_EPOCHS, _FINE_TUNING_EPOCHS = 10, 30, 30, 10


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher as it is named on the command line, and what its weights state."""

    model: str
    lines: tuple[str, ...]
    """Lines of `[teacher]` that name its weights, if it has any."""
    training: tuple[str, ...]
    """Lines of `[teacher.train]`; () = the teacher is trained already."""
    mean: tuple[float, ...]
    """Mean of each channel, of pixels scaled to 0..1; as `std`, also the student's."""
    std: tuple[float, ...]
    side: int | None
    """Side in pixels of the images that the weights were trained on; None if it is not stated."""


def write_recipe(
    folder: Path, *, teacher: str, student: str | None, out: Path | None, cache_root: Path
) -> tuple[Path, str]:
    """Write a commented recipe that runs.

    Args:
        folder: images, one folder for each class, below `train` and `test`, or any other source
            that a recipe may name.
        teacher: name of a model, or a weights file that states its model.
        student: name of a model; None = chosen by the size of the images.
        out: the file; None = `NAME.toml` in the current folder.
        cache_root: folder of decoded images, which the check of the recipe needs.

    Returns:
        The file, and its text.

    Raises:
        ConfigError: the file exists, or a model is unknown.
        KdscaleError: the data or the weights cannot be used.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+|^[._-]+", "-", folder.resolve().name).strip("-") or "mine"
    path = out or Path(f"{name}.toml")
    if path.exists():
        raise ConfigError(f"{path} exists: name another file with --out, or remove it")
    train = open_source(str(folder), split="train", require_labels=False, options=SourceOptions())
    open_source(str(folder), split="test", require_labels=True, options=SourceOptions())
    headers = read_headers(train)
    own = _teacher(teacher, headers.channels, path)
    side = _side_of_views(headers, own.side)
    text = _recipe_text(
        name, path, _below(folder, path), train, headers, side, own,
        student or ("resnet20" if side <= _SMALL else "torchvision/resnet18"),
    )  # fmt: skip
    table = parse_toml(text)
    table["data"]["source"] = str(folder)  # it may be relative to the recipe
    if "weights" in table["teacher"]:
        table["teacher"]["weights"] = teacher
    check_recipe(parse_recipe(table, str(path)), cache_root)
    try:
        write_output(path, text.encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    return path, text


# --------------------------------------------------------------------------- looking


def _teacher(name: str, channels: int, recipe: Path) -> _Teacher:
    """Return what is known of a teacher by its name, or by its file of weights."""
    file = Path(name).expanduser()
    if file.is_file():
        return _of_file(file, recipe)
    if file.suffix in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"no weights file {name!r}: check the path, or name a model")
    library, _, short = name.partition("/")
    fine_tuned = (
        f"epochs = {_FINE_TUNING_EPOCHS}",
        "learning_rate = 1e-4",
    )
    if short and library in _STATED:
        mean, std, side = _STATED[library](short)
        lines: tuple[str, ...] = ()
        training: tuple[str, ...] = fine_tuned
        if library == "torchvision":
            training = ('pretrained = "torchvision:DEFAULT"', *fine_tuned)
        elif library == "timm":
            lines = ("options = { pretrained = true }",)
        return _Teacher(name, lines, training, mean, std, side)
    if library == "transformers":
        return _Teacher(name, (), (), *_IMAGENET, _SIDE)
    mean, std = _IMAGENET if channels == 3 else ((0.5,), (0.25,))
    scratch = (f"epochs = {_TEACHER_EPOCHS}", 'schedule = "one_cycle"', "learning_rate = 3e-3")
    return _Teacher(name, (), scratch, mean, std, None)


def _of_file(file: Path, recipe: Path) -> _Teacher:
    stated = read_metadata(file)
    advice = "name the model with --teacher, then set teacher.weights in the recipe"
    if "model" not in stated:
        raise ConfigError(f"{file} does not state its model, as weights of kdscale do: {advice}")
    preprocess = Preprocess.parse(stated["preprocess"])
    try:
        create_named_by_file(
            stated["model"], num_classes=stated.get("num_classes", 2),
            in_channels=preprocess.channels, options=stated.get("options"), origin=file,
            weights=file,
        )  # fmt: skip
    except ModelError as error:  # code, or a file, of the file's choice
        model = shortened(str(stated["model"]))
        raise ConfigError(
            f"the model {model!r} that {file} names cannot be taken from there: {advice}"
        ) from error
    size = size_of(stated.get("pixels"))
    lines = [f"weights = {_toml(_below(file, recipe))}"]
    if stated.get("options"):
        lines.append(f"options = {_toml(stated['options'])}")
    side = None if size is None else size[0]
    return _Teacher(stated["model"], tuple(lines), (), preprocess.mean, preprocess.std, side)


_Stated = tuple[tuple[float, ...], tuple[float, ...], int]


def _of_torchvision(short: str) -> _Stated:
    from torchvision import models

    try:
        transforms = models.get_model_weights(short).DEFAULT.transforms()
    except ValueError as error:
        raise ModelError(f"torchvision has no model {short!r}: {error}") from None
    return tuple(transforms.mean), tuple(transforms.std), int(transforms.crop_size[0])


def _of_timm(short: str) -> _Stated:
    try:
        stated = importlib.import_module("timm").get_pretrained_cfg(short)
    except ImportError:
        stated = None  # the check of the recipe says what to install
    if stated is None:
        return (*_IMAGENET, _SIDE)
    return tuple(stated.mean), tuple(stated.std), int(stated.input_size[-1])


_STATED: Mapping[str, Callable[[str], _Stated]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}
"""Mean, standard deviation and side of images that a library's weights were trained on."""


def _side_of_views(headers: Headers, trained: int | None) -> int:
    """Return the side of views: that of small images, or of the teacher, if images are as large."""
    (low, high), (narrow, wide) = headers.sizes
    if headers.one_size and low == narrow <= _SMALL:
        return low
    usual = (min(low, narrow) + min(high, wide)) // 2
    return max(16, min(trained or _SIDE, usual // 32 * 32 or usual))


# --------------------------------------------------------------------------- writing


def _recipe_text(
    name: str,
    path: Path,
    source: str,
    train: EncodedSplit,
    headers: Headers,
    side: int,
    teacher: _Teacher,
    student: str,
) -> str:
    file = str(path) if re.fullmatch(r"[\w./-]+", str(path)) else _toml(str(path))
    (low, high), (narrow, wide) = headers.sizes
    sizes = f"{low} x {narrow}" if headers.one_size else f"{low} to {high} x {narrow} to {wide}"
    labelled = bool((train.labels >= 0).all())
    batch = int(min(128, max(8, 2 ** int(np.log2(max(8, len(train.labels) // 8))))))
    as_stored = headers.one_size and (side, side) == (low, narrow)
    clean = (
        f"# All images are of {side} x {side} pixels, so evaluation needs no resizing."
        if as_stored
        else "# Done to each image for evaluation, and when the student is deployed.\n"
        f'clean = [{{ name = "resize", size = {round(side * 256 / 224)} }}, '
        f'{{ name = "center_crop", size = {side} }}]'
    )
    crop = (
        f'{{ name = "random_crop", padding = {max(1, side // 8)} }}'
        if as_stored
        else f'{{ name = "random_resized_crop", size = {side} }}'
    )
    hard, soft = (0.1, 0.9) if labelled else (0.0, 1.0)
    training = [
        "",
        "[teacher.train]              # once, on the labels" if teacher.training else "",
        *teacher.training,
        f"global_batch_size = {batch}" if teacher.training else "",
    ]
    return "\n".join(
        [
            f"# Written by kdscale init: {describe_split(train).removeprefix('data: ')};",
            f"# {sizes} pixels, {'colour' if headers.channels == 3 else 'grey'}.",
            "# Every field: kdscale recipes --reference. Look at the views and the plan first:",
            f"#   kdscale views {file} --out views.png",
            f"#   kdscale cache plan {file}",
            f"#   kdscale run {file}",
            f"name = {_toml(name)}",
            "",
            "[data]",
            f"source = {_toml(source)}",
            clean,
            "# validation = 0.1           # share of training images that chooses the best weights",
            "",
            "[views]                      # the same for teacher and student",
            "# Leave out the flip if left and right matter, as in texts and digits.",
            f'operations = [{crop}, "random_horizontal_flip"]',
            f"count = {_VIEWS}                   # per image; the teacher runs once on each view",
            "",
            "[teacher]",
            f"model = {_toml(teacher.model)}",
            *teacher.lines,
            *_input_lines(teacher, side),
            '# precision = "bfloat16"     # faster on GPUs',
            *[line for number, line in enumerate(training) if line or not number],
            *([""] if teacher.training else []),
            "[student]",
            f"model = {_toml(student)}",
            _input_line(teacher, None),
            "",
            "[student.train]",
            f"epochs = {_STUDENT_EPOCHS}                  # each view is trained on "
            f"{number_of(_STUDENT_EPOCHS // _VIEWS, 'time')}",
            f"global_batch_size = {batch}",
            'schedule = "one_cycle"',
            "learning_rate = 3e-3",
            '# precision = "bfloat16"',
            "",
            "[loss]",
            "temperature = 4.0",
            f"hard_weight = {hard}            # cross-entropy on the labels"
            + ("" if labelled else ": there are none"),
            f"soft_weight = {soft}            # T²·KL(teacher‖student)",
            "",
        ]
    )


def _input_lines(teacher: _Teacher, side: int) -> list[str]:
    """Return the lines of `[teacher]` about its input."""
    if any(line.startswith("weights") for line in teacher.lines):
        return ["# Mean, standard deviation, size and classes are stated by the weights."]
    if teacher.side is None or teacher.side <= side:
        return [_input_line(teacher, None)]
    note = f"# Its weights are of images of {teacher.side} pixels."
    return [note, _input_line(teacher, teacher.side)]


def _input_line(teacher: _Teacher, size: int | None) -> str:
    resized = "" if size is None else f", size = {size}"
    return f"input = {{ mean = {list(teacher.mean)}, std = {list(teacher.std)}{resized} }}"


def _below(path: Path, recipe: Path) -> str:
    """Return a path as the recipe names it: relative to its own folder, or absolute."""
    absolute, folder = path.expanduser().resolve(), recipe.resolve().parent
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _toml(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
