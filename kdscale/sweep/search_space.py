"""Translation of a recipe's `[sweep]` into Optuna's samplers, pruners and suggestions."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from kdscale.config import RangeSection, SweepSection
from kdscale.errors import RunError


def planned(sweep: SweepSection) -> list[dict[str, Any]] | None:
    """Return the values of each trial; None with TPE, which draws them from earlier results."""
    if sweep.sampler == "tpe":
        return None
    if sweep.sampler == "grid":
        return _spread(sweep.grid(), sweep)
    drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(sweep.seed))
    return [draw(drawing.ask(), sweep) for _ in range(sweep.num_trials)]


def _spread(grid: list[dict[str, Any]], sweep: SweepSection) -> list[dict[str, Any]]:
    """Return a grid in its order, or a random part of it where fewer trials are requested."""
    if sweep.num_trials == len(grid):
        return grid
    order = np.random.default_rng(sweep.seed).permutation(len(grid))
    return [grid[number] for number in order[: sweep.num_trials]]


def draw(trial: optuna.Trial, sweep: SweepSection) -> dict[str, Any]:
    """Return the values of a trial by field; draw those that it does not have yet."""
    return {
        field: _in_range(trial, field, among)
        if isinstance(among, RangeSection)
        else unlabelled(trial.suggest_categorical(field, [_label(one) for one in among]))
        for field, among in sweep.dimensions.items()
    }


def _in_range(trial: optuna.Trial, field: str, among: RangeSection) -> int | float:
    counted = among.values()
    high = counted[-1] if counted else among.high  # Optuna warns where steps end below it
    if among.is_whole:
        by = int(among.step or 1)
        return trial.suggest_int(field, int(among.low), int(high), step=by, log=among.log)
    step = None if among.step is None else float(among.step)
    value = trial.suggest_float(field, among.low, high, step=step, log=among.log)
    return round(value, 12) if step else value  # 0.1 + 3 · 0.2 is 0.7000000000000001


def labelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in the form that Optuna stores."""
    return {field: _label(value) for field, value in values.items()}


_TABLE = "json:"


def _label(value: Any) -> Any:
    """Encode lists and tables as text: Optuna's databases store numbers and text only."""
    return _TABLE + json.dumps(value) if isinstance(value, list | dict) else value


def unlabelled(value: Any) -> Any:
    """Return the value of a label.

    Raises:
        RunError: the label is not one that `labelled` makes.
    """
    if not isinstance(value, str) or not value.startswith(_TABLE):
        return value
    try:
        table: object = json.loads(value.removeprefix(_TABLE))
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, list | dict):
        raise RunError(
            f"the sweep's database has the value {value[:100]!r} for a trial, wanted a list or a "
            "table: it is damaged, put the right one back, or begin in a new folder"
        )
    return table


def sampler(sweep: SweepSection, place: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a place, which draws the same values in any worker."""
    seed = int(np.random.SeedSequence([sweep.seed, place]).generate_state(1)[0])
    if sweep.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed)
    # constant_liar counts running trials as bad: concurrent workers would try the same otherwise.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def pruner(sweep: SweepSection) -> optuna.pruners.BasePruner:
    """Return the pruner that the recipe names."""
    first = sweep.prune_after_epochs
    if sweep.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=sweep.prune_after_trials, n_warmup_steps=first
        )
    if sweep.pruner == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first)
    return optuna.pruners.NopPruner()
