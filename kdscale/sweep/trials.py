"""Places of a sweep: one student each, whichever of Optuna's trials has it.

A trial that loses its worker has failed for good, so another one takes its place, with the same
values and the same run folder. All places are queued when a sweep begins, so there are exactly as
many students as asked for, however many workers ask.
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
"""Attributes of trials: whose place it has; its heart has beaten; it was stopped orderly; another
one has its place; why it cannot be trained."""
MOST_DEATHS = 5
ENDED = ("finished", "pruned", "failed")
"""States after which nothing happens."""
_FIXED = "fixed_params"  # Optuna's attribute of a trial whose values are known beforehand
_NAME = re.compile(r"[0-9]{5,9}")
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True, slots=True)
class StudentPlace:
    """One student of a sweep."""

    name: str
    """Of its run folder: a number of five digits."""
    trials: Sequence[FrozenTrial]
    """Those that have had it, in their order."""

    @property
    def holder(self) -> int | None:
        """The number of the trial whose turn it is.

        Two workers may have queued one each in the same moment: it is the first one's.
        """
        live = [one.number for one in self.trials if one.state in _LIVE]
        return live[0] if live and self._ended is None else None

    @property
    def state(self) -> State:
        """Where it stands; lost: it had a trial, which lost its worker or was stopped."""
        if self._ended is not None:
            return "finished" if self._ended.state == TrialState.COMPLETE else "pruned"
        if self.holder is not None:
            return "running" if self.last.state == TrialState.RUNNING else "waiting"
        return "lost" if self.error is None else "failed"

    @property
    def last(self) -> FrozenTrial:
        """The trial that says most of it."""
        if self._ended is not None:
            return self._ended
        held = [one for one in self.trials if one.number == self.holder]
        had = [one for one in self.trials if DROPPED not in one.user_attrs]
        return held[0] if held else had[-1]

    @property
    def error(self) -> str | None:
        """Why it is not trained, unless it is queued again."""
        if self._ended is not None or self.holder is not None:
            return None
        if ERROR in self.last.user_attrs:
            return str(self.last.user_attrs[ERROR])
        if self.deaths >= MOST_DEATHS:
            return f"its worker was killed {self.deaths} times: short of memory?"
        return None

    @property
    def deaths(self) -> int:
        """How often its worker was killed."""
        spoken = {STOPPED, DROPPED, ERROR}
        failed = [one for one in self.trials if one.state == TrialState.FAIL]
        return sum(not spoken & one.user_attrs.keys() for one in failed)

    @property
    def value(self) -> float | None:
        """The metric of a trial that is over, or the newest accuracy of one that runs."""
        if self._ended is not None and self._ended.values:
            return float(self._ended.values[0])
        known = self.last.intermediate_values
        return known[max(known)] if known else None

    @property
    def since(self) -> datetime | None:
        """When it was begun."""
        begun = [one.datetime_start for one in self.trials if one.datetime_start is not None]
        return min(begun, default=None)

    @property
    def parameters(self) -> dict[str, Any]:
        """What varies, by field, as Optuna keeps it; nothing where it is not drawn yet."""
        return self.last.params or dict(self.last.system_attrs.get(_FIXED, {}))

    @property
    def _ended(self) -> FrozenTrial | None:
        over = (TrialState.COMPLETE, TrialState.PRUNED)
        return next((one for one in self.trials if one.state in over), None)


def in_places(trials: Sequence[FrozenTrial]) -> list[StudentPlace]:
    """Return trials by the place that they have, in its order; those without one do not count.

    Raises:
        RunError: a place is not named as those of sweeps are; it is to name a folder.
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
    """Whether there is anything to be trained."""
    return any(place.state not in ENDED for place in places)
