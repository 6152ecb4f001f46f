"""Start, resume and compare runs: a run resumes with its own settings, and is never overwritten."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdscale import config
from kdscale.cache.manifest import Manifest
from kdscale.data.image_dataset import ImageDataset
from kdscale.errors import RunError
from kdscale.formatting import shortened
from kdscale.report.run_results import KIND_OF_TARGETS
from kdscale.run_identity import run_id
from kdscale.runs import checkpoint
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import RunInputs, RunSpec, Targets

log = logging.getLogger(__name__)

_ANOTHER_RUN = "name another --run"


def inputs_of(train: ImageDataset, test: ImageDataset | None) -> RunInputs:
    """Return the inputs of a run on two splits, without teacher and cache."""
    return RunInputs(train.fingerprint, None if test is None else test.fingerprint)


def of_caches(splits: RunInputs, caches: Sequence[Manifest]) -> RunInputs:
    """Return the inputs of a student of caches; identities of several are joined in their order."""
    teachers = "+".join(one.teacher["weights_sha256"] for one in caches)
    return replace(splits, teacher=teachers, cache="+".join(one.id for one in caches))


def keep_content(run: Path, content: RunInputs, *, main: bool) -> None:
    """Store the inputs of a run at its start; stop if a resumed run has other inputs.

    Raises:
        RunError: naming what has changed, with both values.
    """
    folder = RunFolder(run)
    before = folder.read_content()
    if before is not None:
        _refuse_other(run, before, content)
    elif main:
        folder.write_content(content)
        if not is_begun(run):
            folder.complete_start()


def check_content(run: Path, content: RunInputs) -> None:
    """Stop unless a finished run was trained on these inputs, in whatever windows.

    Raises:
        RunError: naming what has changed, with both values.
    """
    before = RunFolder(run).read_content()
    if before is not None:
        _refuse_other(run, replace(before, windows=content.windows), content)


def _refuse_other(run: Path, before: RunInputs, content: RunInputs) -> None:
    changed = config.differences(asdict(before), asdict(content))
    refuse_changed(run, changed, "was trained on other inputs")


def open_run(run: Path, recipe: config.Recipe, job: RunSpec, *, resume: bool, main: bool) -> None:
    """Start the run's folder, or make sure that it is the one to go on with.

    Args:
        run: the folder.
        recipe: the resolved recipe.
        job: what is trained.
        resume: go on with what is there.
        main: whether this process writes.

    Raises:
        RunError: finished, unfinished, empty, or begun with other settings.
    """
    folder = RunFolder(run)
    folder.check_files()
    if folder.is_finished:
        raise RunError(
            f"{run} holds a finished run{_top1_of(folder)}, which is not overwritten: name another "
            "--run"
        )
    if folder.recipe_file.is_file() and not folder.is_run:
        raise RunError(f"{run} holds the runs of a whole recipe: name another --run")
    refuse_foreign_files(run, folder.run_file.name)
    if resume:
        if not is_begun(run):
            raise RunError(f"nothing to resume in {run}: leave out --resume, or name its --run")
        check_same_run(run, recipe, job)
        if main and run_id(run) is None:
            log.info(
                "%s is of an earlier kdscale: that its files are of this run cannot be checked", run
            )
        return
    if is_begun(run):
        raise RunError(f"{run} holds an unfinished run: add --resume, or name another --run")
    if main:
        folder.forget_content()  # of a start that got no further
        checkpoint.drop_unpublished(folder.checkpoints)
        folder.write_job(job)
        write_recipe(folder, recipe)


def _top1_of(folder: RunFolder) -> str:
    """Return the result of a run for a message; empty for one without a test split."""
    top1 = folder.read_result().get("top1_accuracy")
    return "" if top1 is None else f" (top-1 {top1:.4f})"


def refuse_foreign_files(folder: Path, ours: str) -> None:
    """Stop before writing among files that are no run's; `ours` marks a folder of kdscale's.

    Raises:
        RunError: naming some of the files.
    """
    if (folder / ours).is_file() or not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: name another --run")
    ours_too = {"teacher", "claims"}  # there before the rest
    found = (path for path in folder.iterdir() if path.suffix != ".tmp")
    foreign = [
        path.name for path in found if path.name not in ours_too and not RunFolder(path).is_run
    ]
    if foreign:
        raise RunError(
            f"{folder} holds files that are no run's ({', '.join(sorted(foreign)[:3])}): name a "
            "new or an empty folder with --run"
        )


def is_finished(run: Path) -> bool:
    """Return whether the folder has a result."""
    return RunFolder(run).is_finished


def finished_as(run: Path, recipe: config.Recipe, job: RunSpec) -> dict[str, Any] | None:
    """The result of a run that is finished; None of another.

    Raises:
        RunError: it was begun with another recipe or job.
    """
    if not is_finished(run):
        return None
    check_same_run(run, recipe, job)
    return RunFolder(run).read_result()


def is_begun(run: Path) -> bool:
    """Return whether the folder has a checkpoint to resume from."""
    return checkpoint.newest(RunFolder(run).checkpoints) is not None


def check_same_run(run: Path, recipe: config.Recipe, job: RunSpec) -> None:
    """Stop unless the run was begun with this recipe and job.

    Raises:
        RunError: every differing field is named with both values.
    """
    begun_as = RunFolder(run).read_job()
    other_job = config.differences(asdict(begun_as), asdict(job))
    changed = [*_changed(run, recipe, job.model), *other_job]
    refuse_changed(run, changed)


def check_same_recipe(folder: Path, recipe: config.Recipe) -> None:
    """Stop unless a folder of several runs was begun with this recipe.

    Raises:
        RunError: every differing field is named with both values.
    """
    refuse_changed(folder, _changed(folder, recipe, "student"))


def check_same_teacher(run: Path, recipe: config.Recipe, advice: str = _ANOTHER_RUN) -> None:
    """Stop unless the run trained the teacher that a recipe describes, whatever its seed.

    Raises:
        RunError: every differing field is named with both values.
    """
    refuse_changed(run, _changed(run, recipe, "teacher"), advice=advice)


def is_same_teacher(run: Path, recipe: config.Recipe) -> bool:
    """Return whether the finished run trained the teacher that a recipe describes."""
    return is_finished(run) and not _changed(run, recipe, "teacher")


def teacher_folder(folder: Path) -> Path:
    """Return the folder in which a recipe's own teacher is trained."""
    return folder / "teacher"


