"""Optuna's study of a sweep: its heartbeats, its queue."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdscale.config import SweepSection
from kdscale.errors import RunError
from kdscale.formatting import number_of
from kdscale.sweep.database import Database, explained, open_to_work, opened_to_read
from kdscale.sweep.search_space import draw, labelled, pruner, sampler
from kdscale.sweep.trials import BEGUN, DROPPED, PLACE, State, StudentPlace, in_places


def read_places(database: Database, name: str) -> list[StudentPlace]:
    """Read all students of a sweep, in their order; nothing is created or changed.

    Args:
        database: the sweep's.
        name: of the study in it.

    Raises:
        RunError: there is no such database, or no such study in it, or it is damaged.
    """
    with opened_to_read(database) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        return in_places(study.get_trials(deepcopy=False))


class Ended(Exception):  # noqa: N818  (no failure of this process)
    """A trial is over without a metric; what there is to say of it is said."""


class Study:
    """The trials of a sweep, in a database that all its workers see.

    Args:
        database: where the trials are stored.
        name: of the study in it.
        sweep: what is tried.
        heartbeat_seconds: between two heartbeats of a trial.
        patience_seconds: a trial without a heartbeat for so long has lost its worker.

    Raises:
        ConfigError: there is no such kind of database, or what reads it is not installed.
        RunError: the database cannot be opened.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        sweep: SweepSection,
        *,
        heartbeat_seconds: int = 10,
        patience_seconds: int = 60,
    ) -> None:
        self.sweep, self._database = sweep, database
        with explained(database):
            self._storage = open_to_work(database, heartbeat_seconds, patience_seconds)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                pruner=pruner(sweep),
                load_if_exists=True,
            )
            self._id = self._storage.get_study_id_from_name(name)
        self._silent = set[int]()

    def close(self) -> None:
        """Give back the connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def places(self) -> list[StudentPlace]:
        """All students of the sweep, in their order."""
        with explained(self._database):
            return in_places(self._study.get_trials(deepcopy=False))

    def plan(self, points: Sequence[Mapping[str, Any]] | None) -> None:
        """Queue a trial in each place that has none; for one process at a time.

        Args:
            points: the values of each trial; None where they are drawn when it begins.

        Raises:
            RunError: there are more trials than are asked for.
        """
        there = {place.name: place.parameters for place in self.places()}
        if len(there) > self.sweep.num_trials:
            raise RunError(
                f"the sweep has {number_of(len(there), 'trial')}, asked for are "
                f"{self.sweep.num_trials}: they stay, so ask for as many, or more, or name another "
                "--run"
            )
        left = None if points is None else [labelled(one) for one in points]
        for taken in there.values():
            if left is not None and taken in left:
                left.remove(taken)
        for number in range(self.sweep.num_trials):
            name = f"{number:05}"
            if name not in there:
                values = {} if left is None else left.pop(0)
                self._study.enqueue_trial(values, user_attrs={PLACE: name})

    def refill(self) -> None:
        """Queue a trial in each place whose trial has lost its worker or was stopped."""
        with explained(self._database):
            self._hear_the_silent()
            fail_stale_trials(self._study)
        self._queue_again("lost")

    def retry_failed(self) -> None:
        """Queue a trial in each place that failed; for one process at a time."""
        self._queue_again("failed")

    def _queue_again(self, state: State) -> None:
        for place in self.places():
            if place.state == state:
                with explained(self._database):
                    self._study.add_trial(_successor(place.last))

    def _hear_the_silent(self) -> None:
        """Let the time of trials run that were killed before their first heartbeat.

        Optuna waits for those for ever.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if BEGUN not in trial.user_attrs and trial.number not in self._silent:
                self._silent.add(trial.number)
                self._beat(trial.number)

    def _beat(self, number: int) -> None:
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._storage.record_heartbeat(trial)

    def run_next(self, work: Callable[["Running"], float]) -> None:
        """Take a trial from the queue and work on it, its heart beating meanwhile.

        Args:
            work: returns the metric, or raises `Ended` or `TrialPruned`.

        Raises:
            BaseException: whatever else `work` raises.
        """
        number, raised = -1, list[BaseException]()

        def objective(trial: optuna.Trial) -> float:
            nonlocal number
            number = trial.number
            self._beat(number)
            trial.set_user_attr(BEGUN, value=True)
            try:
                return work(Running(self, trial))
            except BaseException as error:
                raised.append(error)
                raise

        with explained(self._database):
            try:
                self._study.optimize(objective, n_trials=1, catch=(Ended,))
            except Exception as error:
                if error in raised or not self._is_over(number):
                    raise
                # This process stood still for so long that its trial was another's to end.
                for own in raised:
                    if not isinstance(own, Ended | TrialPruned | UpdateFinishedTrialError):
                        raise own from None

    def explained(self) -> AbstractContextManager[None]:
        """Say what the database says as a message."""
        return explained(self._database)

    def _is_over(self, number: int) -> bool:
        return any(
            one.number == number and one.state.is_finished()
            for one in self._study.get_trials(deepcopy=False)
        )

    def draw(self, trial: optuna.Trial, place: str) -> dict[str, Any]:
        """The values of a trial: a function of its place, not of the worker that has it."""
        self._study.sampler = sampler(self.sweep, int(place))
        return draw(trial, self.sweep)


class Running:
    """A trial that this process has taken.

    Raises:
        Ended: its place is another one's.
    """

    def __init__(self, study: Study, trial: optuna.Trial) -> None:
        self._study, self._trial = study, trial
        name = trial.user_attrs.get(PLACE)
        if name is None:  # another worker was faster to take the last one of the queue
            raise Ended
        self.place = next(one for one in study.places() if one.name == name)
        if self.place.holder != trial.number:
            self.note(DROPPED, value=True)
            raise Ended
        self._reported = set(self.place.last.intermediate_values)
        self.values = study.draw(trial, name)
        """What varies, by field."""

    def note(self, attribute: str, value: Any) -> None:
        """Keep something about the trial."""
        with self._study.explained():
            self._trial.set_user_attr(attribute, value)

    def report(self, epoch: int, accuracy: float) -> bool:
        """Note the accuracy on the validation split; whether to go on."""
        with self._study.explained():
            if epoch not in self._reported:
                self._trial.report(accuracy, epoch)
            return not self._trial.should_prune()


def _successor(trial: FrozenTrial) -> FrozenTrial:
    """What takes a lost trial's place: the same values, and what it has reported."""
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={PLACE: trial.user_attrs[PLACE]},
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
