"""From a recipe to the things it names: where configuration stops and plain objects begin."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdscale import config
from kdscale.cache.manifest import Manifest
from kdscale.data.encoded import EncodedImages
from kdscale.data.images import ImageSet, load_images
from kdscale.data.loader import Images
from kdscale.data.pixels import check_fixes_size
from kdscale.data.views.operations.catalog import parse_operation
from kdscale.data.views.pairing import Pairing
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.views.split import split_validation
from kdscale.engine.encoding import check_mixing, check_temperature, choose_encoding
from kdscale.engine.ensemble import further_caches
from kdscale.engine.kept import Kept, look
from kdscale.engine.processes import create_accelerator
from kdscale.engine.requirements import check_loss, check_stored
from kdscale.engine.taught import taught
from kdscale.engine.teacher import FrozenTeacher, freeze
from kdscale.errors import ConfigError, ModelError, WeightsError
from kdscale.losses.objective import FeatureTerm, Objective
from kdscale.models.checkpoints import read_metadata
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import check_model, create_model
from kdscale.models.taps import Tap, find_module, named
from kdscale.models.weights import load_weights
from kdscale.optim import Schedule, create_optimizer
from kdscale.targets import Encoding

LIBRARIES = ("kdscale", "torch", "torchvision", "accelerate", "datasets", "zarr", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with the preprocessing that belongs to it."""

    model: nn.Module
    preprocess: Preprocess


def training_images(recipe: config.Recipe, root: Path, *, labelled: bool) -> ImageSet:
    """The recipe's training split, decoded.

    Args:
        recipe: the recipe.
        root: where decoded images lie.
        labelled: whether a loss asks for labels. Without labels, the test split names the classes.
    """
    images = _images(recipe, recipe.data.train_split, root, labelled=labelled)
    _check_views_fix_size(recipe, images)
    if recipe.data.validation and not images.labelled:
        raise ConfigError(
            f"data.validation is {recipe.data.validation}, but split {images.split!r} of "
            f"{images.name} has no labels to choose the best weights by: set data.validation = 0"
        )
    if images.classes:
        return images
    return replace(images, classes=test_images(recipe, root).classes)


def test_images(recipe: config.Recipe, root: Path) -> ImageSet:
    """The recipe's test split, decoded."""
    return _images(recipe, recipe.data.test_split, root, labelled=True)


test_images.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def _images(recipe: config.Recipe, split: str, root: Path, *, labelled: bool) -> ImageSet:
    images = load_images(
        source_path(recipe.data.source),
        split=split,
        root=root,
        image_column=recipe.data.image,
        label_column=recipe.data.label,
        classes=recipe.data.classes,
        require_labels=labelled,
    )
    clean = clean_pipeline(recipe)
    if isinstance(images.pixels, EncodedImages):
        check_fixes_size(images.pixels, clean, "data.clean")
    return replace(images, name=recipe.data.source, clean=tuple(recipe.data.clean))


def _check_views_fix_size(recipe: config.Recipe, images: ImageSet) -> None:
    """Whatever may be trained on gives images of several sizes one size."""
    if not isinstance(images.pixels, EncodedImages):
        return
    check_fixes_size(images.pixels, pipeline(recipe, images.num_samples), "views.operations")
    if recipe.teacher.train is not None:
        views = training_pipeline(recipe, recipe.teacher.train, images.num_samples)
        check_fixes_size(images.pixels, views, "teacher.train.operations")


def source_path(name: str) -> str:
    """The hub name or path of a source; `embedded:NAME` comes with the package."""
    embedded = name.removeprefix("embedded:")
    return name if embedded == name else str(files("kdscale") / "assets" / embedded)


def check_same_classes(train: ImageSet, test: ImageSet) -> None:
    """Stop where labels of the two splits would mean different things.

    Raises:
        ConfigError: naming both.
    """
    if train.labelled and train.classes != test.classes:
        raise ConfigError(
            f"split {train.split!r} has {train.num_classes} classes and split {test.split!r} "
            f"{test.num_classes}, or they are named otherwise: choose data.classes, or other splits"
        )


