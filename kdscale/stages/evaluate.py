"""Evaluate trained models on the test split."""

from pathlib import Path
from typing import Any

import torch

from kdscale import config
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images
from kdscale.engine import components
from kdscale.engine.evaluation import evaluate as evaluate_model
from kdscale.engine.processes import create_accelerator, main_process_first
from kdscale.errors import RunError
from kdscale.models.registry import num_parameters
from kdscale.runlog import read_result


def evaluate_run(run: Path, *, cache_root: Path, data: str | None = None) -> dict[str, Any]:
    """Evaluate a finished run's last weights.

    Args:
        run: the run's folder.
        cache_root: where decoded images lie.
        data: a local copy of the data set, where it is not where the recipe says.

    Returns:
        Metrics, each in 0..1, with the run's path, model and number of parameters.

    Raises:
        RunError: there is no finished run.
        KdscaleError: data or weights cannot be used.
    """
    result = read_result(run)
    if "rows" in result:
        raise RunError(f"{run} holds a whole recipe: evaluate the runs in it, for instance "
                       f"{run / 'cache-seed0'}")  # fmt: skip
    recipe = config.load_recipe(str(run / "recipe.toml"), data=data)
    section: config.Model = recipe.teacher if result["role"] == "teacher" else recipe.student
    update: dict[str, Any] = {
        "weights": str(run / "weights.safetensors"),
        "rename": {},
        "input": None,
    }
    trained = section.model_copy(update=update)
    precision = "float32" if section.train is None else section.train.precision
    metrics = evaluate_section(recipe, trained, result["role"], cache_root, precision=precision)
    return {"run": str(run), "targets": result["targets"], "seed": result["seed"], **metrics}


def evaluate_section(
    recipe: config.Recipe, section: config.Model, what: str, cache_root: Path, *, precision: str
) -> dict[str, Any]:
    """Metrics of a recipe's model with its trained weights on the recipe's test split."""
    accelerator = create_accelerator()
    with main_process_first(accelerator):
        test: ImageSet = components.test_images(recipe, cache_root)
    classifier = components.trained_model(recipe, section, test, what=what)
    model = classifier.model.to(accelerator.device)
    metrics = evaluate_model(
        model,
        classifier.preprocess,
        Images(test, accelerator.device),
        torch.arange(test.num_samples),
        test.num_classes,
        accelerator,
        precision,
    )
    return {
        "model": section.model,
        "num_parameters": num_parameters(model),
        "num_samples": test.num_samples,
        **metrics,
    }
