"""A run's folder: begun once, resumed only as what it is, never overwritten."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kdscale import checkpoint, config
from kdscale.durable import write_durably
from kdscale.errors import ConfigError, RunError
from kdscale.runlog import read_result

Targets = Literal["none", "cache", "teacher"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, apart from how: kept in `run.json`."""

    model: Literal["teacher", "student"]
    targets: Targets
    seed: int

    def section(self, recipe: config.Recipe) -> tuple[config.Model, config.Train]:
        """The recipe's section of this model, and how it is trained.

        Raises:
            ConfigError: the recipe does not say how.
        """
        section: config.Model = recipe.teacher if self.model == "teacher" else recipe.student
        if section.train is None:
            raise ConfigError(
                f"recipe {recipe.name!r} has no [{self.model}.train] section: add one, with epochs"
            )
        return section, section.train


def open_run(run: Path, recipe: config.Recipe, job: Job, *, resume: bool, main: bool) -> None:
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
    if is_finished(run):
        raise RunError(
            f"{run} holds a finished run (top-1 {read_result(run)['top1_accuracy']:.4f}), which is "
            "not overwritten: name another --run"
        )
    if (run / "recipe.toml").is_file() and not (run / "run.json").is_file():
        raise RunError(f"{run} holds the runs of a whole recipe: name another --run")
    if resume:
        if not is_begun(run):
            raise RunError(f"nothing to resume in {run}: start without --resume, or name its --run")
        check_same_run(run, recipe, job)
    elif main:
        if is_begun(run):
            raise RunError(f"{run} holds an unfinished run: add --resume, or name another --run")
        write_durably(run / "run.json", json.dumps(asdict(job)).encode())
        write_durably(run / "recipe.toml", config.dump_recipe(recipe).encode())


def is_finished(run: Path) -> bool:
    """Whether the folder holds a result."""
    return (run / "result.json").is_file()


def is_begun(run: Path) -> bool:
    """Whether the folder holds a checkpoint to go on from."""
    return checkpoint.newest(run / "checkpoints") is not None


def check_same_run(run: Path, recipe: config.Recipe, job: Job) -> None:
    """Stop unless the run was begun with this recipe and job.

    Raises:
        RunError: every differing field is named with both values.
    """
    begun_as = json.loads((run / "run.json").read_text())
    _refuse(run, [*_changed(run, recipe), *config.differences(begun_as, asdict(job))])


def check_same_recipe(folder: Path, recipe: config.Recipe) -> None:
    """Stop unless a folder of several runs was begun with this recipe.

    Raises:
        RunError: every differing field is named with both values.
    """
    _refuse(folder, _changed(folder, recipe))


def _changed(folder: Path, recipe: config.Recipe) -> list[tuple[str, Any, Any]]:
    before = config.load_recipe(str(folder / "recipe.toml"))
    return config.differences(before.model_dump(), recipe.model_dump())


def _refuse(folder: Path, changed: list[tuple[str, Any, Any]]) -> None:
    if changed:
        lines = [f"  {key}: it has {a!r}, now {b!r}" for key, a, b in changed]
        raise RunError(
            f"{folder} was begun with other settings:\n"
            + "\n".join(lines)
            + "\nUse the same ones, or name another --run."
        )
