"""The recipe's images, which of them train, and whether its two splits go together."""

import logging
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdscale import config
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.equal_images import describe_conflicts, describe_overlap
from kdscale.data.given_images import IN_MEMORY
from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.loader import DeviceImages
from kdscale.data.pixel_sources import check_fixes_size
from kdscale.data.source import SourceOptions
from kdscale.data.split_cut import SplitCut
from kdscale.data.validation_split import split_validation
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError, DataError
from kdscale.experiment.views import clean_pipeline, pipeline, training_pipeline
from kdscale.formatting import number_of, printable

log = logging.getLogger(__name__)


def training_images(recipe: config.Recipe, root: Path, *, labelled: bool) -> ImageDataset:
    """The recipe's training split, decoded.

    Args:
        recipe: the recipe.
        root: where decoded images lie.
        labelled: whether a loss needs labels. Without labels, the test split names the classes.
    """
    if labelled and recipe.data.unlabelled:
        raise ConfigError(
            "data.unlabelled is true, and the loss needs labels: set loss.hard_weight = 0, or "
            "leave data.unlabelled out"
        )
    images = _images(recipe, root, test=False, labelled=labelled)
    _check_distinguishes(images, labelled=labelled)
    _check_views_fix_size(recipe, images)
    if recipe.data.validation and not images.labelled:
        raise ConfigError(
            f"data.validation is {recipe.data.validation}, but split {images.split!r} of "
            f"{images.name} has no labels to choose the best weights by: set data.validation = 0"
        )
    if not images.classes and (tested := test_images(recipe, root)) is not None:
        images = replace(images, classes=tested.classes)
    if not images.classes and not (recipe.teacher.headless and recipe.student.headless):
        raise DataError(
            f"neither split {images.split!r} of {images.name} nor its test split names classes: "
            "check the label column, or name the classes of the teacher in data.class_names"
        )
    return images


def test_images(recipe: config.Recipe, root: Path) -> ImageDataset | None:
    """Return the test split, or the test part of the training split, decoded.

    None where `data.test_split` is "none".
    """
    if not recipe.data.is_tested:
        return None
    try:
        return _images(recipe, root, test=True, labelled=True)
    except DataError as error:
        if not recipe.student.headless:
            raise
        raise DataError(
            f"{error}. Where no image has a label, set data.test_split = 'none': the student is "
            "then trained without evaluations"
        ) from error


def clean_images(recipe: config.Recipe, root: Path) -> ImageDataset:
    """The test split, or the training split without one: what a model takes when it is used."""
    tested = test_images(recipe, root)
    return training_images(recipe, root, labelled=False) if tested is None else tested


test_images.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def _images(recipe: config.Recipe, root: Path, *, test: bool, labelled: bool) -> ImageDataset:
    levels, share = recipe.data.grey_range, recipe.data.test
    split = recipe.data.test_split if test and not share else recipe.data.train_split
    options = SourceOptions(
        image_column=recipe.data.image,
        label_column=recipe.data.label,
        unlabelled=(recipe.data.train_split,) if recipe.data.unlabelled else (),
        classes=recipe.data.classes,
        class_names=recipe.data.class_names,
        config=recipe.data.config,
        revision=recipe.data.revision,
        grey_range=None if levels is None else (levels[0], levels[1]),
        cut=SplitCut(share, test, recipe.data.test_split) if share else None,
    )
    source = source_path(recipe.data.source)
    images = load_images(source, split=split, root=root, require_labels=labelled, options=options)
    if images.num_classes == 1:
        raise DataError(
            f"all images of split {images.split!r} of {images.name} are of one class, "
            f"{images.classes[0]!r}: wanted at least two to tell apart. Point --data at a whole "
            "copy, or set data.label to another column"
        )
    clean = clean_pipeline(recipe)
    if isinstance(images.pixels, EncodedImages):
        check_fixes_size(images.pixels, clean, "data.clean")
    images = replace(images, name=recipe.data.source, clean=tuple(recipe.data.clean))
    if line := describe_conflicts(images):
        log.warning("data: %s", line, extra={"once": True})
    return images


def _check_distinguishes(images: ImageDataset, *, labelled: bool) -> None:
    """Stop where a model could learn nothing: a single image, or images of a single class."""
    place = f"split {images.split!r} of {images.name}"
    if images.num_samples < 2:
        raise DataError(f"{place} holds 1 image: wanted at least two to train on")
    if labelled and len(np.unique(images.labels)) == 1:
        raise DataError(
            f"all {images.num_samples} images of {place} are of one of its {images.num_classes} "
            f"classes, {images.classes[images.labels[0]]!r}: wanted at least two to train on"
        )


