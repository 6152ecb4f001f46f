"""Places of a sweep: one student each, whichever of Optuna's trials trains it.

Optuna never resumes a trial that lost its worker, so another trial takes its place, with the same
values and the same run folder. All places are queued when a sweep starts, so the number of
students is exact, however many workers there are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from kdscale.errors import RunError

State = Literal["waiting", "running", "lost", "finished", "pruned", "failed"]

PLACE, BEGUN, STOPPED, DROPPED, ERROR = "place", "begun", "stopped", "dropped", "error"
"""Attributes of trials: name of its place; it has had a heartbeat; it was stopped by a signal;
another trial has its place; error that ended it."""
MOST_DEATHS = 5
ENDED = ("finished", "pruned", "failed")
"""States that are final."""
_FIXED = "fixed_params"  # Optuna's attribute of a trial whose values are known beforehand
_NAME = re.compile(r"[0-9]{5,9}")
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True, slots=True)
class StudentPlace:
    """One student of a sweep."""

    name: str
    """Name of its run folder: a number of five digits."""
    trials: Sequence[FrozenTrial]
    """Optuna's trials of this student, in their order."""

    @property
    def holder(self) -> int | None:
        """Return the number of the waiting or running trial; None without one.

        Two workers may queue a trial each at the same moment: the first one counts.
        """
        live = [one.number for one in self.trials if one.state in _LIVE]
        return live[0] if live and self._ended is None else None

    @property
    def state(self) -> State:
        """Return the student's state; `lost`: its trial lost its worker or was stopped."""
        if self._ended is not None:
            return "finished" if self._ended.state == TrialState.COMPLETE else "pruned"
        if self.holder is not None:
            return "running" if self.last.state == TrialState.RUNNING else "waiting"
        return "lost" if self.error is None else "failed"

    @property
    def last(self) -> FrozenTrial:
        """Return the trial that ended, else the one that waits or runs, else the last one."""
        if self._ended is not None:
            return self._ended
        live = [one for one in self.trials if one.number == self.holder]
        had = [one for one in self.trials if DROPPED not in one.user_attrs]
        return live[0] if live else had[-1]

    @property
    def error(self) -> str | None:
        """Return the error that ended its training; None without one, or if it is queued again."""
        if self._ended is not None or self.holder is not None:
            return None
        if ERROR in self.last.user_attrs:
            return str(self.last.user_attrs[ERROR])
        if self.deaths >= MOST_DEATHS:
            return f"its worker was killed {self.deaths} times: short of memory?"
        return None

    @property
    def deaths(self) -> int:
        """Return how often its worker was killed."""
        orderly = {STOPPED, DROPPED, ERROR}
        failed = [one for one in self.trials if one.state == TrialState.FAIL]
        return sum(not orderly & one.user_attrs.keys() for one in failed)

    @property
    def value(self) -> float | None:
        """Return the metric of a finished trial, or the newest accuracy of a running one."""
        if self._ended is not None and self._ended.values:
            return float(self._ended.values[0])
        known = self.last.intermediate_values
        return known[max(known)] if known else None

    @property
    def since(self) -> datetime | None:
        """Return the time at which its first trial started; None before that."""
        begun = [one.datetime_start for one in self.trials if one.datetime_start is not None]
        return min(begun, default=None)

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the values by field, as Optuna stores them; empty before they are drawn."""
        return self.last.params or dict(self.last.system_attrs.get(_FIXED, {}))

    @property
    def _ended(self) -> FrozenTrial | None:
        over = (TrialState.COMPLETE, TrialState.PRUNED)
        return next((one for one in self.trials if one.state in over), None)


def in_places(trials: Sequence[FrozenTrial]) -> list[StudentPlace]:
    """Return trials grouped by place, in its order, without trials that have no place.

    Raises:
        RunError: the name of a place is not five digits; it becomes the name of a folder.
    """
    found = dict[str, list[FrozenTrial]]()
    for trial in sorted(trials, key=lambda one: one.number):
        place = trial.user_attrs.get(PLACE)
        if place is None:
            continue
        if not isinstance(place, str) or _NAME.fullmatch(place) is None:
            raise RunError(
                f"the sweep's database has a trial in the place {str(place)[:100]!r}, wanted a "
                "number of five digits: it is not a sweep's of kdscale, or was changed"
            )
        if not isinstance(trial.system_attrs.get(_FIXED, {}), dict):
            raise RunError(
                f"the sweep's database has no table of values for the trial in the place {place}: "
                "it is damaged, put the right one back, or begin in a new folder"
            )
        found.setdefault(place, []).append(trial)
    return [StudentPlace(name, had) for name, had in sorted(found.items())]


def is_left(places: Sequence[StudentPlace]) -> bool:
    """Return whether a student is left to train."""
    return any(place.state not in ENDED for place in places)
