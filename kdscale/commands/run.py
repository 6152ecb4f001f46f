"""The whole recipe: teacher -> cache -> student without and with distillation -> table."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdscale import config
from kdscale.atomic_write import write_durably
from kdscale.building.location import check_place
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.base import Place
from kdscale.cache.stores.read_through import Copies
from kdscale.commands.build import build
from kdscale.commands.evaluate import QUICK_SECONDS, Evaluation
from kdscale.commands.report import write_page
from kdscale.commands.train import train
from kdscale.data.image_dataset import ImageDataset
from kdscale.distributed import create_accelerator
from kdscale.errors import Interrupted, RunError
from kdscale.experiment import check_recipe, required_manifest
from kdscale.experiment.checks import mention_ineffective
from kdscale.experiment.saved_runs import (
    check_content,
    check_same_recipe,
    check_same_run,
    check_same_teacher,
    is_begun,
    is_finished,
    is_same_teacher,
    of_caches,
    refuse_foreign_files,
    teacher_folder,
)
from kdscale.experiment.trained_models import Trust, given_teacher
from kdscale.regular_files import read_regular
from kdscale.report.run_results import Kind
from kdscale.runs.folder import RunFolder, RunInputs, RunSpec, Targets
from kdscale.runs.lock import run_lock
from kdscale.tables.results_table import Row, results_table
from kdscale.target_sources.ensemble import check_different, further_caches

log = logging.getLogger(__name__)


def run_recipe(
    recipe: config.Recipe,
    *,
    folder: Path,
    cache_root: Path,
    cache: Place | None = None,
    copies: Copies | None = None,
    seeds: Sequence[int] = (0,),
    online: bool = False,
) -> dict[str, Any]:
    """Run a recipe into `folder`; what is finished there is reused, what is begun is resumed.

    Args:
        recipe: the recipe.
        folder: gets one run folder a model, `result.json`, `report.md` and `report.html`.
        cache_root: where caches and decoded images lie.
        cache: the cache's folder or URL; found by content when None.
        copies: as of `train`.
        seeds: of the students; there is one teacher and one cache.
        online: also train students with the teacher at every step.

    Returns:
        What `result.json` holds: the first distilled student's result and `rows`, one a model.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command goes on from there.
    """
    check_place(cache)
    seeds = list(dict.fromkeys(seeds))
    mention_ineffective(recipe, *([] if recipe.teacher.is_trained else ["teacher"]), "student")
    train_set, test_set = check_recipe(recipe, cache_root)
    RunSpec("student", "teacher" if online else "cache", seeds[0]).section(recipe)
    with run_lock(folder, create_accelerator()):
        _open_folder(folder, recipe)
        splits = RunInputs(train_set.fingerprint, test_set.fingerprint, teacher=None, cache=None)
        teacher, weights = _teacher(recipe, folder, splits, cache_root)
        with stopped_with_advice(folder):
            path = build(recipe, cache_root=cache_root, cache=cache, teacher_weights=weights)
        places = {
            "cache_root": cache_root, "cache": path, "copies": copies, "teacher_weights": weights
        }  # fmt: skip
        contents = _contents(splits, _manifests(recipe, train_set, path, cache_root))
        kinds: list[Targets] = ["none", "cache", "teacher"] if online else ["none", "cache"]
        if not train_set.labelled:
            log.info("the training split has no labels: no student alone to compare with")
            kinds.remove("none")
        rows = [Row("teacher", [teacher])]
        for targets in kinds:
            rows.append(Row(_FOLDERS[targets], []))
            for seed in seeds:
                run = folder / f"{_FOLDERS[targets]}-seed{seed}"
                job = RunSpec("student", targets, seed)
                result = _train_or_reuse(recipe, job, run, contents[targets], **places)
                rows[-1].results.append(result)
                _write_table(folder, rows)  # as they come
        result = _finish(folder, recipe, path, seeds[0], rows)
        with stopped_with_advice(folder):
            quick_evaluation(recipe, cache_root).folders([folder])
        if create_accelerator().is_main_process:
            write_page(folder, recipe.data.source, cache_root)
        return result


def _manifests(
    recipe: config.Recipe, images: ImageDataset, cache: Place, root: Path
) -> list[Manifest]:
    """Of the recipe's own cache, and of those of its ensemble."""
    own = read_manifest(cache)
    asked = required_manifest(recipe, images, own.teacher)
    others = further_caches(recipe.ensemble.caches, asked, images, root)
    check_different([(str(cache), own), *others])
    return [own, *(manifest for _, manifest in others)]


def _contents(splits: RunInputs, caches: Sequence[Manifest]) -> dict[Targets, RunInputs]:
    """What students learn from, by where their targets come from."""
    return {
        "none": splits,
        "teacher": replace(splits, teacher=caches[0].teacher["weights_sha256"]),
        "cache": of_caches(splits, caches),
    }


_FOLDERS: dict[Targets, Kind] = {"none": "alone", "teacher": "online", "cache": "cache"}


