"""The whole recipe: teacher -> cache -> student without and with distillation -> table."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdscale.atomic_write import write_durably
from kdscale.building.location import check_place
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.commands.build import build
from kdscale.commands.evaluate import QUICK_SECONDS, Evaluation
from kdscale.commands.report import write_page
from kdscale.commands.train import train
from kdscale.config import Recipe
from kdscale.data.image_dataset import ImageDataset
from kdscale.errors import Interrupted, RunError
from kdscale.experiment.cache_spec import check_recipe, required_manifest
from kdscale.experiment.checks import mention_ineffective
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.saved_runs import (
    check_content,
    check_same_recipe,
    check_same_run,
    check_same_teacher,
    inputs_of,
    is_begun,
    is_finished,
    is_same_teacher,
    of_caches,
    refuse_foreign_files,
    student_folder,
    teacher_folder,
    usual_folder,
    write_recipe,
)
from kdscale.experiment.trained_models import Trust, given_teacher
from kdscale.experiment.training_setup import section_of
from kdscale.regular_files import read_regular
from kdscale.report.run_results import KIND_OF_TARGETS
from kdscale.runs.folder import RunFolder
from kdscale.runs.lock import run_lock
from kdscale.runs.run_spec import RunInputs, RunSpec, Targets
from kdscale.tables.results_table import ResultsRow, results_table
from kdscale.target_sources.ensemble import check_different, further_caches

log = logging.getLogger(__name__)


def run_recipe(
    experiment: Experiment, *, seeds: Sequence[int] = (0,), online: bool = False
) -> dict[str, Any]:
    """Run a whole recipe into the run folder; reuse what is finished, resume what was begun.

    Args:
        experiment: recipe and locations. The run folder gets one folder a model, `result.json`,
            `report.md` and `report.html`.
        seeds: of the students; there is one teacher and one cache.
        online: also train students with the teacher at every step.

    Returns:
        The object in `result.json`: the first distilled student's result and `rows`, one a model.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command resumes.
    """
    recipe, folder = experiment.recipe, experiment.locations.run_folder
    check_place(experiment.locations.cache)
    seeds = list(dict.fromkeys(seeds))
    mention_ineffective(recipe, *([] if recipe.teacher.is_trained else ["teacher"]), "student")
    train_set, test_set = check_recipe(recipe, experiment.locations.cache_root)
    section_of(recipe, RunSpec("student", "teacher" if online else "cache", seeds[0]))
    with run_lock(folder, experiment.accelerator):
        _open_folder(experiment)
        splits = inputs_of(train_set, test_set)
        teacher, weights = _teacher(experiment, splits)
        experiment = experiment.at(teacher_weights=weights)
        with stopped_with_advice(folder):
            experiment = experiment.at(cache=build(experiment))
        inputs = _inputs_by_targets(splits, _manifests(experiment, train_set))
        rows = [ResultsRow("teacher", teacher)] if teacher else []
        for targets in _targets(recipe, train_set, online=online):
            rows.append(ResultsRow(KIND_OF_TARGETS[targets], []))
            for seed in seeds:
                student = experiment.at(run=student_folder(folder, targets, seed))
                spec = RunSpec("student", targets, seed)
                rows[-1].results.append(_train_or_reuse(student, spec, inputs[targets]))
                _write_table(experiment, rows)  # as they come
        result = _finish(experiment, seeds[0], rows)
        if test_set is not None:
            with stopped_with_advice(folder):
                quick_evaluation(experiment).folders([folder])
        if experiment.accelerator.is_main_process:
            write_page(folder, recipe.data.source, experiment.locations.cache_root)
        return result


def _targets(recipe: Recipe, images: ImageDataset, *, online: bool) -> list[Targets]:
    """Return where the students' targets come from, one kind after the other."""
    kinds: list[Targets] = ["none", "cache", "teacher"] if online else ["none", "cache"]
    if not images.labelled or recipe.student.headless:
        why = "student has no classifier" if images.labelled else "training split has no labels"
        log.info("the %s: no student is trained on labels alone", why)
        kinds.remove("none")
    return kinds


def _manifests(experiment: Experiment, images: ImageDataset) -> list[Manifest]:
    """Return the manifests of the recipe's own cache and of those of its ensemble."""
    cache, recipe = experiment.locations.cache, experiment.recipe
    assert cache is not None, "it was just built"
    own = read_manifest(cache)
    required = required_manifest(recipe, images, own.teacher)
    root = experiment.locations.cache_root
    others = further_caches(recipe.ensemble.caches, required, images, root)
    check_different([(str(cache), own), *others])
    return [own, *(manifest for _, manifest in others)]


def _inputs_by_targets(splits: RunInputs, caches: Sequence[Manifest]) -> dict[Targets, RunInputs]:
    """Return the identity of all that students learn from, by kind of targets."""
    return {
        "none": splits,
        "teacher": replace(splits, teacher=caches[0].teacher["weights_sha256"]),
        "cache": of_caches(splits, caches),
    }


