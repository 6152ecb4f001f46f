"""The whole recipe: teacher -> cache -> student without and with distillation -> table."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdscale import config
from kdscale.durable import write_durably
from kdscale.engine.components import training_images
from kdscale.engine.processes import create_accelerator
from kdscale.engine.runs import (
    Job,
    Targets,
    check_same_recipe,
    check_same_run,
    is_begun,
    is_finished,
)
from kdscale.errors import RunError
from kdscale.runlog import read_result, write_result
from kdscale.stages.build import build
from kdscale.stages.evaluate import evaluate_section
from kdscale.stages.report import Row, results_table
from kdscale.stages.train import train

log = logging.getLogger(__name__)


def run_recipe(
    recipe: config.Recipe,
    *,
    folder: Path,
    cache_root: Path,
    cache: Path | None = None,
    seeds: Sequence[int] = (0,),
    online: bool = False,
) -> dict[str, Any]:
    """Run a recipe into `folder`; what is finished there is reused, what is begun is gone on with.

    Args:
        recipe: the recipe.
        folder: gets one run folder a model, `result.json` and `report.md`.
        cache_root: where caches and decoded images lie.
        cache: the cache's folder; found by content when None.
        seeds: of the students; there is one teacher and one cache.
        online: also train students with the teacher at every step.

    Returns:
        What `result.json` holds: the first distilled student's result and `rows`, one a model.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command goes on from there.
    """
    _open_folder(folder, recipe)
    teacher, weights = _teacher(recipe, folder, cache_root)
    path = build(recipe, cache_root=cache_root, cache=cache, teacher_weights=weights)
    places = {"cache_root": cache_root, "cache": path, "teacher_weights": weights}
    kinds: list[Targets] = ["cache", "teacher"] if online else ["cache"]
    if training_images(recipe, cache_root, labelled=False).labelled:
        kinds.insert(0, "none")
    else:
        log.info("the training split has no labels: no student alone to compare with")
    rows = [Row("teacher", [teacher])]
    for targets in kinds:
        rows.append(Row(_FOLDERS[targets], []))
        for seed in seeds:
            run = folder / f"{_FOLDERS[targets]}-seed{seed}"
            job = Job("student", targets, seed)
            rows[-1].results.append(_train_or_reuse(recipe, job, run, **places))
            _write_table(folder, rows)  # as they come
    return _finish(folder, recipe, path, seeds[0], rows)


_FOLDERS = {"none": "alone", "teacher": "online", "cache": "cache"}


def teacher_folder(folder: Path) -> Path:
    """Where a recipe's own teacher is trained."""
    return folder / "teacher"


def trained_teacher(recipe: config.Recipe, folder: Path) -> str | None:
    """Weights of the teacher that was trained in `folder`, where the recipe names none."""
    run = teacher_folder(folder)
    if recipe.teacher.weights is None and is_finished(run):
        return str(run / "weights.safetensors")
    return None


def _open_folder(folder: Path, recipe: config.Recipe) -> None:
    """A folder is one recipe's; a single run's is not taken over."""
    if (folder / "run.json").is_file():
        raise RunError(f"{folder} holds a single run of `kdscale train`: name another --run")
    if (folder / "recipe.toml").is_file():
        check_same_recipe(folder, recipe)
    elif create_accelerator().is_main_process:
        write_durably(folder / "recipe.toml", config.dump_recipe(recipe).encode())


def _teacher(
    recipe: config.Recipe, folder: Path, cache_root: Path
) -> tuple[dict[str, Any], str | None]:
    """The teacher's result, and its weights where the recipe names none."""
    if recipe.teacher.weights is not None:
        log.info("teacher: weights of %s", recipe.teacher.weights)
        return evaluate_section(recipe, recipe.teacher, "teacher", cache_root), None
    run = teacher_folder(folder)
    result = _train_or_reuse(recipe, Job("teacher", "none", 0), run, cache_root=cache_root)
    return result, trained_teacher(recipe, folder)


def _train_or_reuse(recipe: config.Recipe, job: Job, run: Path, **places: Any) -> dict[str, Any]:
    if is_finished(run):
        check_same_run(run, recipe, job)
        log.info("%s is finished: reused", run)
        return read_result(run)
    log.info("training %s (%s), seed %d", job.model, _WORDS[job.targets], job.seed)
    return train(recipe, job, run=run, resume=is_begun(run), **places)


_WORDS = {"none": "labels alone", "teacher": "online teacher", "cache": "cached teacher"}


def _write_table(folder: Path, rows: Sequence[Row]) -> None:
    if create_accelerator().is_main_process:
        write_durably(folder / "report.md", (results_table(rows) + "\n").encode())


def _finish(
    folder: Path, recipe: config.Recipe, cache: Path, first_seed: int, rows: Sequence[Row]
) -> dict[str, Any]:
    """The folder reads like a run of its own: that of the first student taught by the cache."""
    distilled = folder / f"{_FOLDERS['cache']}-seed{first_seed}"
    tables = [asdict(row) for row in rows]
    result = {
        **read_result(distilled), "recipe": recipe.name, "cache_path": str(cache), "rows": tables
    }  # fmt: skip
    if create_accelerator().is_main_process:
        shutil.copyfile(distilled / "metrics.jsonl", folder / "metrics.jsonl")
        write_result(folder, result)
    return result
