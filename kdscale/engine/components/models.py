"""The recipe's teacher and student, with what each wants to be shown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from kdscale import config
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images
from kdscale.engine.components.images import names_text
from kdscale.engine.components.views import cached_pipeline, pipeline, training_pipeline
from kdscale.engine.teacher import FrozenTeacher, freeze
from kdscale.errors import ConfigError, ModelError, WeightsError
from kdscale.models.checkpoints import read_metadata
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import check_model, create_model, lay_out_channels_last
from kdscale.models.untrusted import create_named_by_file
from kdscale.models.weights import load_weights


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with the preprocessing that belongs to it."""

    model: nn.Module
    preprocess: Preprocess


def model_of(
    recipe: config.Recipe,
    section: config.Model,
    images: ImageSet,
    *,
    what: str,
    memory_format: config.MemoryFormat = "contiguous",
    named_by: Path | None = None,
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

    Raises:
        ModelError: it cannot be created or does not fit the data.
        WeightsError: its weights cannot be used.
        ConfigError: no input is known for it.
    """
    weights = None if section.weights is None else Path(section.weights)
    stated = {} if weights is None else read_metadata(weights)
    preprocess = _preprocess(recipe, section, stated.get("preprocess"), what)
    _check_classes(stated.get("class_names"), images, what)
    create = create_model
    if named_by is not None:
        create = partial(create_named_by_file, origin=named_by)
    model = create(
        section.model,
        num_classes=images.num_classes,
        in_channels=preprocess.channels,
        options=section.options,
    )
    sizes = {preprocess.size or shown for shown in _sizes(recipe, images, what)}
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
    if memory_format == "channels_last":
        shown = next(iter(sizes))
        lay_out_channels_last(model, channels=preprocess.channels, size=shown, what=what)
    return Classifier(model, preprocess)


def _sizes(recipe: config.Recipe, images: ImageSet, what: str) -> set[tuple[int, int]]:
    """Height and width of what a model is shown: clean images and views."""
    first = torch.zeros(1, dtype=torch.int64)
    shown = Images(images, torch.device("cpu"))
    views = [pipeline(recipe, images.num_samples), shown.clean]
    if what == "teacher":
        views[0] = cached_pipeline(recipe, images.num_samples)
        if recipe.teacher.train is not None and recipe.teacher.weights is None:
            views.append(training_pipeline(recipe, recipe.teacher.train, images.num_samples))
    pixels = (shown.show(view, 0, first).pixels for view in views)
    return {(one.shape[2], one.shape[3]) for one in pixels}


def model_to_train(
    recipe: config.Recipe, section: config.Model, images: ImageSet, *, seed: int, what: str
) -> Classifier:
    """A model to train, its initial weights a function of `seed` alone."""
    torch.manual_seed(seed)
    laid_out = "contiguous" if section.train is None else section.train.memory_format
    classifier = model_of(recipe, section, images, what=what, memory_format=laid_out)
    torch.manual_seed(seed)  # dropout, likewise, whatever creating the model drew
    return classifier


def frozen_teacher(
    recipe: config.Recipe,
    images: ImageSet,
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
    if section.weights is None:
        if weights is None:
            raise WeightsError(
                f"recipe {recipe.name!r} names no teacher.weights, and no trained teacher was "
                f"found: train it with `kdscale train {recipe.name} --model teacher`, or set "
                "teacher.weights"
            )
        section = section.model_copy(update={"weights": weights, "rename": {}})
    return frozen_model(recipe, section, images, device, named_by=named_by)


def frozen_teacher_or_random(
    recipe: config.Recipe, images: ImageSet, weights: str | None, device: torch.device
) -> FrozenTeacher:
    """Like `frozen_teacher`, but with random weights where there are none: for timing alone."""
    if recipe.teacher.weights is None and weights is None:
        return frozen_model(recipe, recipe.teacher, images, device)
    return frozen_teacher(recipe, images, weights, device)


def frozen_model(
    recipe: config.Recipe,
    section: config.Teacher,
    images: ImageSet,
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
        options=section.options,
    )


def _preprocess(
    recipe: config.Recipe, section: config.Model, stated: object, what: str
) -> Preprocess:
    """What the recipe says, else what the weights say, else (a student) the teacher's."""
    asked = section.input
    if asked is None and stated is None and what != "teacher":
        asked = recipe.teacher.input
    if asked is None:
        if not isinstance(stated, Mapping):
            raise ConfigError(
                f"{what}.input is not set and its weights do not carry it: give mean, std and size"
            )
        return Preprocess.parse(stated)
    preprocess = Preprocess(tuple(asked.mean), tuple(asked.std), asked.size)
    if isinstance(stated, Mapping) and Preprocess.parse(stated) != preprocess:
        raise WeightsError(
            f"{what}.input is {json.dumps(preprocess.describe())}, but its weights were trained "
            f"with {json.dumps(dict(stated))}: remove {what}.input, or use other weights"
        )
    return preprocess


def _check_classes(stated: object, images: ImageSet, what: str) -> None:
    """Class order is part of what weights mean."""
    if isinstance(stated, list) and images.classes and tuple(stated) != images.classes:
        raise ModelError(
            f"{what} was trained for classes {names_text(stated)}, the data set has "
            f"{names_text(images.classes)}: use the data set and data.classes it was trained with"
        )
