"""The recipe's teacher and student, with the preprocessing of each."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.errors import ConfigError, ModelError, WeightsError
from kdscale.experiment.datasets import clean_shape, names_text
from kdscale.experiment.views import cached_pipeline, pipeline, training_pipeline
from kdscale.models.checkpoints import read_metadata
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import check_model, create_model, lay_out_channels_last
from kdscale.models.statements import differs, statement_of
from kdscale.models.torchvision_weights import implied_options
from kdscale.models.untrusted import create_named_by_file, without_initial_weights
from kdscale.models.weights import load_weights
from kdscale.teacher.frozen_teacher import FrozenTeacher, freeze

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with the preprocessing that belongs to it."""

    model: nn.Module
    preprocess: Preprocess


def model_of(
    recipe: config.Recipe,
    section: config.ModelSection,
    images: ImageDataset,
    *,
    what: str,
    memory_format: config.MemoryFormat = "contiguous",
    named_by: Path | None = None,
    tested: ImageDataset | None = None,
) -> Classifier:
    """The model that a section names, with its weights; drawn from torch's generator without.

    Args:
        recipe: the recipe.
        section: its teacher or student.
        images: a split of the data set.
        what: the model's part, for messages.
        memory_format: how its weights lie in memory.
        named_by: the file that names the model, where that is all there is to trust; None where
            the user names it.
        tested: another split, whose clean images the model takes, too.

    Raises:
        ModelError: it cannot be created or does not fit the data.
        WeightsError: its weights cannot be used.
        ConfigError: no input is known for it.
    """
    weights = None if section.weights is None else Path(section.weights)
    stated = {} if weights is None else read_metadata(weights)
    preprocess = _preprocess(recipe, section, stated.get("preprocess"), what)
    _check_classes(stated.get("class_names"), images, what, str(weights))
    if isinstance(section, config.TeacherSection):
        _check_classes(section.classes, images, what, "teacher.classes")
    create = create_model
    if named_by is not None:
        create = partial(create_named_by_file, origin=named_by)
    model = create(
        section.model,
        num_classes=images.num_classes,
        in_channels=preprocess.channels,
        options=section.options if weights is None else options_of_file(section, stated),
    )
    sizes: set[int | tuple[int, int]]
    sizes = {preprocess.size or size for size in _sizes(recipe, images, what)}
    for size in sizes:
        check_model(
            model,
            num_classes=images.num_classes,
            channels=preprocess.channels,
            size=size,
            what=what,
        )
    if weights is not None:  # after a forward, which gives lazy layers their shapes
        load_weights(weights, model, rename=section.rename, what=what)
    if "class_names" not in stated and section.train is None:
        _check_statement(section, Classifier(model, preprocess), sizes, images, what)
    if tested is not None:
        _check_tested(model, preprocess, images, tested, what)
    if memory_format == "channels_last":
        size = next(iter(sizes))
        lay_out_channels_last(model, channels=preprocess.channels, size=size, what=what)
    return Classifier(model, preprocess)


