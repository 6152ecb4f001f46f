"""The cache that a recipe requires, and whether it can be built."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdscale import config
from kdscale.building.stored_outputs import StoredOutputs, find_stored_outputs
from kdscale.cache.manifest import Manifest
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.encodings import Embedding, Encoding
from kdscale.experiment.checks import check_loss, check_mixing, check_stored, check_trackers
from kdscale.experiment.datasets import (
    check_splits,
    sample_indices,
    test_images,
    training_images,
    two_views,
)
from kdscale.experiment.encoding import check_temperature, choose_encoding
from kdscale.experiment.model_checks import Classifier
from kdscale.experiment.models import frozen_model, model_of
from kdscale.experiment.training_setup import objective, optimizer
from kdscale.experiment.views import (
    cached_pipeline,
    few_views,
    num_views,
    pipeline,
    training_pipeline,
)
from kdscale.models.feature_extraction import FeatureSpec, find_module, named
from kdscale.target_sources.ensemble import further_caches
from kdscale.teacher.frozen_teacher import FrozenTeacher
from kdscale.teacher.output_checks import inspect_outputs
from kdscale.training.feature_student import with_features
from kdscale.training.trial_step import unused_parameters
from kdscale.training.unsaved_state import check_state_is_saved

_LIBRARIES = (
    "kdscale",
    "torch",
    "torchvision",
    "accelerate",
    "datasets",
    "zarr",
    "numpy",
    "pillow",
)


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that pixels, logits and files depend on, by name."""
    return {name: version(name) for name in _LIBRARIES}


def check_recipe(recipe: config.Recipe, root: Path) -> tuple[ImageDataset, ImageDataset | None]:
    """Find what is wrong with a recipe before hours go into a part of it.

    Decodes both splits, parses all operations, and creates teacher and student once.

    Returns:
        The training and the test split, None where there is none.

    Raises:
        KdscaleError: the first thing that cannot work.
    """
    check_trackers(recipe)
    train, test = training_images(recipe, root, labelled=False), test_images(recipe, root)
    check_splits(train, test)
    loss = objective(recipe)
    check_loss(loss, train, pipeline(recipe, train.num_samples))
    check_stored(loss, _encoding(recipe, train))
    check_temperature(_encoding(recipe, train), recipe.loss)
    further_caches(recipe.ensemble.caches, required_manifest(recipe, train, {}), train, root)
    sample_indices(recipe, train)
    num_views(recipe)
    pipelines = [pipeline(recipe, train.num_samples)]
    if recipe.teacher.train is not None:
        pipelines.append(training_pipeline(recipe, recipe.teacher.train, train.num_samples))
    first = DeviceImages(train, torch.device("cpu"))
    for views in pipelines:
        first.render_views(views, 0, torch.zeros(1, dtype=torch.int64))
    student = _check_trains(recipe, recipe.student, train, test, what="student")
    if recipe.teacher.train is not None and not recipe.teacher.is_trained:
        _check_trains(recipe, recipe.teacher, train, test, what="teacher")
    for term in loss.features:
        find_module(named(student.model), term.student, "the student")
    if recipe.teacher.input is not None or recipe.teacher.is_trained:
        teacher = frozen_model(recipe, recipe.teacher, train, torch.device("cpu"))
        outputs = stored_outputs_of(recipe, train, teacher)
        inspect_outputs(teacher, few_views(recipe, train, teacher.device))
        inputs = student.preprocess(two_views(first, pipelines[0]))
        shapes = {
            tap.module: shape for tap, shape in zip(outputs.taps, outputs.shapes, strict=True)
        }
        with_features(student.model, loss.features, inputs, shapes, seed=0)
    return train, test


def _check_trains(
    recipe: config.Recipe,
    section: config.ModelSection,
    train: ImageDataset,
    test: ImageDataset | None,
    *,
    what: str,
) -> Classifier:
    """Return the model of a section after a trial step in training mode."""
    classifier = model_of(recipe, section, train, what=what, tested=test)
    if section.train is not None:
        views = training_pipeline(recipe, section.train, train.num_samples)
        inputs = classifier.preprocess(two_views(DeviceImages(train, torch.device("cpu")), views))
        unused_parameters(
            classifier.model, inputs, num_classes=None if section.headless else train.num_classes,
            precision=section.train.precision, what=what,
        )  # fmt: skip
        check_state_is_saved(classifier.model, inputs, what)
        optimizer(section.train, classifier.model)
    return classifier


def stored_outputs_of(
    recipe: config.Recipe,
    images: ImageDataset,
    teacher: FrozenTeacher,
    views: Pipeline | None = None,
) -> StoredOutputs:
    """Return the teacher's outputs that the recipe's cache stores beside the logits.

    Raises:
        ConfigError: see `find_stored_outputs`.
    """
    embedding = recipe.cache.encoding == Embedding.name
    if not embedding and not recipe.cache.features:
        return StoredOutputs()
    features = [FeatureSpec(one.module, one.pool) for one in recipe.cache.features]
    pixels = few_views(recipe, images, teacher.device, views)
    return find_stored_outputs(teacher, pixels, features, embedding=embedding)


def _encoding(recipe: config.Recipe, images: ImageDataset) -> Encoding:
    """Return the encoding of the recipe's targets."""
    encoding, _ = choose_encoding(recipe.cache, images.num_classes)
    if recipe.views.mode == "fixed":
        check_mixing(encoding, pipeline(recipe, images.num_samples))
    return encoding


def _set(**fields: object) -> dict[str, object]:
    """Return the fields that are set: manifests of earlier versions lack newer ones."""
    return {name: one for name, one in fields.items() if one is not None}


def required_manifest(
    recipe: config.Recipe,
    images: ImageDataset,
    teacher: Mapping[str, Any],
    views: Pipeline | None = None,
    outputs: StoredOutputs | None = None,
) -> Manifest:
    """Return the manifest of the cache that a recipe requires.

    Args:
        recipe: the recipe.
        images: its training split.
        teacher: its teacher's `FrozenTeacher.describe`.
        views: the views of the teacher's forward pass; None for the recipe's.
        outputs: its teacher's `stored_outputs_of`. None: sizes that only the teacher determines
            are left out; the manifest can then only be compared with a cache's.
    """
    views = views or cached_pipeline(recipe, images.num_samples)
    encoding = _encoding(recipe, images)
    if outputs is not None and outputs.head is not None and isinstance(encoding, Embedding):
        encoding = replace(encoding, embedding_size=outputs.head.inputs)
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
            **_set(
                config=recipe.data.config,
                revision=recipe.data.revision,
                grey_range=recipe.data.grey_range,
                class_names=recipe.data.class_names,
                unlabelled=recipe.data.unlabelled or None,
                test=recipe.data.test or None,
            ),
        },
        views={
            **views.describe(),
            "count": num_views(recipe, views),
        },
        teacher={**teacher, "model": recipe.teacher.model},
        encoding=encoding.name,
        **encoding.fields(),
        features=features if outputs is None else outputs.described(),
        num_views=num_views(recipe, views),
        num_samples=images.num_samples,
        num_classes=images.num_classes,
        shard_samples=min(recipe.cache.shard_samples, images.num_samples),
        bytes_per_target=encoding.bytes_per_target,
        versions=dict(library_versions()),
    )
