"""What a run's folder tells: recipe, result, evaluation and curves, as far as they are there."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdscale.errors import RunError
from kdscale.report.evaluation import Evaluation, read_evaluation
from kdscale.runlog import read_metrics

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
    job = _needed_json(folder / "run.json")
    recipe_text, recipe = read_recipe(folder)
    result, problems = read_json(folder / "result.json")
    evaluation, problem = read_evaluation(folder / "evaluation.json")
    content, _ = read_json(folder / "content.json")
    log = _read_log(folder)
    kind: Kind = "teacher" if job.get("model") == "teacher" else _kind(folder, job)
    return Run(
        folder=folder,
        kind=kind,
        seed=int(job.get("seed", 0)),
        recipe=recipe,
        recipe_text=recipe_text,
        test_split=str((content or {}).get("test") or tested_on(recipe)),
        metrics=_topped_up(result or log.reached, evaluation),
        finished=result is not None,
        evaluation=evaluation,
        loss=log.curves["loss"],
        test_accuracy=log.curves["test"],
        validation_accuracy=log.curves["validation"],
        trial=trial,
        problems=[*problems, *problem],
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
    path = folder / "recipe.toml"
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): leave {folder} out") from None


def tested_on(recipe: Mapping[str, Any]) -> str:
    """The test split that a recipe names."""
    data = recipe.get("data", {})
    return f"{data.get('source', '?')}, split {data.get('test_split', 'test')}"


def _kind(folder: Path, job: Mapping[str, Any]) -> Kind:
    try:
        return _KIND_OF_TARGETS[job["targets"]]
    except KeyError:
        raise RunError(f"{folder / 'run.json'} names no targets: leave {folder} out") from None


def _needed_json(path: Path) -> dict[str, Any]:
    found, problems = read_json(path)
    if found is None:
        why = problems[0] if problems else f"{path} is missing"
        raise RunError(f"{why}: leave {path.parent} out")
    return found


def read_json(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The object in a file, if it is there; else why it cannot be read, if it is there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError) as error:
        return None, [f"{path} cannot be read ({error})"]
    return (found, []) if isinstance(found, dict) else (None, [f"{path} holds no JSON object"])


@dataclass(frozen=True, slots=True)
class _Log:
    """What `metrics.jsonl` tells."""

    curves: Mapping[str, list[tuple[float, float]]]
    """Loss by epoch, and top-1 by epoch on the splits."""
    reached: Mapping[str, Any]
    """Metrics of a model that is still being trained."""


def _read_log(folder: Path) -> _Log:
    """As much as can be read: the last line of a run that is going on may be torn."""
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "test": [], "validation": []}
    reached: dict[str, Any] = {}
    try:
        for record in read_metrics(folder):
            if "loss" in record:
                curves["loss"].append((float(record["epoch"]), float(record["loss"])))
                reached["steps"] = record["step"]
                reached["train_seconds"] = record.get("train_seconds")
            elif record.get("split") in curves:
                point = (float(record["epoch"]), float(record["top1_accuracy"]))
                curves[record["split"]].append(point)
                if record["split"] == "test":
                    reached["top1_accuracy"] = point[1]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return _Log(curves, reached)


def _topped_up(result: Mapping[str, Any], evaluation: Evaluation | None) -> dict[str, Any]:
    """A result's own numbers first: they are those of its last weights."""
    return {**(evaluation.metrics if evaluation else {}), **result}
