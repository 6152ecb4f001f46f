"""State of a sweep and its best trial, for tables, scripts and `kdscale report`."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from kdscale.atomic_write import write_durably
from kdscale.cache.lease import INTERVAL_SECONDS
from kdscale.cache.wait import living_builder
from kdscale.errors import RunError
from kdscale.experiment.saved_runs import find_teacher, is_finished
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import Weights
from kdscale.sweep.search_space import unlabelled
from kdscale.sweep.study import read_places
from kdscale.sweep.sweep_folder import SweepFolder, read_folder
from kdscale.sweep.trials import StudentPlace

_WATCHED_SECONDS = 2 * INTERVAL_SECONDS  # at most, where workers are on other machines
_STATES = ("finished", "pruned", "failed", "running", "waiting")


def status(folder: Path, storage: str | None = None) -> dict[str, Any]:
    """Return the state of a sweep.

    Returns:
        The summary of `describe`, with `working`, whether a worker is alive, if trials are left.

    Raises:
        RunError: the folder has no sweep, or its database cannot be reached.
    """
    begun = read_folder(folder, storage)
    found = describe(begun, read_places(begun.database, begun.study))
    if found["trials"]["running"] or found["trials"]["waiting"]:
        found["working"] = living_builder(folder, patience_seconds=_WATCHED_SECONDS) is not None
    return found


def describe(begun: SweepFolder, places: list[StudentPlace]) -> dict[str, Any]:
    """Return a sweep as one JSON object.

    Returns:
        Numbers of trials by state, the best trial, seconds, and `rows`, one for each trial.
    """
    sweep, rows = begun.variants.sweep, [_row(begun, place) for place in places]
    counts = Counter(row["state"] for row in rows)
    finished = [row for row in rows if row["state"] == "finished"]
    return {
        "version": 1,
        "folder": str(begun.path),
        "recipe": begun.variants.recipe.name,
        "sampler": sweep.sampler,
        "metric": sweep.metric,
        "pruner": sweep.pruner,
        "fields": list(sweep.space),
        "trials": {"total": len(rows), **{state: counts[state] for state in _STATES}},
        "best": max(finished, key=lambda row: row["value"], default=None),
        "seconds": _seconds(places),
        "train_seconds": round(sum(row.get("train_seconds", 0.0) for row in rows), 3),
        **_build(begun, finished),
        "rows": rows,
    }


def _row(begun: SweepFolder, place: StudentPlace) -> dict[str, Any]:
    run, since = begun.run(place.name), place.since
    row = {
        "trial": place.name,
        "state": "waiting" if place.state == "lost" else place.state,
        "parameters": {name: unlabelled(value) for name, value in place.parameters.items()},
        "value": place.value,
        "run": str(run),
        "since": None if since is None else since.isoformat(timespec="seconds"),
        "taken_over": place.deaths,
        "error": place.error,
    }
    if is_finished(run):
        result = RunFolder(run).read_result()
        copied = ("top1_accuracy", "train_seconds", "num_parameters")
        row |= {key: result[key] for key in copied if key in result}
    return row


def _seconds(places: list[StudentPlace]) -> float:
    """Return seconds from the start of the first trial to the end of the last one, or to now."""
    begun = [place.since for place in places if place.since is not None]
    if not begun:
        return 0.0
    running = any(place.state == "running" for place in places)
    ends = [one.datetime_complete for place in places for one in place.trials]
    last = max([one for one in ends if one is not None], default=None)
    end = datetime.now() if running or last is None else last  # Optuna's times are local, too
    return round((end - min(begun)).total_seconds(), 3)


def _build(begun: SweepFolder, finished: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fingerprint of the cache, and the seconds that its build took."""
    for row in finished:
        if is_finished(run := Path(row["run"])):  # a user may have removed it
            result = RunFolder(run).read_result()
            return {key: result[key] for key in ("cache", "build_seconds") if key in result}
    return {}


def best(folder: Path, storage: str | None = None) -> dict[str, Any]:
    """Return the best trial of a sweep, with the command that trains it again.

    Raises:
        RunError: no trial has finished yet, or the run folder of the best one is missing.
    """
    begun, found = read_folder(folder, storage), status(folder, storage)
    row: dict[str, Any] | None = found["best"]
    if row is None:
        raise RunError(
            f"no trial of {folder} has finished yet: see `kdscale sweep status {folder}`"
        )
    if not is_finished(Path(row["run"])):
        raise RunError(
            f"trial {row['trial']} of {folder} is the best one, and its run folder {row['run']} is "
            f"missing: put it back, or see `kdscale sweep status {folder}` for the others"
        )
    trial = begun.variants.trial(row["parameters"])
    options = _options(row["parameters"])
    if begun.variants.sweep.hard_weight == "rest":
        options += ["--set", f"loss.hard_weight={trial.loss.hard_weight!r}"]
    return {
        "recipe": found["recipe"],
        "metric": found["metric"],
        **row,
        "weights": str(RunFolder(Path(row["run"])).weights_file(_WEIGHTS[found["metric"]])),
        "options": options,
        "command": _again(begun, row),
    }


def _again(begun: SweepFolder, row: Mapping[str, Any]) -> list[str]:
    """Return the command that trains a trial again, from the sweep's cache and teacher."""
    recipe = begun.variants.recipe
    recipe_file = RunFolder(Path(row["run"])).recipe_file
    command = ["kdscale", "train", str(recipe_file), "--targets", "cache"]
    if begun.cache is not None:
        command += ["--cache", begun.cache]
    if "seed" in row["parameters"]:
        command += ["--seed", str(row["parameters"]["seed"])]
    if not recipe.teacher.is_trained:
        teacher = find_teacher(recipe, [begun.path, Path("runs") / recipe.name])
        if teacher is not None:
            command += ["--set", f"teacher.weights={RunFolder(teacher).weights_file()}"]
    return [*command, "--run", f"runs/{recipe.name}-best"]


_WEIGHTS: dict[str, Weights] = {"validation_accuracy": "last", "best_validation_accuracy": "best"}


def _options(parameters: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as arguments of `kdscale train`."""
    options = list[str]()
    for field, value in parameters.items():
        if field == "seed":
            options += ["--seed", str(value)]
        else:
            options += ["--set", f"{field}={toml_of(value)}"]
    return options


def toml_of(value: Any) -> str:
    """Return a value as one line of TOML."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {toml_of(one)}" for key, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    return json.dumps(value, ensure_ascii=False)


def write_summary(begun: SweepFolder, found: Mapping[str, Any], table: str) -> None:
    """Write `trials.json` and `report.md`, which can be read without the database."""
    folder = RunFolder(begun.path)
    write_durably(folder.summary_file, json.dumps(found, indent=2).encode() + b"\n")
    write_durably(folder.table_file, f"{table}\n".encode())
