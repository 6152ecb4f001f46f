"""What trials try, and which of them end early: from a recipe's words to Optuna's."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from kdscale.config import RangeSection, SweepSection
from kdscale.errors import RunError


def planned(sweep: SweepSection) -> list[dict[str, Any]] | None:
    """The values of each trial, where they are known before the first one: not with TPE."""
    if sweep.sampler == "tpe":
        return None
    if sweep.sampler == "grid":
        return _spread(sweep.grid(), sweep)
    drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(sweep.seed))
    return [draw(drawing.ask(), sweep) for _ in range(sweep.num_trials)]


def _spread(grid: list[dict[str, Any]], sweep: SweepSection) -> list[dict[str, Any]]:
    """All of a grid in its order; where that is too much, as many as asked for from all over."""
    if sweep.num_trials == len(grid):
        return grid
    order = np.random.default_rng(sweep.seed).permutation(len(grid))
    return [grid[number] for number in order[: sweep.num_trials]]


def draw(trial: optuna.Trial, sweep: SweepSection) -> dict[str, Any]:
    """The values of a trial, by field: those that it has, or is given."""
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
    """Values as Optuna keeps them."""
    return {field: _label(value) for field, value in values.items()}


_TABLE = "json:"


def _label(value: Any) -> Any:
    """Optuna's databases keep numbers and text, not lists and tables."""
    return _TABLE + json.dumps(value) if isinstance(value, list | dict) else value


def unlabelled(value: Any) -> Any:
    """Return what a label stands for.

    Raises:
        RunError: it is not one that `labelled` makes.
    """
    if not isinstance(value, str) or not value.startswith(_TABLE):
        return value
    try:
        table: object = json.loads(value.removeprefix(_TABLE))
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, list | dict):
        raise RunError(
            f"the sweep's database holds the value {value[:100]!r} of a trial, wanted a list or a "
            "table: it is damaged, put the right one back, or begin in a new folder"
        )
    return table


def sampler(sweep: SweepSection, place: int) -> optuna.samplers.BaseSampler:
    """What draws the values of a place: another worker would draw the same."""
    seed = int(np.random.SeedSequence([sweep.seed, place]).generate_state(1)[0])
    if sweep.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed)
    # Beside others that run, since those count as bad: workers would try the same otherwise.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def pruner(sweep: SweepSection) -> optuna.pruners.BasePruner:
    """What ends trials early."""
    first = sweep.prune_after_epochs
    if sweep.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=sweep.prune_after_trials, n_warmup_steps=first
        )
    if sweep.pruner == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first)
    return optuna.pruners.NopPruner()
