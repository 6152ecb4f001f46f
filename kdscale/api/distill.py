"""Train a student from a cache with one call, by the loop of `kdscale train`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from kdscale import config
from kdscale.api.cached_dataset import CachedDataset
from kdscale.api.given_settings import images_root, interruptible, recipe_of
from kdscale.api.own_state import own_state
from kdscale.cache.manifest import Manifest
from kdscale.commands.train import train
from kdscale.data.given_images import MapDataset, images_of
from kdscale.data.image_dataset import ImageDataset
from kdscale.errors import ConfigError
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.given_objects import GivenObjects
from kdscale.experiment.locations import Locations
from kdscale.experiment.pretrained_init import given_init
from kdscale.experiment.saved_runs import (
    check_content,
    finished_as,
    inputs_of,
    is_begun,
    of_caches,
)
from kdscale.models.headless import NUM_CLASSES
from kdscale.models.weights import load_weights
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import RunSpec

_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


def distill(
    student: nn.Module,
    dataset: CachedDataset,
    test_set: MapDataset | ImageDataset | None,
    *,
    train: Mapping[str, Any],
    loss: Mapping[str, Any] = _DEFAULTS,
    input: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a student from a cache, as `kdscale train` does, and evaluate it on a test set.

    Args:
        student: gives logits [B, classes] of preprocessed images; with `hard_weight` and
            `soft_weight` 0 an embedding, tokens or a map, which k-NN evaluates. Trained in place,
            from the weights that it has.
        dataset: the cache with its data set, and with its views if they are transforms of your own.
        test_set: labelled images of the same classes, as `build_cache` takes them; None = a
            student without logits is not evaluated.
        train: fields of `[student.train]` of a recipe: `epochs`, `global_batch_size`, `optimizer`,
            `learning_rate`, ...
        loss: fields of `[loss]`: `kind`, `temperature`, `hard_weight`, `soft_weight`, ...
        input: what the student takes, as `[student.input]`: `mean`, `std`, `size`; None = what the
            teacher takes.
        run: folder of the run, as of `kdscale train --run`: logs, checkpoints, weights, result. The
            same call with the same folder resumes a training that was stopped, and returns one that
            is finished. None: nothing is stored.
        seed: of the order of samples, and of dropout.

    Returns:
        The student with its trained weights, in evaluation mode, and its metrics: the object in
        `result.json`, with `top1_accuracy` on the test set if there is one.

    Raises:
        KdscaleError: settings, images, model or cache cannot be used, or `run` is another training.
        KeyboardInterrupt: Ctrl-C or SIGTERM; with `run`, the same call resumes.
    """
    if any(isinstance(one, UninitializedParameter) for one in student.parameters()):
        raise ConfigError(
            f"{type(student).__name__} has lazy layers, which have no weights yet: run it on a "
            "batch of images first"
        )
    if test_set is None and not _is_headless(loss):
        raise ConfigError(
            "test_set is None, and a student that learns from labels or logits is evaluated on "
            "labelled images: give some, or let it learn from features alone (loss={'hard_weight': "
            "0, 'soft_weight': 0, 'feature_weight': 1, 'features': [...]})"
        )
    tested = None if test_set is None else _test_images(test_set, dataset)
    recipe = _recipe(
        student, dataset, is_tested=tested is not None, train=train, loss=loss, input=input
    )
    given = GivenObjects(
        train_set=dataset.images, test_set=tested, views=dataset.pipeline, student=student
    )
    devices = {one.device for one in student.parameters()}
    with own_state(), _folder(run) as folder:
        locations = Locations(
            cache_root=images_root(dataset.cache), cache=dataset.cache, run=folder
        )
        experiment = Experiment(recipe, locations, given=given)
        if run is None and experiment.accelerator.num_processes > 1:
            raise ConfigError("several processes train together: give a folder that all see (run)")
        with interruptible(None if run is None else folder):
            result = _train(experiment, dataset.manifest, seed)
        student.to(devices.pop() if len(devices) == 1 else experiment.device)
        load_weights(RunFolder(folder).weights_file(), student, what="student")
    return student.eval(), result


def _train(experiment: Experiment, manifest: Manifest, seed: int) -> dict[str, Any]:
    """Train, resume, or return the result of a finished run after checking that it is this one."""
    run, spec = experiment.locations.run_folder, RunSpec("student", "cache", seed)
    result = finished_as(run, experiment.recipe, spec)
    if result is None:
        return train(experiment, spec, resume=is_begun(run))
    splits = inputs_of(experiment.train_set, experiment.test_set)
    check_content(run, of_caches(splits, [manifest]))
    student = experiment.given.student
    assert student is not None, "distill gives one"
    given_init(run, student, main=experiment.accelerator.is_main_process)
    return result


@contextmanager
def _folder(run: str | Path | None) -> Iterator[Path]:
    """Yield the folder of the run; without one, a folder that is removed afterwards."""
    if run is not None:
        yield Path(run).expanduser().absolute()
        return
    with TemporaryDirectory(prefix="kdscale-") as folder:
        yield Path(folder)


def _test_images(test_set: MapDataset | ImageDataset, dataset: CachedDataset) -> ImageDataset:
    """Return the test split with the classes and the clean size of the training split."""
    if isinstance(test_set, ImageDataset):
        images = test_set
    else:
        images = images_of(
            test_set,
            class_names=dataset.class_names or None,
            clean=dataset.images.clean,
            name="test_set",
            root=images_root(dataset.cache),
        )
    if not images.labelled:
        raise ConfigError("test_set has no labels: a student is evaluated on labelled images")
    return replace(images, split="test")


def _is_headless(loss: Mapping[str, Any]) -> bool:
    """Return whether no loss needs logits of the student, so that it may give an embedding."""
    return not (loss.get("hard_weight", 1) or loss.get("soft_weight", 1))


def _recipe(
    student: nn.Module, dataset: CachedDataset, *, is_tested: bool, **student_settings: Any
) -> config.Recipe:
    """Return the recipe of a cache's student: what its manifest states, and the given settings."""
    manifest, kind = dataset.manifest, type(student)
    encoding = manifest.target_encoding.fields()
    stated = {"preprocess": "input", "precision": "precision", "memory_format": "memory_format"}
    return recipe_of(
        "distill",
        dataset.cache,
        data={
            "source": dataset.images.name,
            "clean": dataset.images.clean,
            **({} if is_tested else {"test_split": config.NO_SPLIT}),
        },
        views={
            "operations": manifest.views["operations"],
            "count": dataset.num_views,
            "seed": manifest.views["seed"],
        },
        cache={
            "encoding": manifest.encoding,
            "features": [{"module": f["module"], "pool": f["pool"]} for f in manifest.features],
            **{name: encoding[name] for name in ("top_k", "temperatures") if name in encoding},
        },
        teacher={
            "model": manifest.teacher["model"],
            "options": manifest.teacher.get("options", {}),
            **{ours: manifest.teacher[theirs] for theirs, ours in stated.items()},
        },
        student={
            "model": f"{kind.__module__}:{kind.__qualname__}",
            "options": {NUM_CLASSES: 0} if _is_headless(student_settings["loss"]) else {},
            "train": student_settings["train"],
            **({} if student_settings["input"] is None else {"input": student_settings["input"]}),
        },
        loss=student_settings["loss"],
    )