def trained_teacher(recipe: config.Recipe, folder: Path, *, required: bool = True) -> str | None:
    """Weights of the teacher that was trained in `folder`, where the recipe names none.

    Args:
        recipe: the recipe.
        folder: of its runs.
        required: False where a cache answers in the teacher's place: another one is no matter then.

    Raises:
        RunError: it was trained with other settings than the recipe's.
    """
    run = teacher_folder(folder)
    if recipe.teacher.is_trained or not is_finished(run):
        return None
    if not required and not is_same_teacher(run, recipe):
        return None
    check_same_teacher(run, recipe, _ANOTHER_TEACHER)
    return str(RunFolder(run).weights_file())


_ANOTHER_TEACHER = (
    "name weights (--set teacher.weights=FILE), or give the recipe another name (--set name=NAME): "
    "its teacher is then trained in runs/NAME"
)


def _open_folder(folder: Path, recipe: config.Recipe) -> None:
    """A folder is one recipe's once a student has begun; a single run's is not taken over."""
    if RunFolder(folder).is_run:
        raise RunError(f"{folder} holds a single run of `kdscale train`: name another --run")
    if (folder / "sweep.json").is_file():
        raise RunError(f"{folder} holds a sweep: name another --run")
    refuse_foreign_files(folder, RunFolder(folder).recipe_file.name)
    RunFolder(folder).check_files()
    students = [run for kind in _FOLDERS.values() for run in folder.glob(f"{kind}-seed*")]
    if any(is_begun(run) or is_finished(run) for run in students):
        check_same_recipe(folder, recipe)
    elif create_accelerator().is_main_process:
        RunFolder(folder).write_recipe(recipe)


def _teacher(
    recipe: config.Recipe, folder: Path, splits: RunInputs, cache_root: Path
) -> tuple[dict[str, Any], str | None]:
    """The teacher's result, and its weights where the recipe names none."""
    if recipe.teacher.is_trained:
        log.info("teacher: weights of %s", recipe.teacher.weights or recipe.teacher.model)
        found = quick_evaluation(recipe, cache_root).model(
            given_teacher(folder, recipe, Trust(recipe=recipe))
        )
        return {key: found[key] for key in _OF_GIVEN_TEACHER}, None
    return ready_teacher(recipe, folder, splits, cache_root)


def ready_teacher(
    recipe: config.Recipe, folder: Path, splits: RunInputs, cache_root: Path
) -> tuple[dict[str, Any], str]:
    """The result and weights of a teacher that is trained here, unless it was already.

    One that another run of this recipe trained with the same settings is taken as it is.
    """
    run = teacher_folder(folder)
    usual = teacher_folder(Path("runs") / recipe.name)
    if not is_finished(run) and not is_begun(run) and is_same_teacher(usual, recipe):
        run = usual
    job = RunSpec("teacher", "none", 0)
    result = _train_or_reuse(recipe, job, run, splits, cache_root=cache_root)
    return result, str(RunFolder(run).weights_file())


_OF_GIVEN_TEACHER = (
    "model", "num_parameters", "num_samples", "top1_accuracy", "top5_accuracy", "macro_precision",
    "macro_recall", "calibration_error", "non_finite_samples", "tied_samples",
)  # fmt: skip


def quick_evaluation(recipe: config.Recipe, cache_root: Path) -> Evaluation:
    """How models are evaluated at the end of a command; what is known of them is kept."""
    return Evaluation(cache_root, seconds=QUICK_SECONDS, reuse=True, trust=Trust(recipe=recipe))


def _train_or_reuse(
    recipe: config.Recipe, job: RunSpec, run: Path, content: RunInputs, **places: Any
) -> dict[str, Any]:
    if is_finished(run):
        if job.model == "teacher":
            check_same_teacher(run, recipe)
        else:
            check_same_run(run, recipe, job)
        check_content(run, content)
        log.info("%s is finished: reused", run)
        return RunFolder(run).read_result()
    log.info("training %s (%s), seed %d", job.model, _WORDS[job.targets], job.seed)
    with stopped_with_advice(run.parent):
        return train(recipe, job, run=run, resume=is_begun(run), **places)


@contextmanager
def stopped_with_advice(folder: Path) -> Iterator[None]:
    """A whole recipe, and a sweep, goes on by itself: it has no --resume."""
    try:
        yield
    except Interrupted as stopped:
        raise type(stopped)(
            f"stopped; all that is done in {folder} is kept: run the same command again to go on"
        ) from stopped


_WORDS = {"none": "labels alone", "teacher": "online teacher", "cache": "cached teacher"}


def _write_table(folder: Path, rows: Sequence[Row]) -> None:
    if create_accelerator().is_main_process:
        write_durably(folder / "report.md", (results_table(rows) + "\n").encode())


def _finish(
    folder: Path, recipe: config.Recipe, cache: Place, first_seed: int, rows: Sequence[Row]
) -> dict[str, Any]:
    """The folder reads like a run of its own: that of the first student taught by the cache."""
    distilled = RunFolder(folder / f"{_FOLDERS['cache']}-seed{first_seed}")
    tables = [asdict(row) for row in rows]
    result = {
        **distilled.read_result(), "recipe": recipe.name, "cache_path": str(cache), "rows": tables
    }  # fmt: skip
    if create_accelerator().is_main_process:
        whole = RunFolder(folder)
        write_durably(whole.metrics_file, read_regular(distilled.metrics_file))
        whole.write_result(result)
    return result