def find_teacher(recipe: config.Recipe, folders: Iterable[Path]) -> Path | None:
    """The run of the teacher that a recipe describes, in the first of the folders that has it."""
    runs = (teacher_folder(folder) for folder in folders)
    return next((run for run in runs if is_same_teacher(run, recipe)), None)


def read_recipe(run: Path, data: str | None = None) -> config.Recipe:
    """Return the recipe that a folder was written with.

    Args:
        run: the folder. Relative paths of its recipe begin at the folder that it states, if
            something lies there, else at the current one.
        data: a local copy of the data set, in place of `data.source`.

    Raises:
        RunError: the file is missing, no TOML, damaged or was changed.
        ConfigError: it has keys or values that this version of kdscale does not know.
    """
    folder = RunFolder(run)
    _, table = folder.read_recipe_tables()
    paths_from = folder.read_paths_from()
    if paths_from is not None and paths_from != Path.cwd():
        config.take_paths_from(table, paths_from)
    if data is not None:
        config.set_local_data(table, data)
    return config.parse_recipe(table, str(folder.recipe_file))


def write_recipe(folder: RunFolder, recipe: config.Recipe) -> None:
    """Write a recipe into a folder of runs, with the folder that its relative paths begin at."""
    folder.write_recipe(
        config.dump_recipe(recipe), paths_from=config.folder_of_paths(recipe.model_dump())
    )


def usual_folder(recipe: config.Recipe) -> Path:
    """Return the folder of a recipe's runs where none is named."""
    return Path("runs") / recipe.name


def student_folder(folder: Path, targets: Targets, seed: int) -> Path:
    """Return the folder of a student below that of its recipe's runs, such as `cache-seed0`."""
    return folder / f"{KIND_OF_TARGETS[targets]}-seed{seed}"


def default_run(recipe: config.Recipe, spec: RunSpec) -> Path:
    """Return the folder of a single run where none is named.

    A student has the folder that `kdscale run` gives it. One that an earlier version of kdscale
    trained into the folder of the recipe's runs itself is found there.

    Raises:
        RunError: a run lies there, and its `run.json` is damaged.
    """
    folder = usual_folder(recipe)
    if spec.model == "teacher":
        return teacher_folder(folder)
    if RunFolder(folder).is_run and RunFolder(folder).read_job() == spec:
        return folder
    return student_folder(folder, spec.targets, spec.seed)


def trained_teacher(recipe: config.Recipe, folder: Path, *, required: bool = True) -> str | None:
    """Return the weights of the teacher trained in `folder`; None where the recipe names some.

    Args:
        recipe: the recipe.
        folder: of its runs.
        required: False where a cache replaces the teacher: one of other settings is then ignored.

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


_FREE: Any = {"data": {"device_memory"}}
"""Settings that change no result: a run may go on with others."""


def _changed(folder: Path, recipe: config.Recipe, model: str) -> list[tuple[str, Any, Any]]:
    written = RunFolder(folder)
    before = config.parse_recipe(written.read_recipe_tables()[1], str(written.recipe_file))
    if model == "teacher":
        ours, theirs = _teacher_settings(before), _teacher_settings(recipe)
    else:
        ours, theirs = before.model_dump(exclude=_FREE), recipe.model_dump(exclude=_FREE)
    config.adopt_equal_paths(ours, theirs, written.read_paths_from())
    return config.differences(ours, theirs)


def _teacher_settings(recipe: config.Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that its teacher's training depends on."""
    of_forward_pass = {"precision", "memory_format", "batch_size", "compile", "classes"}
    settings = {
        "data": recipe.data.model_dump(exclude=_FREE["data"]),
        "teacher": recipe.teacher.model_dump(exclude=of_forward_pass),
    }
    if recipe.teacher.train is None or recipe.teacher.train.operations is None:
        # A teacher trains on a new view each epoch, whatever views the cache has.
        settings["views"] = recipe.views.model_dump(exclude={"count", "mode"})
        settings["views"]["enumerated"] = recipe.views.count == "all"
    return settings


def refuse_changed(
    folder: Path,
    changed: list[tuple[str, Any, Any]],
    why: str = "was begun with other settings",
    advice: str = _ANOTHER_RUN,
) -> None:
    """Stop where a folder was begun with something else.

    Raises:
        RunError: every differing field is named with both values.
    """
    if changed:
        lines = [
            f"  {shortened(key)}: it has {shortened(repr(a))}, now {shortened(repr(b))}"
            for key, a, b in changed
        ]
        raise RunError(
            f"{folder} {why}:\n" + "\n".join(lines) + f"\nUse the same ones, or {advice}."
        )
