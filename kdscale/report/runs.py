"""What a run's folder tells: recipe, result, evaluation and curves, as far as they are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdscale.documents import DAMAGE, read_object
from kdscale.errors import KdscaleError, RunError
from kdscale.report.evaluation import Evaluation, read_evaluation
from kdscale.run_folder import Content, RunFolder
from kdscale.runlog import read_sound_metrics

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

Curve = Sequence[tuple[float, float]]
"""(epochs, value), in order."""


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
    evaluation: Evaluation | None = None
    evaluation_file: str = "evaluation.json"
    loss: Curve = ()
    test_accuracy: Curve = ()
    """Top-1 on the test split, 0..1."""
    validation_accuracy: Curve = ()
    trial: str | None = None
    """Its name where a sweep made it."""
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
    job = RunFolder(folder).read_job()
    recipe_text, recipe = read_recipe(folder)
    result, problems = read_result(folder)
    evaluation, problem = read_evaluation(folder / "evaluation.json")
    content, unread = _read_content(folder)
    log = _read_log(folder)
    kind: Kind = "teacher" if job.model == "teacher" else _KIND_OF_TARGETS[job.targets]
    return Run(
        folder=folder,
        kind=kind,
        seed=job.seed,
        recipe=recipe,
        recipe_text=recipe_text,
        test_split=tested_on(recipe) if content is None else content.test,
        metrics=_topped_up(result or log.reached, evaluation),
        finished=result is not None,
        evaluation=evaluation,
        loss=log.curves["loss"],
        test_accuracy=log.curves["test"],
        validation_accuracy=log.curves["validation"],
        trial=trial,
        problems=[*problems, *problem, *unread, *log.problems],
    )


def given_teacher(folder: Path, result: Mapping[str, Any] | None) -> Run | None:
    """The teacher of a whole recipe's folder that came with weights; None where none is told of."""
    evaluation, problem = read_evaluation(folder / "teacher-evaluation.json")
    if result is None and evaluation is None:
        return None
    text, recipe = read_recipe(folder)
    return Run(
        folder=folder,
        kind="teacher",
        seed=0,
        recipe=recipe,
        recipe_text=text,
        test_split=tested_on(recipe),
        metrics=_topped_up(result or {}, evaluation),
        finished=True,
        evaluation=evaluation,
        evaluation_file="teacher-evaluation.json",
        problems=problem,
    )


def read_recipe(folder: Path) -> tuple[str, dict[str, Any]]:
    """A folder's recipe as text and as tables, whatever version of kdscale wrote it.

    Raises:
        RunError: it is missing or damaged.
    """
    run = RunFolder(folder)
    try:
        return run.read_recipe_text(), run.read_recipe_table()
    except RunError as error:
        raise RunError(f"{error}: leave {folder} out") from None


def tested_on(recipe: Mapping[str, Any]) -> str:
    """The test split that a recipe names."""
    data = recipe.get("data", {})
    return f"{data.get('source', '?')}, split {data.get('test_split', 'test')}"


def read_result(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """A folder's result, if it is there; else why it cannot be read, if it is there."""
    run = RunFolder(folder)
    if not run.result_file.exists():
        return None, []
    try:
        return run.read_result(), []
    except KdscaleError as error:
        return None, [str(error)]


def _read_content(folder: Path) -> tuple[Content | None, list[str]]:
    try:
        return RunFolder(folder).read_content(), []
    except KdscaleError as error:
        return None, [str(error)]


def read_json(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The object in a file, if it is there; else why it cannot be read, if it is there."""
    try:
        return read_object(path), []
    except FileNotFoundError:
        return None, []
    except (KdscaleError, *DAMAGE) as error:
        return None, [f"{path} cannot be read ({error})"]


@dataclass(frozen=True, slots=True)
class _Log:
    """What `metrics.jsonl` tells."""

    curves: Mapping[str, list[tuple[float, float]]]
    """Loss by epoch, and top-1 by epoch on the splits."""
    reached: Mapping[str, Any]
    """Metrics of a model that is still being trained."""
    problems: Sequence[str] = ()
    """Lines that are damaged, in words."""


def _read_log(folder: Path) -> _Log:
    """As much as can be read: the last line of a run that is going on may be torn."""
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "test": [], "validation": []}
    reached: dict[str, Any] = {}
    path = RunFolder(folder).metrics_file
    if not path.exists():
        return _Log(curves, reached)
    try:
        records, damaged = read_sound_metrics(folder)
        for record in records:
            _note(record, curves, reached)
    except (KdscaleError, *DAMAGE) as error:
        return _Log(curves, reached, [f"{path} cannot be read ({error})"])
    return _Log(curves, reached, [f"{one}: it is left out" for one in damaged])


def _note(
    record: Mapping[str, Any],
    curves: Mapping[str, list[tuple[float, float]]],
    reached: dict[str, Any],
) -> None:
    if record.get("loss") is not None:
        curves["loss"].append((float(record["epoch"]), float(record["loss"])))
        reached["steps"] = record["step"]
        reached["train_seconds"] = record.get("train_seconds")
    elif record.get("split") in curves and record.get("top1_accuracy") is not None:
        point = (float(record["epoch"]), float(record["top1_accuracy"]))
        curves[record["split"]].append(point)
        if record["split"] == "test":
            reached["top1_accuracy"] = point[1]


def _topped_up(result: Mapping[str, Any], evaluation: Evaluation | None) -> dict[str, Any]:
    """A result's own numbers first: they are those of its last weights."""
    return {**(evaluation.metrics if evaluation else {}), **result}
