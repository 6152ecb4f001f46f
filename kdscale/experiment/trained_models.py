"""The trained models that a folder holds: a run's, those of a whole recipe, those of a sweep."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kdscale import config
from kdscale.errors import RunError
from kdscale.experiment.saved_runs import find_teacher, is_finished, read_recipe
from kdscale.formatting import in_counting_order
from kdscale.regular_files import path_inside
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import Weights

__all__ = [
    "TrainedModel",
    "Trust",
    "Weights",
    "given_teacher",
    "trained_model_of",
    "trained_models",
]


@dataclass(frozen=True, slots=True)
class Trust:
    """The models of a folder's recipe that may run code of their own.

    A folder may come from a stranger, and `module:factory` in its recipe is code that they choose.
    """

    code: bool = False
    """Whether all models may: the user gave --trust-code."""
    recipe: config.Recipe | None = None
    """Recipe of this command, whose models may, with the same options; None without one."""

    def covers(self, section: config.ModelSection) -> bool:
        """Return whether the user trusts a section's model."""
        own = () if self.recipe is None else (self.recipe.teacher, self.recipe.student)
        named = [(one.model, one.options) for one in own]
        return self.code or (section.model, section.options) in named


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model, and its origin as far as it is known."""

    name: str
    """Path of the model for users."""
    recipe: config.Recipe
    section: config.ModelSection
    """The recipe's, with its trained weights."""
    role: Literal["teacher", "student"]
    precision: str
    """Precision of its training, or of its forward pass."""
    memory_format: str
    evaluation: Path
    """File of its evaluation."""
    origin: Path
    """The recipe file that names the model."""
    trust: Trust
    """The models of the recipe that may run code of their own."""
    weights: Weights = "last"
    targets: str = "none"
    seed: int | None = None
    taught_by: str | None = None
    """SHA-256 of the teacher's weights, or several with + between them."""
    teacher: str | None = None
    """File of the teacher's weights; None if it is not found."""
    average: Path | None = None
    """File of the moving average of the weights, evaluated beside them; None if there is none."""

    def named_by(self, section: config.ModelSection) -> Path | None:
        """Return the file that names a section's model; None if the user trusts the model."""
        return None if self.trust.covers(section) else self.origin

    def describe(self) -> dict[str, Any]:
        """Return the fields of `evaluation.json` about the model's origin."""
        return {
            "role": self.role,
            "targets": self.targets,
            "seed": self.seed,
            "weights": self.weights,
        }


def trained_models(
    folder: Path, *, data: str | None, weights: Weights, trust: Trust
) -> list[TrainedModel]:
    """The model of a run, or all that is finished in the folder of a whole recipe or of a sweep.

    Args:
        folder: the run's, the recipe's or the sweep's.
        data: a local copy of the data set, where it is not where the recipe says.
        weights: which ones of each.
        trust: which models may run code of their own.

    Raises:
        RunError: the folder has no finished run, or a run does not have these weights.
        ConfigError: a recipe cannot be read.
    """
    model_of = partial(trained_model_of, data=data, weights=weights, trust=trust)
    if RunFolder(folder).is_sweep:
        runs = _finished(RunFolder(folder).trials, "*")
        if not runs:
            raise RunError(f"{folder} holds no finished trial: go on with the sweep first")
        trials = [model_of(one) for one in runs]
        return [*_teachers_at_hand(folder, data, weights, trust), *trials]
    if not (RunFolder(folder).has_recipe or RunFolder(folder).is_finished):
        runs = [one for name in ("teacher", "*-seed*") for one in _finished(folder, name)]
        if runs:  # of `kdscale train`, one by one
            return [model_of(one) for one in runs]
    students = [model_of(one) for one in _finished(folder, "*-seed*")]
    if "rows" not in RunFolder(folder).read_result():
        return [model_of(folder), *students]  # below a run of an earlier kdscale
    return [*_teachers(folder, data, weights, trust), *students]