def options_of_file(section: config.ModelSection, stated: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options where a file replaces the weights that its library would load.

    What those imply of the model stays: as the file says it, which may be older than that rule.
    """
    implied = implied_options(section.model, section.options)
    if stated.get("model") == section.model and isinstance(stated.get("options"), Mapping):
        implied = {key: stated["options"][key] for key in implied if key in stated["options"]}
    return {**implied, **without_initial_weights(section.model, section.options)}


def _check_tested(
    model: nn.Module, preprocess: Preprocess, images: ImageDataset, tested: ImageDataset, what: str
) -> None:
    """Raise ModelError where a model does not take the images of the other split."""
    channels, height, width = shape = clean_shape(tested)
    try:
        preprocess.check(torch.zeros((1, *shape), dtype=torch.uint8))
        check_model(
            model,
            num_classes=images.num_classes,
            channels=preprocess.channels,
            size=preprocess.size or (height, width),
            what=what,
        )
    except ModelError as error:
        if shape == clean_shape(images):  # then the model is at fault, not the split
            raise
        raise ModelError(
            f"split {tested.split!r} has images of {height} x {width} pixels and {channels} "
            f"channels, those of split {images.split!r} are others: {error}"
        ) from error


def _sizes(recipe: config.Recipe, images: ImageDataset, what: str) -> set[tuple[int, int]]:
    """Return height and width of a model's images: clean ones and views."""
    first = torch.zeros(1, dtype=torch.int64)
    on_cpu = DeviceImages(images, torch.device("cpu"))
    views = [pipeline(recipe, images.num_samples), on_cpu.clean]
    if what == "teacher":
        views[0] = cached_pipeline(recipe, images.num_samples)
        if recipe.teacher.train is not None and not recipe.teacher.is_trained:
            views.append(training_pipeline(recipe, recipe.teacher.train, images.num_samples))
    pixels = (on_cpu.render_views(view, 0, first).pixels for view in views)
    return {(one.shape[2], one.shape[3]) for one in pixels}


def model_to_train(
    recipe: config.Recipe,
    section: config.ModelSection,
    images: ImageDataset,
    *,
    seed: int,
    what: str,
    tested: ImageDataset | None = None,
) -> Classifier:
    """A model to train, its initial weights a function of `seed` alone."""
    torch.manual_seed(seed)
    laid_out = "contiguous" if section.train is None else section.train.memory_format
    classifier = model_of(recipe, section, images, what=what, memory_format=laid_out, tested=tested)
    torch.manual_seed(seed)  # dropout, likewise, whatever creating the model drew
    return classifier


def frozen_teacher(
    recipe: config.Recipe,
    images: ImageDataset,
    weights: str | None,
    device: torch.device,
    *,
    named_by: Path | None = None,
) -> FrozenTeacher:
    """The recipe's teacher with the weights it names, or those found at `weights`.

    `named_by` is as of `model_of`.

    Raises:
        WeightsError: it has none.
    """
    section = recipe.teacher
    if not section.is_trained:
        if weights is None:
            raise WeightsError(
                f"recipe {recipe.name!r} names no teacher.weights, and no trained teacher was "
                f"found: train it with `kdscale train {recipe.name} --model teacher`, or set "
                "teacher.weights"
            )
        section = section.model_copy(update={"weights": weights, "rename": {}})
    return frozen_model(recipe, section, images, device, named_by=named_by)


def frozen_teacher_or_random(
    recipe: config.Recipe, images: ImageDataset, weights: str | None, device: torch.device
) -> FrozenTeacher:
    """Like `frozen_teacher`, but with random weights where there are none: for timing alone."""
    if not recipe.teacher.is_trained and weights is None:
        return frozen_model(recipe, recipe.teacher, images, device)
    return frozen_teacher(recipe, images, weights, device)


def frozen_model(
    recipe: config.Recipe,
    section: config.TeacherSection,
    images: ImageDataset,
    device: torch.device,
    *,
    named_by: Path | None = None,
) -> FrozenTeacher:
    """A section's model with its weights, as a teacher that only answers."""
    teacher = model_of(
        recipe, section, images, what="teacher", memory_format=section.memory_format,
        named_by=named_by,
    )  # fmt: skip
    return freeze(
        teacher.model,
        teacher.preprocess,
        precision=section.precision,
        memory_format=section.memory_format,
        device=device,
        options={**implied_options(section.model, section.options), **section.options},
    )


def frozen_module(
    recipe: config.Recipe, module: nn.Module, num_classes: int, pixels: torch.Tensor
) -> FrozenTeacher:
    """Return a module that Python code gives as a frozen teacher; the recipe states its input.

    Args:
        recipe: its `[teacher]` states input and precision.
        module: the teacher.
        num_classes: of the data set.
        pixels: a few views, uint8 [B, C, H, W], on the device of the teacher.

    Raises:
        ModelError: it does not take the views, or does not give logits of the classes.
    """
    section = recipe.teacher
    preprocess = _preprocess(recipe, section, None, "teacher")
    check_model(
        module,
        num_classes=num_classes,
        channels=preprocess.channels,
        size=preprocess.size or (pixels.shape[2], pixels.shape[3]),
        what="teacher",
    )
    return freeze(
        module, preprocess, precision=section.precision, memory_format=section.memory_format,
        device=pixels.device,
    )  # fmt: skip


def _preprocess(
    recipe: config.Recipe, section: config.ModelSection, stated: object, what: str
) -> Preprocess:
    """Return a section's preprocessing, else the weights', else (a student) the teacher's."""
    given = section.input
    if given is None and stated is None and what != "teacher":
        given = recipe.teacher.input
    if given is None:
        if not isinstance(stated, Mapping):
            raise ConfigError(
                f"{what}.input is not set and its weights do not carry it: give mean, std and size"
            )
        return Preprocess.parse(stated)
    preprocess = Preprocess(tuple(given.mean), tuple(given.std), given.size)
    if isinstance(stated, Mapping) and Preprocess.parse(stated) != preprocess:
        raise WeightsError(
            f"{what}.input is {json.dumps(preprocess.describe())}, but its weights were trained "
            f"with {json.dumps(dict(stated))}: remove {what}.input, or use other weights"
        )
    return preprocess


def _check_classes(
    stated: object, images: ImageDataset, what: str, source: str, *, all_named: bool = True
) -> None:
    """Class order is part of what weights mean.

    Args:
        stated: names in the order of the logits, if any are known.
        images: the data set.
        what: the model's part.
        source: where the names stand.
        all_named: whether other names are another set of classes; False: perhaps only other words.

    Raises:
        ModelError: the data set has other classes, or the same in another order.
    """
    if not isinstance(stated, (list, tuple)) or not images.classes:
        return
    plain = str if all_named else _plain
    theirs, ours = [plain(name) for name in stated], [plain(name) for name in images.classes]
    if theirs == ours:
        return
    if sorted(theirs) == sorted(ours):
        first = [one == other for one, other in zip(theirs, ours, strict=True)].index(False)
        raise ModelError(
            f"{what}'s classes have another order than the data set's: number {first} is "
            f"{stated[first]!r} in {source}, and {images.classes[first]!r} in the data set: set "
            f"data.classes to the {what}'s order"
        )
    if all_named:
        raise ModelError(
            f"{what} was trained for classes {names_text([str(one) for one in stated])} ({source}),"
            f" the data set has {names_text(images.classes)}: use the data set and data.classes it "
            "was trained with"
        )


def _plain(name: object) -> str:
    """A name as it is compared: `African_elephant` is `african elephant`."""
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())


def _check_statement(
    section: config.ModelSection,
    classifier: Classifier,
    sizes: Collection[int | tuple[int, int]],
    images: ImageDataset,
    what: str,
) -> None:
    """Compare a recipe with what a library says of the weights that it loaded.

    Args:
        section: of the recipe.
        classifier: created from it.
        sizes: of the images that the model is given.
        images: the data set.
        what: the model's part.

    Raises:
        ModelError: its classes are the data set's in another order.
    """
    stated = statement_of(section.model, classifier.model, section.options)
    if stated is None:
        return
    _check_classes(stated.classes, images, what, stated.source, all_named=False)
    ours, theirs = classifier.preprocess, stated.preprocess
    if what != "teacher" or theirs is None:
        return
    sides = {size if isinstance(size, int) else min(size) for size in sizes}
    if any(differs(replace(ours, size=side), theirs) for side in sides):
        _warn_once(
            f"teacher.input is {json.dumps(ours.describe())} (images of {min(sides)} pixels), and "
            f"{stated.source} says {json.dumps(theirs.describe())}: set teacher.input to that, "
            "unless the difference is meant"
        )


@cache
def _warn_once(message: str) -> None:
    """A command may create a model several times."""
    log.warning("%s", message)
