"""The content of a run's folder: recipe, result, evaluation and curves, as far as present."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kdscale.errors import RunError
from kdscale.formatting import number_of
from kdscale.report.evaluation_file import ModelEvaluation, read_evaluation
from kdscale.report.fields import dicts, excerpt, name_text, read_json, sound_metrics, tables_of
from kdscale.report.training_log import Curve, read_log
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import RunSpec

Kind = Literal["teacher", "alone", "online", "cache"]
KINDS: tuple[Kind, ...] = ("teacher", "alone", "online", "cache")
TITLES: dict[Kind, str] = {
    "teacher": "teacher",
    "alone": "student alone",
    "online": "student, online teacher",
    "cache": "student, cached teacher",
}
PHRASES: dict[Kind, str] = {
    "teacher": "the teacher",
    "alone": "the student alone",
    "online": "the student with the online teacher",
    "cache": "the student with the cached teacher",
}
KIND_OF_TARGETS: dict[str, Kind] = {"none": "alone", "teacher": "online", "cache": "cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trained model, or one that is being trained."""

    folder: Path
    kind: Kind
    seed: int
    recipe: Mapping[str, Any]
    """Tables of the resolved recipe."""
    recipe_text: str
    """The resolved recipe as TOML."""
    test_split: str
    """Fingerprint of the test split, or its source where no fingerprint is known."""
    metrics: Mapping[str, Any]
    """Values of `result.json`, and of `evaluation.json` where it has more; shares in 0..1."""
    finished: bool
    """Whether the run has a result."""
    evaluation_file: str
    """Name of the file with `evaluation`."""
    evaluation: ModelEvaluation | None = None
    """Evaluation on the run's own test split; None where there is none."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Curves of the training log by name, see `TrainingLog.curves`."""
    date: str | None = None
    """Day on which the newest file of the run was written, UTC; None where it is not known."""
    trial: str | None = None
    """Name of the sweep's trial; None for a run that is not of a sweep."""
    dataset: str | None = None
    """Fingerprint of the training split; None where it is not known."""
    teacher_sha256: str | None = None
    """SHA-256 of the teacher's weights, several with + between them; None without a teacher."""
    elsewhere: Mapping[Path, ModelEvaluation] = field(default_factory=dict)
    """Evaluations on other test splits than the run's own, by file."""
    problems: Sequence[str] = field(default=())
    """Messages about files that cannot be read."""

    @property
    def targets(self) -> str:
        """Value of `kdscale train --targets` for this kind of run."""
        return {kind: targets for targets, kind in KIND_OF_TARGETS.items()}.get(self.kind, "none")

    @property
    def model_text(self) -> str:
        """Role, model and number of parameters in words, as far as they are known."""
        role = "teacher" if self.kind == "teacher" else "student"
        name = self.metrics.get("model") or tables_of(self.recipe, role).get("model", "?")
        count = self.metrics.get("num_parameters")
        known = "" if count is None else f" of {number_of(count, 'parameter')}"
        return f"{role} {name_text(str(name))}{known}"

    @property
    def epochs_done(self) -> float:
        """Epochs up to the last entry of the log."""
        return max((curve[-1][0] for curve in self.curves.values() if curve), default=0)


def read_run(folder: Path, *, trial: str | None = None) -> Run:
    """Read a folder that `kdscale train` wrote.

    Raises:
        RunError: its `run.json` or `recipe.toml` cannot be read.
    """
    files = RunFolder(folder)
    job = files.read_job()
    recipe_text, recipe = read_recipe(folder)
    result, problems = _read_result(files.result_file)
    content, more = read_json(files.inputs_file)
    known = {name: value for name, value in (content or {}).items() if isinstance(value, str)}
    evaluations = read_evaluations(files.evaluation_file(), known.get("test"))
    log = read_log(folder, is_finished=result is not None)
    return Run(
        folder=folder,
        kind=_kind_of(job),
        seed=job.seed,
        recipe=recipe,
        recipe_text=recipe_text,
        test_split=known.get("test") or _evaluated_on(evaluations.own) or test_split_of(recipe),
        metrics=_completed(log.reached if result is None else result, evaluations.own),
        finished=result is not None,
        evaluation_file=files.evaluation_file().name,
        evaluation=evaluations.own,
        curves=log.curves,
        date=_date_of(files.result_file, files.metrics_file),
        trial=trial,
        dataset=known.get("dataset"),
        teacher_sha256=known.get("teacher"),
        elsewhere=evaluations.elsewhere,
        problems=[*problems, *more, *evaluations.problems, *log.problems],
    )


