"""Results of a training for `result.json`, and the description in a weights file's header."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.evaluation.embeddings import KNN
from kdscale.experiment.datasets import clean_shape
from kdscale.models.deployable import pixels_of
from kdscale.models.registry import num_parameters
from kdscale.models.torchvision_weights import implied_options
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.cached import CachedTargets
from kdscale.training.feature_student import unwrap_student
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)


def result_of(
    loop: Trainer,
    job: RunSpec,
    section: config.ModelSection,
    settings: config.TrainSection,
    last: Mapping[str, float],
) -> dict[str, Any]:
    """Return the fields of `result.json`; `last` is the last evaluation on the test split.

    Without a test split, `last` is empty.
    """
    result = {
        **last,
        **({"best_top1_accuracy": loop.state.best_top1_accuracy} if last else {}),
        "train_seconds": round(loop.state.train_seconds, 3),
        "num_parameters": num_parameters(unwrap_student(loop.accelerator.unwrap_model(loop.model))),
        "targets": job.targets,
        "seed": job.seed,
        "role": job.model,
        "model": section.model,
        "epochs": round(loop.epoch),
        "steps": loop.state.step,
        "num_processes": loop.accelerator.num_processes,
        "device": loop.accelerator.device.type,
    }
    if section.headless and last:
        result["classifier"] = KNN
    if loop.state.best_validation_accuracy >= 0:
        names = ("best_validation_accuracy", "chosen_step", "chosen_top1_accuracy")
        result |= {name: getattr(loop.state, name) for name in names}
        if loop.average is not None:
            result["chosen_average"] = loop.state.chosen_average
    if result["epochs"] < settings.epochs:
        result["ended_early"] = True
    if loop.forward.compiled is not None:
        result["compile_seconds"] = round(loop.state.compile_seconds, 3)
    result |= loop.optimizer_step.describe_scale()
    return result


def reading_of(
    caches: Sequence[CachedTargets], loop: Trainer, train_seconds: float
) -> dict[str, dict[str, Any]]:
    """Return the field `reading` of `result.json`: reads since this process began."""
    used = loop.loader.num_samples / loop.accelerator.num_processes
    first, *others = (cached.reading(used / cached.manifest.num_samples) for cached in caches)
    reading = sum(others, first)
    log.info("targets: %s", reading.describe(train_seconds))
    return {"reading": reading.to_json(train_seconds)}


def weights_metadata(
    section: config.ModelSection, images: ImageDataset, tested: ImageDataset | None, loop: Trainer
) -> dict[str, object]:
    """Return what a weights file states: model, preprocessing, classes, size of the images."""
    return {
        "model": section.model,
        "options": {**implied_options(section.model, section.options), **section.options},
        "num_classes": images.num_classes,
        "class_names": list(images.classes),
        "preprocess": loop.forward.preprocess.describe(),
        "pixels": pixels_of(clean_shape(images if tested is None else tested)),
    }
