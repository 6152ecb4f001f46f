"""Lines of a recipe about its teacher, from a model's name, a file of weights, or both."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.errors import ConfigError, ModelError
from kdscale.formatting import shortened
from kdscale.models.checkpoints import read_metadata, read_tensors
from kdscale.models.deployable import size_of
from kdscale.models.headless import NUM_CLASSES
from kdscale.models.preprocess import Preprocess
from kdscale.models.recognition import recognize_model
from kdscale.models.untrusted import create_named_by_file

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 224
"""Side of images, in pixels, where a model states none."""
_TEACHER_EPOCHS = 30
_SUFFIXES = (".safetensors", ".pt", ".pth")
_FINE_TUNED = ("epochs = 10", "learning_rate = 1e-4")


@dataclass(frozen=True, slots=True)
class TeacherLines:
    """A teacher in a recipe: model, weights, training and input."""

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
    pretrained: bool = False
    """Whether the teacher is fine-tuned from a file of weights."""
    states_input: bool = True
    """Whether weights, where there are some, state their input and classes."""
    headless: bool = False
    """Whether it has no classifier, as timm or its weights state."""


def lines_of_teacher(
    name: str, weights: Path | None, *, channels: int, num_classes: int, recipe: Path
) -> TeacherLines:
    """Return what is known of a teacher by its name, its file of weights, or both.

    Args:
        name: a model, or a file of weights, which then states its model or is recognised.
        weights: file of the model's weights, if `name` is a model.
        channels: of the images.
        num_classes: of the images. Weights of others are fine-tuned.
        recipe: the recipe's file, for paths in it.

    Raises:
        ConfigError: there is no such file, or its model is not known.
        KdscaleError: the weights cannot be read.
    """
    file = Path(name).expanduser()
    if file.is_file():
        if weights is not None:
            raise ConfigError(
                f"--teacher {name} and --weights {weights} are two files: leave one out"
            )
        return _of_file(file, num_classes, recipe)
    if file.suffix in _SUFFIXES:
        raise ConfigError(f"no weights file {name!r}: check the path, or name a model")
    if weights is not None:
        return _with_weights(name, weights, None, num_classes, recipe)
    return _of_name(name, channels)


def _of_name(name: str, channels: int) -> TeacherLines:
    library, _, short = name.partition("/")
    if short and library in _STATED:
        mean, std, side = _STATED[library](short)
        lines: tuple[str, ...] = ()
        training: tuple[str, ...] = _FINE_TUNED
        if library == "torchvision":
            training = ('pretrained = "torchvision:DEFAULT"', *_FINE_TUNED)
        elif library == "timm" and _is_headless(name):
            lines = ("options = { pretrained = true, num_classes = 0 }",)
            return TeacherLines(name, lines, (), mean, std, side, headless=True)
        elif library == "timm":
            lines = ("options = { pretrained = true }",)
        return TeacherLines(name, lines, training, mean, std, side)
    if library == "transformers":
        return TeacherLines(name, (), (), *_IMAGENET, SIDE)
    mean, std = _IMAGENET if channels == 3 else ((0.5,), (0.25,))
    scratch = (f"epochs = {_TEACHER_EPOCHS}", 'schedule = "one_cycle"', "learning_rate = 3e-3")
    return TeacherLines(name, (), scratch, mean, std, None)


def _of_file(file: Path, num_classes: int, recipe: Path) -> TeacherLines:
    stated = read_metadata(file)
    advice = f"name it: --teacher MODEL --weights {file}"
    if "model" not in stated:
        found = recognize_model(read_tensors(file)[0])
        if found is None:
            raise ConfigError(
                f"{file} does not state its model, and its tensors are of none of torchvision's "
                f"and kdscale's own: {advice}"
            )
        return _with_weights(found[0], file, found[1], num_classes, recipe)
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
    lines = [f"weights = {to_toml(below(file, recipe))}"]
    if stated.get("options"):
        lines.append(f"options = {to_toml(stated['options'])}")
    side = None if size is None else size[0]
    return TeacherLines(
        stated["model"], tuple(lines), (), preprocess.mean, preprocess.std, side,
        headless=(stated.get("options") or {}).get(NUM_CLASSES) == 0,
    )  # fmt: skip


def _with_weights(
    name: str, file: Path, of_classes: int | None, num_classes: int, recipe: Path
) -> TeacherLines:
    """Return the lines of a model with weights that state nothing of it.

    Args:
        name: of the model.
        file: its weights.
        of_classes: classes of the weights; None = those of the images.
        num_classes: of the images.
        recipe: the recipe's file.
    """
    library, _, short = name.partition("/")
    mean, std, side = _STATED[library](short) if library in _STATED else (*_IMAGENET, None)
    path = to_toml(below(file, recipe))
    if of_classes in (None, num_classes):
        headless = of_classes is None and _is_headless(name, file)
        options = ("options = { num_classes = 0 }",) if headless else ()
        return TeacherLines(
            name, (f"weights = {path}", *options), (), mean, std, side,
            states_input=False, headless=headless,
        )  # fmt: skip
    note = f"# {file.name} is of {of_classes} classes: all but its head is fine-tuned on these."
    training = (note, f"pretrained = {path}", *_FINE_TUNED)
    return TeacherLines(name, (), training, mean, std, side, pretrained=True)


_Stated = tuple[tuple[float, ...], tuple[float, ...], int]


def _of_torchvision(short: str) -> _Stated:
    from torchvision import models

    try:
        transforms = models.get_model_weights(short).DEFAULT.transforms()
    except ValueError as error:
        raise ModelError(f"torchvision has no model {short!r}: {error}") from None
    return tuple(transforms.mean), tuple(transforms.std), int(transforms.crop_size[0])


def _of_timm(short: str) -> _Stated:
    stated = _timm_config(short)
    if stated is None:
        return (*_IMAGENET, SIDE)
    return tuple(stated.mean), tuple(stated.std), int(stated.input_size[-1])


def _is_headless(name: str, weights: Path | None = None) -> bool:
    """Return whether timm states that a model's weights have no classifier, as DINOv2's.

    Args:
        name: of the model.
        weights: file to use in place of timm's weights; it may have a classifier.
    """
    library, _, short = name.partition("/")
    stated = _timm_config(short) if library == "timm" else None
    if stated is None or stated.num_classes:
        return False
    head = f".{stated.classifier}.weight"
    return weights is None or not any(f".{one}".endswith(head) for one in read_tensors(weights)[0])


def _timm_config(short: str) -> Any:
    """Return what timm states of a model's pretrained weights; None if it has none."""
    try:
        return importlib.import_module("timm").get_pretrained_cfg(short)
    except ImportError:
        return None  # the check of the recipe says what to install


_STATED: Mapping[str, Callable[[str], _Stated]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}
"""Mean, standard deviation and side of images that a library's weights were trained on."""


def below(path: Path, recipe: Path) -> str:
    """Return a path as the recipe names it: relative to its own folder, or absolute."""
    absolute, folder = path.expanduser().resolve(), recipe.resolve().parent
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def to_toml(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return (
            "{ "
            + ", ".join(f"{to_toml(key)} = {to_toml(one)}" for key, one in value.items())
            + " }"
        )
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