def given_teacher(
    folder: Path, result: Mapping[str, Any] | None, test_split: str | None
) -> Run | None:
    """Return the teacher that a recipe names weights of; None where nothing is known of it.

    Args:
        folder: of the whole recipe.
        result: the teacher's results in the folder's `result.json`; None where it has none.
        test_split: fingerprint of the test split of the folder's runs; None where it has no run.
    """
    path = RunFolder(folder).given_teacher_file
    evaluations = read_evaluations(path, test_split)
    if result is None and evaluations.own is None:
        return None
    text, recipe = read_recipe(folder)
    row, problems = sound_metrics(result or {}, RunFolder(folder).result_file)
    return Run(
        folder=folder,
        kind="teacher",
        seed=0,
        recipe=recipe,
        recipe_text=text,
        test_split=test_split or test_split_of(recipe),
        metrics=_completed(row, evaluations.own),
        finished=True,
        evaluation=evaluations.own,
        evaluation_file=path.name,
        date=_date_of(path, RunFolder(folder).result_file),
        elsewhere=evaluations.elsewhere,
        problems=[*problems, *evaluations.problems],
    )


@dataclass(frozen=True, slots=True)
class Evaluations:
    """The evaluations of one model in its folder."""

    own: ModelEvaluation | None
    """Evaluation on the run's own test split; None where there is none."""
    elsewhere: Mapping[Path, ModelEvaluation]
    """Evaluations on other test splits, by file."""
    problems: Sequence[str]
    """Messages about files that cannot be read."""


def read_evaluations(path: Path, test_split: str | None) -> Evaluations:
    """Read an evaluation file, and those beside it that are of other test splits.

    Args:
        path: the file of the run's own test split. Files of kdscale 0.1 may be of another one all
            the same, and then count among the others.
        test_split: fingerprint of the run's own test split; None where it is not known.
    """
    own, problems = read_evaluation(path)
    elsewhere = {}
    for other in sorted(path.parent.glob(f"{path.stem}-on-*.json")):
        found, more = read_evaluation(other)
        problems += more
        if found is not None:
            elsewhere[other] = found
    if own is not None and _is_other(own, test_split):
        problems.append(
            f"{path} is of other images than the run's own test split, so its figures stand apart: "
            "evaluate the run again on its own"
        )
        elsewhere, own = {path: own, **elsewhere}, None
    return Evaluations(own, elsewhere, problems)


def _is_other(evaluation: ModelEvaluation, test_split: str | None) -> bool:
    fingerprint = evaluation.test_set.fingerprint
    if evaluation.test_set.is_own is False:
        return True
    return None not in (fingerprint, test_split) and fingerprint != test_split


def read_recipe(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a folder's recipe as text and as tables, whatever version of kdscale wrote it.

    Raises:
        RunError: it is missing or damaged.
    """
    path = RunFolder(folder).recipe_file
    text, recipe = RunFolder(folder).read_recipe_tables()
    for name in _SECTIONS:
        if not isinstance(recipe.get(name, {}), dict):
            raise RunError(f"{path} is damaged: {name} is {excerpt(recipe[name])}, wanted a table")
    if "name" in recipe:
        recipe["name"] = name_text(str(recipe["name"]))
    return text, recipe


_SECTIONS = ("data", "views", "cache", "teacher", "student", "loss", "ensemble", "sweep")


def test_split_of(recipe: Mapping[str, Any]) -> str:
    """Return the test split that a recipe names."""
    data = tables_of(recipe, "data")
    split = data.get("test_split", "test")
    if data.get("test"):
        split = f"{data.get('train_split', 'train')} (test part)"
    return f"{data.get('source', '?')}, split {split}"


def _evaluated_on(evaluation: ModelEvaluation | None) -> str | None:
    """Return the fingerprint of an evaluation's test split; None where it is not known."""
    return None if evaluation is None else evaluation.test_set.fingerprint


def _kind_of(job: RunSpec) -> Kind:
    return "teacher" if job.model == "teacher" else KIND_OF_TARGETS[job.targets]


def _read_result(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the result of a run; None where it is not finished or its file cannot be read."""
    found, problems = read_json(path)
    if found is None:
        return None, problems
    result, more = sound_metrics(found, path)
    if not result:
        return None, [*more, f"{path} is damaged: it holds no result"]
    return result, more


def _completed(result: Mapping[str, Any], evaluation: ModelEvaluation | None) -> dict[str, Any]:
    """Add what only the evaluation knows; the result's own numbers are of its last weights."""
    return {**(evaluation.metrics if evaluation else {}), **result}


def _date_of(*paths: Path) -> str | None:
    """Return the day on which the newest of the files was written, as `2026-11-30`."""
    times = [path.lstat().st_mtime for path in paths if path.is_file()]
    try:
        return datetime.fromtimestamp(max(times), UTC).date().isoformat() if times else None
    except (OverflowError, ValueError, OSError):
        return None


def rows_of(result: Mapping[str, Any] | None) -> Sequence[dict[str, Any]]:
    """Return the rows of a whole recipe's result."""
    return dicts((result or {}).get("rows"))
