"""What a run's folder tells: recipe, result, evaluation and curves, as far as they are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdscale.errors import RunError
from kdscale.report.evaluation import Evaluation, read_evaluation
from kdscale.report.fields import dicts, name_text, read_json, shown, sound_metrics, tables_of
from kdscale.report.training_log import Curve, read_log
from kdscale.runs.folder import RunFolder, RunSpec

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
    "online": "the student of the online teacher",
    "cache": "the student taught from the cache",
}
_KIND_OF_TARGETS: dict[str, Kind] = {"none": "alone", "teacher": "online", "cache": "cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trained model, or one that is being trained."""

    folder: Path
    kind: Kind
    seed: int
    recipe: Mapping[str, Any]
    """The resolved recipe's tables."""
    recipe_text: str
    test_split: str
    """What was tested on: its fingerprint, else where it comes from."""
    metrics: Mapping[str, Any]
    """What `result.json` holds, topped up from `evaluation.json`; shares in 0..1."""
    finished: bool
    evaluation_file: str
    """Name of the file of `evaluation`."""
    evaluation: Evaluation | None = None
    loss: Curve = ()
    test_accuracy: Curve = ()
    """Top-1 on the test split, 0..1."""
    validation_accuracy: Curve = ()
    trial: str | None = None
    """Its name where a sweep made it."""
    dataset: str | None = None
    """Fingerprint of the training split; None where the run does not say."""
    taught_by: str | None = None
    """SHA-256 of the teacher's weights, several with + between them; None without a teacher."""
    elsewhere: Mapping[Path, Evaluation] = field(default_factory=dict)
    """Evaluations on other test splits than its own, by file."""
    problems: Sequence[str] = field(default=())
    """Files that could not be read, in words."""

    @property
    def targets(self) -> str:
        """As `kdscale train --targets` names them."""
        return {kind: targets for targets, kind in _KIND_OF_TARGETS.items()}.get(self.kind, "none")

    @property
    def epochs_done(self) -> float:
        """That the log knows of."""
        return max((curve[-1][0] for curve in (self.loss, self.test_accuracy) if curve), default=0)


def read_run(folder: Path, *, trial: str | None = None) -> Run:
    """A folder that `kdscale train` wrote.

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
        test_split=known.get("test") or tested_on(recipe),
        metrics=_topped_up(log.reached if result is None else result, evaluations.own),
        finished=result is not None,
        evaluation_file=files.evaluation_file().name,
        evaluation=evaluations.own,
        loss=log.curves["loss"],
        test_accuracy=log.curves["test"],
        validation_accuracy=log.curves["validation"],
        trial=trial,
        dataset=known.get("dataset"),
        taught_by=known.get("teacher"),
        elsewhere=evaluations.elsewhere,
        problems=[*problems, *more, *evaluations.problems, *log.problems],
    )


def given_teacher(
    folder: Path, result: Mapping[str, Any] | None, test_split: str | None
) -> Run | None:
    """The teacher of a whole recipe's folder that came with weights; None where none is told of.

    Args:
        folder: the recipe's.
        result: what the folder's result says of the teacher.
        test_split: what the folder's runs were tested on; None where it has none.
    """
    path = RunFolder(folder).given_teacher_file
    evaluations = read_evaluations(path, test_split)
    if result is None and evaluations.own is None:
        return None
    text, recipe = read_recipe(folder)
    told, problems = sound_metrics(result or {}, RunFolder(folder).result_file)
    return Run(
        folder=folder,
        kind="teacher",
        seed=0,
        recipe=recipe,
        recipe_text=text,
        test_split=test_split or tested_on(recipe),
        metrics=_topped_up(told, evaluations.own),
        finished=True,
        evaluation=evaluations.own,
        evaluation_file=path.name,
        elsewhere=evaluations.elsewhere,
        problems=[*problems, *evaluations.problems],
    )


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What a folder holds of a model: on its own test split and on others."""

    own: Evaluation | None
    elsewhere: Mapping[Path, Evaluation]
    problems: Sequence[str]


def read_evaluations(path: Path, test_split: str | None) -> Evaluations:
    """Read an evaluation file, and those beside it that are of other test splits.

    Args:
        path: the file for the own test split. Where it is of another one all the same, as kdscale
            0.1 wrote it, its figures are kept apart.
        test_split: fingerprint of the own one; None where that is not known.
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
            f"{path} is of other images than the run was tested on, so its figures stand apart; "
            "evaluate the run again for those of its own"
        )
        elsewhere, own = {path: own, **elsewhere}, None
    return Evaluations(own, elsewhere, problems)


def _is_other(evaluation: Evaluation, test_split: str | None) -> bool:
    fingerprint = evaluation.test_set.fingerprint
    if evaluation.test_set.is_own is False:
        return True
    return None not in (fingerprint, test_split) and fingerprint != test_split


def read_recipe(folder: Path) -> tuple[str, dict[str, Any]]:
    """A folder's recipe as text and as tables, whatever version of kdscale wrote it.

    Raises:
        RunError: it is missing or damaged.
    """
    path = RunFolder(folder).recipe_file
    text, recipe = RunFolder(folder).read_recipe_tables()
    for name in _SECTIONS:
        if not isinstance(recipe.get(name, {}), dict):
            raise RunError(f"{path} is damaged: {name} is {shown(recipe[name])}, wanted a table")
    if "name" in recipe:
        recipe["name"] = name_text(str(recipe["name"]))
    return text, recipe


_SECTIONS = ("data", "views", "cache", "teacher", "student", "loss", "ensemble", "sweep")


def tested_on(recipe: Mapping[str, Any]) -> str:
    """The test split that a recipe names."""
    data = tables_of(recipe, "data")
    return f"{data.get('source', '?')}, split {data.get('test_split', 'test')}"


def _kind_of(job: RunSpec) -> Kind:
    return "teacher" if job.model == "teacher" else _KIND_OF_TARGETS[job.targets]


def _read_result(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The result of a run; None of one that is not finished, or whose file cannot be read."""
    found, problems = read_json(path)
    if found is None:
        return None, problems
    result, more = sound_metrics(found, path)
    if not result:
        return None, [*more, f"{path} is damaged: it holds no result"]
    return result, more


def _topped_up(result: Mapping[str, Any], evaluation: Evaluation | None) -> dict[str, Any]:
    """A result's own numbers first: they are those of its last weights."""
    return {**(evaluation.metrics if evaluation else {}), **result}


def rows_of(result: Mapping[str, Any] | None) -> Sequence[dict[str, Any]]:
    """The rows of a whole recipe's result."""
    return dicts((result or {}).get("rows"))