def check_recipe(recipe: config.Recipe, root: Path) -> tuple[ImageSet, ImageSet]:
    """Find what is wrong with a recipe before hours go into a part of it.

    Decodes both splits, parses all operations, and creates teacher and student once.

    Returns:
        The training and the test split.

    Raises:
        KdscaleError: the first thing that cannot work.
    """
    train, test = training_images(recipe, root, labelled=False), test_images(recipe, root)
    check_same_classes(train, test)
    loss, num_processes = objective(recipe), create_accelerator().num_processes
    check_loss(loss, train, pipeline(recipe, train.num_samples), num_processes)
    check_stored(loss, _encoding(recipe, train))
    check_temperature(_encoding(recipe, train), recipe.loss)
    further_caches(recipe.ensemble.caches, asked_manifest(recipe, train, {}), train, root)
    sample_indices(recipe, train)
    num_views(recipe)
    pipelines = [pipeline(recipe, train.num_samples)]
    if recipe.teacher.train is not None:
        pipelines.append(training_pipeline(recipe, recipe.teacher.train, train.num_samples))
    first = Images(train, torch.device("cpu"))
    for views in pipelines:
        first.show(views, 0, torch.zeros(1, dtype=torch.int64))
    student = trained_model(recipe, recipe.student, train, what="student")
    for term in loss.features:
        find_module(named(student.model), term.student, "the student")
    if recipe.teacher.input is not None or recipe.teacher.weights is not None:
        kept = kept_of(recipe, train, _frozen(recipe, recipe.teacher, train, torch.device("cpu")))
        shown = student.preprocess(first.show(pipelines[0], 0, torch.arange(2)).pixels)
        shapes = {tap.module: shape for tap, shape in zip(kept.taps, kept.shapes, strict=True)}
        taught(student.model, loss.features, shown, shapes, seed=0)
    return train, test