def trained_model_of(
    run: Path,
    *,
    trust: Trust,
    data: str | None = None,
    weights: Weights = "last",
    evaluation: Path | None = None,
) -> TrainedModel:
    """The model of a finished run.

    Args:
        run: the run's folder.
        trust: which models may run code of their own.
        data: a local copy of the data set, where it is not where the recipe says.
        weights: which ones.
        evaluation: the file for what an evaluation finds; in the run's folder when None.

    Raises:
        RunError: the run is not finished, or does not have these weights.
        ConfigError: its recipe cannot be read.
    """
    if RunFolder(run).sweep_file.is_file():
        raise RunError(
            f"{run} has a sweep: name one of the runs in it, for instance "
            f"{run / 'trials' / '00000'}"
        )
    folder = RunFolder(run)
    result = folder.read_result()
    if "rows" in result:
        raise RunError(
            f"{run} holds a whole recipe: name one of the runs in it, for instance "
            f"{run / 'cache-seed0'}"
        )
    file = path_inside(run, folder.weights_file(weights).name)
    if not file.is_file():
        raise RunError(_without_weights(run, weights))
    own, content = read_recipe(run), folder.read_content()
    recipe = own if data is None else read_recipe(run, data)
    section: config.ModelSection = recipe.teacher if result["role"] == "teacher" else recipe.student
    return TrainedModel(
        name=str(run),
        recipe=recipe,
        section=section.model_copy(update={"weights": str(file), "rename": {}, "input": None}),
        role=result["role"],
        precision="float32" if section.train is None else section.train.precision,
        memory_format="contiguous" if section.train is None else section.train.memory_format,
        evaluation=evaluation or folder.evaluation_file(weights),
        origin=folder.recipe_file,
        trust=trust,
        weights=weights,
        targets=result["targets"],
        seed=result["seed"],
        taught_by=None if content is None else content.teacher,
        teacher=_teacher_of(run, own),
        average=_average_of(run) if weights == "last" else None,
    )


def given_teacher(folder: Path, recipe: config.Recipe, trust: Trust) -> TrainedModel:
    """Return the teacher whose weights a recipe names; its evaluation goes to the folder."""
    teacher, evaluation = recipe.teacher, RunFolder(folder).given_teacher_file
    return TrainedModel(
        name=str(evaluation),
        recipe=recipe,
        section=teacher,
        role="teacher",
        precision=teacher.precision,
        memory_format=teacher.memory_format,
        evaluation=evaluation,
        origin=RunFolder(folder).recipe_file,
        trust=trust,
    )


def _teachers(folder: Path, data: str | None, weights: Weights, trust: Trust) -> list[TrainedModel]:
    """The teacher of a whole recipe: given, trained there, or trained by another run of it."""
    recipe = read_recipe(folder, data)
    if recipe.teacher.is_trained:
        return [given_teacher(folder, recipe, trust)]
    own = read_recipe(folder)
    run = find_teacher(own, [folder, Path("runs") / own.name])
    if run is None:
        return []
    name = RunFolder(run).evaluation_file(weights).name
    elsewhere = None if run.parent == folder else folder / f"teacher-{name}"
    return [trained_model_of(run, trust=trust, data=data, weights=weights, evaluation=elsewhere)]


def _teachers_at_hand(
    folder: Path, data: str | None, weights: Weights, trust: Trust
) -> list[TrainedModel]:
    """The teacher of a sweep; its students can be evaluated without it."""
    if not RunFolder(folder).recipe_file.is_file():
        return []
    found = _teachers(folder, data, weights, trust)
    # Without a file: the weights are those that its library loads.
    return [
        one for one in found if one.section.weights is None or Path(one.section.weights).is_file()
    ]


def _teacher_of(run: Path, recipe: config.Recipe) -> str | None:
    """The weights of a run's teacher: as named, beside the run, or where they usually lie."""
    if recipe.teacher.weights is not None:
        return recipe.teacher.weights
    run = run.absolute()  # "." would be its own parent
    above = [run.parent, run.parent.parent]  # a recipe's folder; a sweep's
    found = find_teacher(recipe, [*above, Path("runs") / recipe.name])
    return None if found is None else str(RunFolder(found).weights_file())


def _average_of(run: Path) -> Path | None:
    file = path_inside(run, RunFolder(run).weights_file("ema").name)
    return file if file.is_file() else None


def _finished(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern), key=lambda path: in_counting_order(path.name))
    return [one for one in found if is_finished(one)]


def _without_weights(run: Path, weights: Weights) -> str:
    if weights == "last":
        return f"{run} has lost its weights.safetensors: train it again into another --run"
    if weights == "ema":
        return (
            f"{run} has no moving average of weights, which needs ema_decay in its recipe; "
            "--weights last takes those of the last step"
        )
    return (
        f"{run} has no best weights: they are chosen on a validation split, which needs "
        "data.validation above 0; --weights last takes those of the last step"
    )
