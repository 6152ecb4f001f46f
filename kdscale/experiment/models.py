"""The recipe's teacher and student, with the preprocessing of each."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.errors import ModelError, WeightsError
from kdscale.experiment.datasets import clean_shape
from kdscale.experiment.model_checks import (
    Classifier,
    check_classes,
    check_statement,
    preprocess_of,
)
from kdscale.experiment.views import cached_pipeline, pipeline, training_pipeline
from kdscale.models.checkpoints import read_metadata
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import check_model, create_model, lay_out_channels_last
from kdscale.models.torchvision_weights import implied_options
from kdscale.models.untrusted import create_named_by_file, without_initial_weights
from kdscale.models.weights import load_weights
from kdscale.teacher.frozen_teacher import FrozenTeacher, freeze


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
    """Create the model that a section names, with its weights, or random ones if it names none.

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
    preprocess = preprocess_of(recipe, section, stated.get("preprocess"), what)
    if not section.headless:
        check_classes(stated.get("class_names"), images, what, str(weights))
    if isinstance(section, config.TeacherSection):
        check_classes(section.classes, images, what, "teacher.classes")
    create = create_model
    if named_by is not None:
        create = partial(create_named_by_file, origin=named_by, weights=weights)
    model = create(
        section.model,
        num_classes=images.num_classes,
        in_channels=preprocess.channels,
        options=section.options if weights is None else options_of_file(section, stated),
    )
    sizes: set[int | tuple[int, int]]
    sizes = {preprocess.size or size for size in _sizes(recipe, images, what)}
    classes = None if section.headless else images.num_classes
    for size in sizes:
        check_model(
            model,
            num_classes=classes,
            channels=preprocess.channels,
            size=size,
            what=what,
        )
    if weights is not None:  # after a forward, which gives lazy layers their shapes
        load_weights(weights, model, rename=section.rename, what=what, headless=section.headless)
    if "class_names" not in stated and section.train is None:
        check_statement(section, Classifier(model, preprocess), sizes, images, what)
    if tested is not None:
        _check_tested(Classifier(model, preprocess), images, tested, what, classes)
    if memory_format == "channels_last":
        size = next(iter(sizes))
        lay_out_channels_last(model, channels=preprocess.channels, size=size, what=what)
    return Classifier(model, preprocess)


def options_of_file(section: config.ModelSection, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options where a file replaces the weights that its library would load.

    Options that those weights imply remain, with the values in the file if it states any.
    """
    implied = implied_options(section.model, section.options)
    if stated.get("model") == section.model and isinstance(stated.get("options"), Mapping):
        implied = {key: stated["options"][key] for key in implied if key in stated["options"]}
    return {**implied, **without_initial_weights(section.model, section.options)}


def _check_tested(
    classifier: Classifier,
    images: ImageDataset,
    tested: ImageDataset,
    what: str,
    num_classes: int | None,
) -> None:
    """Raise ModelError where a model does not take the images of the other split."""
    model, preprocess = classifier.model, classifier.preprocess
    channels, height, width = shape = clean_shape(tested)
    try:
        preprocess.check(torch.zeros((1, *shape), dtype=torch.uint8))
        check_model(
            model,
            num_classes=num_classes,
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
    """Create a model to train; its initial weights are a function of `seed` alone."""
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
    """Return the recipe's teacher with the weights it names, or those at `weights`.

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
    """Return what `frozen_teacher` does, with random weights if there are none: for timing."""
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
    """Return a section's model with its weights, as a teacher: for forward passes only."""
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
        headless=section.headless,
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
    preprocess = preprocess_of(recipe, section, None, "teacher")
    classes = None if section.headless else num_classes
    _check_module(module, preprocess, classes, pixels, "teacher")
    return freeze(
        module, preprocess, precision=section.precision, memory_format=section.memory_format,
        device=pixels.device, headless=section.headless,
    )  # fmt: skip


def module_to_train(
    recipe: config.Recipe,
    module: nn.Module,
    pixels: torch.Tensor,
    images: ImageDataset,
    tested: ImageDataset | None,
    *,
    seed: int,
) -> Classifier:
    """Return a student that Python code gives, with its weights; the recipe states its input.

    Args:
        recipe: its `[student]` states input and memory format.
        module: the student.
        pixels: a few views, uint8 [B, C, H, W].
        images: the training split.
        tested: the test split; None without one.
        seed: of dropout.

    Raises:
        ModelError: it does not take the images, or does not give logits of the classes.
    """
    section, what = recipe.student, "student"
    preprocess = preprocess_of(recipe, section, None, what)
    module.cpu().train()  # as a model is that a recipe names; Accelerate moves it to the device
    classes = None if section.headless else images.num_classes
    _check_module(module, preprocess, classes, pixels, what)
    if tested is not None:
        _check_tested(Classifier(module, preprocess), images, tested, what, classes)
    if section.train is not None and section.train.memory_format == "channels_last":
        size = preprocess.size or (pixels.shape[2], pixels.shape[3])
        lay_out_channels_last(module, channels=preprocess.channels, size=size, what=what)
    torch.manual_seed(seed)
    return Classifier(module, preprocess)


def _check_module(
    module: nn.Module,
    preprocess: Preprocess,
    num_classes: int | None,
    pixels: torch.Tensor,
    what: str,
) -> None:
    """Raise ModelError where a module does not take the views, or has logits of other classes."""
    check_model(
        module,
        num_classes=num_classes,
        channels=preprocess.channels,
        size=preprocess.size or (pixels.shape[2], pixels.shape[3]),
        what=what,
    )