def _open_folder(experiment: Experiment) -> None:
    """Refuse the folder of a single run, of a sweep, or of another recipe with students in it."""
    recipe, path = experiment.recipe, experiment.locations.run_folder
    folder = RunFolder(path)
    if folder.is_run:
        raise RunError(f"{path} has a single run of `kdscale train`: name another --run")
    if RunFolder(path).sweep_file.is_file():
        raise RunError(f"{path} has a sweep: name another --run")
    refuse_foreign_files(path, folder.recipe_file.name)
    folder.check_files()
    students = [run for kind in KIND_OF_TARGETS.values() for run in path.glob(f"{kind}-seed*")]
    # Without a recipe: `kdscale train` began the students, which are compared one by one.
    if folder.has_recipe and any(is_begun(run) or is_finished(run) for run in students):
        check_same_recipe(path, recipe)
    elif experiment.accelerator.is_main_process:
        write_recipe(folder, recipe)


def _teacher(experiment: Experiment, splits: RunInputs) -> tuple[list[dict[str, Any]], str | None]:
    """Return the teacher's result, if it can be evaluated, and weights that the recipe lacks."""
    recipe, folder = experiment.recipe, experiment.locations.run_folder
    if recipe.teacher.is_trained:
        log.info("teacher: weights of %s", recipe.teacher.weights or recipe.teacher.model)
        if not recipe.data.is_tested:
            return [], None
        found = quick_evaluation(experiment).model(
            given_teacher(folder, recipe, Trust(recipe=recipe))
        )
        return [{key: found[key] for key in _OF_GIVEN_TEACHER}], None
    result, weights = ready_teacher(experiment, splits)
    return [result], weights


def ready_teacher(experiment: Experiment, splits: RunInputs) -> tuple[dict[str, Any], str]:
    """Train the recipe's teacher, unless that is done, and return its result and weights.

    One that another run of this recipe trained with the same settings is reused.
    """
    recipe = experiment.recipe
    run = teacher_folder(experiment.locations.run_folder)
    usual = teacher_folder(usual_folder(recipe))
    if not is_finished(run) and not is_begun(run) and is_same_teacher(usual, recipe):
        run = usual
    result = _train_or_reuse(experiment.at(run=run), RunSpec("teacher", "none", 0), splits)
    return result, str(RunFolder(run).weights_file())


_OF_GIVEN_TEACHER = (
    "model", "num_parameters", "num_samples", "top1_accuracy", "top5_accuracy", "macro_precision",
    "macro_recall", "calibration_error", "non_finite_samples", "tied_samples",
)  # fmt: skip


def quick_evaluation(experiment: Experiment) -> Evaluation:
    """Return the evaluation that ends a command: short timings, results of before reused."""
    trust = Trust(recipe=experiment.recipe)
    root = experiment.locations.cache_root
    return Evaluation(root, seconds=QUICK_SECONDS, reuse=True, trust=trust)


def _train_or_reuse(experiment: Experiment, spec: RunSpec, inputs: RunInputs) -> dict[str, Any]:
    """Return the result of a finished run, or train it, from its checkpoint if it has one."""
    recipe, run = experiment.recipe, experiment.locations.run_folder
    if is_finished(run):
        if spec.model == "teacher":
            check_same_teacher(run, recipe)
        else:
            check_same_run(run, recipe, spec)
        check_content(run, inputs)
        log.info("%s is finished: reused", run)
        return RunFolder(run).read_result()
    log.info("training %s (%s), seed %d", spec.model, _WORDS[spec.targets], spec.seed)
    with stopped_with_advice(run.parent):
        return train(experiment, spec, resume=is_begun(run))


@contextmanager
def stopped_with_advice(folder: Path) -> Iterator[None]:
    """Add to a stop's message how to resume a whole recipe or a sweep, which have no --resume."""
    try:
        yield
    except Interrupted as stopped:
        raise type(stopped)(
            f"stopped; finished work in {folder} is stored: run the same command again to resume"
        ) from stopped


_WORDS = {"none": "labels alone", "teacher": "online teacher", "cache": "cached teacher"}


def _write_table(experiment: Experiment, rows: Sequence[ResultsRow]) -> None:
    if experiment.accelerator.is_main_process:
        folder = experiment.locations.run_folder
        write_durably(RunFolder(folder).table_file, (results_table(rows) + "\n").encode())


def _finish(experiment: Experiment, first_seed: int, rows: Sequence[ResultsRow]) -> dict[str, Any]:
    """Write a result, so that the folder reads like the run of the first distilled student."""
    whole = RunFolder(experiment.locations.run_folder)
    distilled = RunFolder(student_folder(whole.path, "cache", first_seed))
    result = {
        **distilled.read_result(),
        "recipe": experiment.recipe.name,
        "cache_path": str(experiment.locations.cache),
        "rows": [asdict(row) for row in rows],
    }
    if experiment.accelerator.is_main_process:
        write_durably(whole.metrics_file, read_regular(distilled.metrics_file))
        whole.write_result(result)
    return result