def _check_views_fix_size(recipe: config.Recipe, images: ImageDataset) -> None:
    """Whatever may be trained on gives images of several sizes one size."""
    if not isinstance(images.pixels, EncodedImages):
        return
    check_fixes_size(images.pixels, pipeline(recipe, images.num_samples), "views.operations")
    if recipe.teacher.train is not None:
        views = training_pipeline(recipe, recipe.teacher.train, images.num_samples)
        check_fixes_size(images.pixels, views, "teacher.train.operations")


def source_path(name: str) -> str:
    """Return the hub name or path of a source; `embedded:NAME` comes with the package.

    Raises:
        DataError: it was in the memory of Python code, and nothing else names it.
    """
    if name.startswith(IN_MEMORY):
        raise DataError(
            f"the data set {name.removeprefix(IN_MEMORY)!r} was given from Python, in memory: name "
            "files with the same images with --data"
        )
    embedded = name.removeprefix("embedded:")
    return name if embedded == name else str(files("kdscale") / "assets" / embedded)


def check_same_classes(train: ImageDataset, test: ImageDataset) -> None:
    """Stop where labels of the two splits would mean different things.

    Raises:
        ConfigError: naming both.
    """
    if train.labelled and train.classes != test.classes:
        raise ConfigError(
            f"split {train.split!r} has {number_of(train.num_classes, 'class', 'classes')} and "
            f"split {test.split!r} {test.num_classes}, or they are named otherwise: choose "
            "data.classes, or other splits"
        )


def check_splits(train: ImageDataset, test: ImageDataset | None) -> None:
    """Stop where the two splits have other classes; warn of shared images and other shapes.

    Raises:
        ConfigError: labels of the two splits mean different things.
    """
    if test is not None:
        check_same_classes(train, test)
        mention_shared_images(train, test)
        mention_other_shape(train, test)


def mention_shared_images(train: ImageDataset, test: ImageDataset) -> None:
    """Warn where a model will be tested on images that it is trained on."""
    if line := describe_overlap(train, test):
        log.warning("data: %s", line, extra={"once": True})


def mention_other_shape(train: ImageDataset, test: ImageDataset) -> None:
    """Warn if a model will be evaluated on images of another size, or of other channels."""
    (channels, *size), (test_channels, *test_size) = (clean_shape(one) for one in (train, test))
    if (channels, size) != (test_channels, test_size):
        log.warning(
            "clean images of split %r are %d x %d with %s, those of split %r %d x %d with %s: if "
            "that is not meant, name operations in data.clean that give both one size",
            train.split, *size, number_of(channels, "channel"),
            test.split, *test_size, number_of(test_channels, "channel"),
        )  # fmt: skip


def clean_shape(images: ImageDataset) -> tuple[int, int, int]:
    """Channels, height and width of a split's images that are not augmented."""
    pixels, _ = DeviceImages(images, torch.device("cpu")).gather(torch.zeros(1, dtype=torch.int64))
    return int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3])


def two_views(images: DeviceImages, views: Pipeline) -> Tensor:
    """Two images as a model is trained on them, uint8 [2, C, H, W]; of one image, twice that."""
    index = torch.arange(2) % len(images.labels)
    return images.render_views(views, 0, index).pixels


def sample_indices(recipe: config.Recipe, images: ImageDataset) -> tuple[Tensor, Tensor]:
    """Indices of the training split to train on and to validate on.

    Raises:
        ConfigError: `data.validation` leaves no image to validate on, or none to train on.
    """
    share, number = recipe.data.validation, images.num_samples
    training, held_out = split_validation(number, share)
    if share and not (len(training) and len(held_out)):
        raise ConfigError(
            f"data.validation is {share:g}, which holds out {len(held_out)} of "
            f"{number_of(number, 'training image')}: wanted at least one to validate on and one to "
            f"train on, so {1 / number:.2g} to {1 - 1 / number:.6g}, or 0 for no validation"
        )
    return training, held_out


def names_text(names: "list[str] | tuple[str, ...]") -> str:
    """The first class names, and how many there are."""
    first = ", ".join(map(printable, names[:5]))
    return f"{first}, … ({len(names)})" if len(names) > 5 else f"{first} ({len(names)})"