def sample_indices(recipe: config.Recipe, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Indices of the training split to train on and to validate on."""
    return split_validation(images.num_samples, recipe.data.validation)


def pipeline(recipe: config.Recipe, num_samples: int) -> Pipeline:
    """The recipe's views of a split of so many samples."""
    return Pipeline.parse(
        recipe.views.operations or recipe.data.clean,
        recipe.views.seed,
        pairing=_pairing(recipe, num_samples),
        enumerated=recipe.views.count == "all",
    )


def _pairing(recipe: config.Recipe, num_samples: int) -> Pairing:
    return Pairing(num_samples, recipe.data.validation, recipe.views.pair_within)


def clean_pipeline(recipe: config.Recipe) -> Pipeline:
    """What makes the images that are not augmented.

    Raises:
        ConfigError: an operation that draws at random, or mixes.
    """
    operations = [parse_operation(entry, "data.clean") for entry in recipe.data.clean]
    for entry, operation in zip(recipe.data.clean, operations, strict=True):
        if operation.num_draws:
            name = entry if isinstance(entry, str) else entry["name"]
            raise ConfigError(
                f"data.clean: {name} draws at random, so what it makes is not the clean image: "
                "name operations without draws, such as resize and center_crop"
            )
    return Pipeline(tuple(operations))


def cached_pipeline(recipe: config.Recipe, num_samples: int) -> Pipeline:
    """The views that the teacher is asked about: the recipe's; in fixed mode the clean images."""
    if recipe.views.mode == "fixed":
        return clean_pipeline(recipe)
    return pipeline(recipe, num_samples)


def training_pipeline(recipe: config.Recipe, settings: config.Train, num_samples: int) -> Pipeline:
    """The views that a model is trained on: the recipe's, unless a teacher has its own.

    Without operations they are the clean images.
    """
    if isinstance(settings, config.TeacherTrain) and settings.operations is not None:
        pairing = _pairing(recipe, num_samples)
        operations = settings.operations or recipe.data.clean
        return Pipeline.parse(
            operations, recipe.views.seed, pairing=pairing, field="teacher.train.operations"
        )
    return pipeline(recipe, num_samples)


def num_views(recipe: config.Recipe) -> int:
    """How many views the recipe's cache has."""
    views = pipeline(recipe, num_samples=0)
    if recipe.views.count == "all":
        return views.count_all()
    if recipe.views.count > 1 and not any(o.num_draws for o in views.operations):
        raise ConfigError(
            f"views.count is {recipe.views.count}, but no operation draws anything, so all views "
            "are alike: set views.count = 1"
        )
    return recipe.views.count


def fresh_views(recipe: config.Recipe, settings: config.Train, num_samples: int) -> ViewSchedule:
    """Another view each epoch, for who asks no cache: labels and a clean answer cost nothing."""
    views = training_pipeline(recipe, settings, num_samples)
    count = settings.epochs if any(one.num_draws for one in views.operations) else 1
    if views.enumerated:
        count = views.count_all()
    return ViewSchedule(count, recipe.views.seed, recipe.views.shift_every)


def shared_views(recipe: config.Recipe) -> ViewSchedule:
    """The schedule of the recipe's cache, and of a teacher that answers in its stead."""
    return ViewSchedule(num_views(recipe), recipe.views.seed, recipe.views.shift_every)


def objective(recipe: config.Recipe) -> Objective:
    """The recipe's losses."""
    loss = recipe.loss
    return Objective(
        loss.hard_weight,
        loss.soft_weight,
        loss.temperature,
        kind=loss.kind,
        options=loss.options,
        standardize=loss.standardize,
        warmup_epochs=loss.warmup_epochs,
        feature_weight=loss.feature_weight,
        feature_terms=tuple(
            FeatureTerm(one.kind, one.student, one.teacher, one.options) for one in loss.features
        ),
    )


def taps_asked(recipe: config.Recipe) -> tuple[Tap, ...]:
    """The modules of the teacher that the losses ask for, pooled as the recipe's cache has them."""
    asked = {term.teacher for term in objective(recipe).features}
    return tuple(Tap(f.module, f.pool) for f in recipe.cache.features if f.module in asked)


def optimizer(settings: config.Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a training section."""
    return create_optimizer(
        settings.optimizer,
        parameters,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def schedule(settings: config.Train, steps_per_epoch: int) -> Schedule:
    """The learning rates of a training section."""
    return Schedule(
        settings.schedule,
        settings.learning_rate,
        settings.epochs * steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        milestones=[milestone * steps_per_epoch for milestone in settings.milestones],
        gamma=settings.gamma,
    )


def trained_model(
    recipe: config.Recipe, section: config.Model, images: ImageSet, *, what: str
) -> Classifier:
    """A model with its weights; seeded before it is created, so nothing before it matters.

    Raises:
        ModelError: it cannot be created or does not fit the data.
        WeightsError: its weights cannot be used.
        ConfigError: no input is known for it.
    """
    weights = None if section.weights is None else Path(section.weights)
    stated = {} if weights is None else read_metadata(weights)
    preprocess = _preprocess(recipe, section, stated.get("preprocess"), what)
    _check_classes(stated.get("class_names"), images, what)
    model = create_model(
        section.model,
        num_classes=images.num_classes,
        in_channels=preprocess.channels,
        options=section.options,
    )
    if weights is not None:
        load_weights(weights, model, rename=section.rename, what=what)
    for size in {preprocess.size or shown for shown in _sizes(recipe, images, what)}:
        check_model(
            model,
            num_classes=images.num_classes,
            channels=preprocess.channels,
            size=size,
            what=what,
        )
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


def create_student(
    recipe: config.Recipe, section: config.Model, images: ImageSet, *, seed: int, what: str
) -> Classifier:
    """A model to train, its initial weights a function of `seed` alone."""
    torch.manual_seed(seed)
    classifier = trained_model(recipe, section, images, what=what)
    torch.manual_seed(seed)  # dropout, likewise, whatever creating the model drew
    return classifier


def frozen_teacher(
    recipe: config.Recipe, images: ImageSet, weights: str | None, device: torch.device
) -> FrozenTeacher:
    """The recipe's teacher with the weights it names, or those found at `weights`.

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
    return _frozen(recipe, section, images, device)


def frozen_teacher_or_random(
    recipe: config.Recipe, images: ImageSet, weights: str | None, device: torch.device
) -> FrozenTeacher:
    """Like `frozen_teacher`, but with random weights where there are none: for timing alone."""
    if recipe.teacher.weights is None and weights is None:
        return _frozen(recipe, recipe.teacher, images, device)
    return frozen_teacher(recipe, images, weights, device)


def _frozen(
    recipe: config.Recipe, section: config.Teacher, images: ImageSet, device: torch.device
) -> FrozenTeacher:
    teacher = trained_model(recipe, section, images, what="teacher")
    return freeze(
        teacher.model,
        teacher.preprocess,
        precision=section.precision,
        memory_format=section.memory_format,
        device=device,
    )


def kept_of(
    recipe: config.Recipe, images: ImageSet, teacher: FrozenTeacher, views: Pipeline | None = None
) -> Kept:
    """What the recipe's cache keeps of its teacher beside the logits.

    Raises:
        ConfigError: see `look`.
    """
    if recipe.cache.encoding != "embedding" and not recipe.cache.features:
        return Kept()
    return look(recipe.cache, teacher, few_views(recipe, images, teacher.device, views))


def few_views(
    recipe: config.Recipe, images: ImageSet, device: torch.device, views: Pipeline | None = None
) -> Tensor:
    """A few pictures as the teacher is shown them, uint8 [B, C, H, W]."""
    views = views or cached_pipeline(recipe, images.num_samples)
    index = torch.arange(min(8, images.num_samples))
    return Images(images, device).show(views, 0, index).pixels


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
            f"{what} was trained for classes {_names(stated)}, the data set has "
            f"{_names(images.classes)}: use the data set and data.classes it was trained with"
        )


def _names(names: "list[str] | tuple[str, ...]") -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, … ({len(names)})" if len(names) > 5 else f"{shown} ({len(names)})"


def _encoding(recipe: config.Recipe, images: ImageSet) -> Encoding:
    """How the recipe's targets are stored."""
    encoding, _ = choose_encoding(recipe.cache, images.num_classes)
    if recipe.views.mode == "fixed":
        check_mixing(encoding, pipeline(recipe, images.num_samples))
    return encoding


def asked_manifest(
    recipe: config.Recipe,
    images: ImageSet,
    teacher: Mapping[str, Any],
    views: Pipeline | None = None,
    kept: Kept | None = None,
) -> Manifest:
    """The manifest of the cache that a recipe asks for.

    Args:
        recipe: the recipe.
        images: its training split.
        teacher: what `FrozenTeacher.describe` says of its teacher.
        views: what the teacher is asked about, where that is not the recipe's.
        kept: what `kept_of` says of its teacher. Without, sizes that only the teacher knows are
            left open: the manifest will do to be compared with a cache's.
    """
    views = views or cached_pipeline(recipe, images.num_samples)
    encoding = _encoding(recipe, images)
    if kept is not None and kept.head is not None:
        encoding = replace(encoding, embedding_size=kept.head.inputs)
    features: list[dict[str, Any]] = [
        {"module": one.module, "pool": one.pool, "shape": []} for one in recipe.cache.features
    ]
    return Manifest(
        dataset={
            "fingerprint": images.fingerprint,
            "num_samples": images.num_samples,
            "classes": list(images.classes),
            "source": images.name,
            "split": images.split,
            "image_column": recipe.data.image,
            "label_column": recipe.data.label,
        },
        views={
            **views.describe(),
            "count": num_views(recipe),
        },
        teacher={**teacher, "model": recipe.teacher.model},
        encoding=encoding.name,
        top_k=encoding.top_k,
        temperatures=list(encoding.temperatures),
        embedding_size=encoding.embedding_size,
        features=features if kept is None else kept.described(),
        num_views=num_views(recipe),
        num_samples=images.num_samples,
        num_classes=images.num_classes,
        shard_samples=min(recipe.cache.shard_samples, images.num_samples),
        bytes_per_target=encoding.bytes_per_target,
        versions={name: version(name) for name in LIBRARIES},
    )
