"""Optuna's study of a sweep: the queue of trials, and heartbeats of those that run."""

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
    """Read all students of a sweep in their order, without changing anything.

    Args:
        database: address of the sweep's database.
        name: name of the study in it.

    Raises:
        RunError: the database or the study is missing or damaged.
    """
    with opened_to_read(database) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        return in_places(study.get_trials(deepcopy=False))


class Ended(Exception):  # noqa: N818  (no failure of this process)
    """Raised to end a trial without a metric, after its error is logged."""


class Study:
    """The trials of a sweep, in a database that all its workers share.

    Args:
        database: address of the database.
        name: name of the study in it.
        sweep: the recipe's `[sweep]`.
        heartbeat_seconds: seconds between two heartbeats of a trial.
        patience_seconds: seconds without a heartbeat after which a trial has lost its worker.

    Raises:
        ConfigError: the kind of database is unknown, or its driver is not installed.
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
        self._without_heartbeat = set[int]()

    def close(self) -> None:
        """Close the connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def places(self) -> list[StudentPlace]:
        """Return all students of the sweep in their order."""
        with explained(self._database):
            return in_places(self._study.get_trials(deepcopy=False))

    def plan(self, points: Sequence[Mapping[str, Any]] | None) -> None:
        """Queue a trial in each place that has none. One process at a time may call this.

        Args:
            points: the values of each trial; None if they are drawn when a trial starts.

        Raises:
            RunError: the sweep has more trials than requested.
        """
        there = {place.name: place.parameters for place in self.places()}
        if len(there) > self.sweep.num_trials:
            raise RunError(
                f"the sweep has {number_of(len(there), 'trial')}, requested are "
                f"{self.sweep.num_trials}: trials are not removed, so request at least as many, or "
                "name another --run"
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
            self._start_heartbeats()
            fail_stale_trials(self._study)
        self._queue_again("lost")

    def retry_failed(self) -> None:
        """Queue a trial in each place that failed. One process at a time may call this."""
        self._queue_again("failed")

    def _queue_again(self, state: State) -> None:
        for place in self.places():
            if place.state == state:
                with explained(self._database):
                    self._study.add_trial(_successor(place.last))

    def _start_heartbeats(self) -> None:
        """Record a heartbeat for running trials without one, so that they can become stale.

        Optuna never fails a trial whose worker was killed before its first heartbeat.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if BEGUN not in trial.user_attrs and trial.number not in self._without_heartbeat:
                self._without_heartbeat.add(trial.number)
                self._beat(trial.number)

    def _beat(self, number: int) -> None:
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._storage.record_heartbeat(trial)

    def run_next(self, work: Callable[["Running"], float]) -> None:
        """Take a trial from the queue and run it, with heartbeats in a thread.

        Args:
            work: function that returns the metric, or raises `Ended` or `TrialPruned`.

        Raises:
            BaseException: any other exception of `work`.
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
                # This process was suspended for so long that another one failed its trial.
                for own in raised:
                    if not isinstance(own, Ended | TrialPruned | UpdateFinishedTrialError):
                        raise own from None

    def explained(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of the database into one message."""
        return explained(self._database)

    def _is_over(self, number: int) -> bool:
        return any(
            one.number == number and one.state.is_finished()
            for one in self._study.get_trials(deepcopy=False)
        )

    def draw(self, trial: optuna.Trial, place: str) -> dict[str, Any]:
        """Return the values of a trial, which depend on its place and not on its worker."""
        self._study.sampler = sampler(self.sweep, int(place))
        return draw(trial, self.sweep)


class Running:
    """A trial that this process runs.

    Raises:
        Ended: another trial has its place.
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
        """Values of the fields that vary."""

    def note(self, attribute: str, value: Any) -> None:
        """Store an attribute of the trial."""
        with self._study.explained():
            self._trial.set_user_attr(attribute, value)

    def report(self, epoch: int, accuracy: float) -> bool:
        """Report the validation accuracy to Optuna; return whether training should continue."""
        with self._study.explained():
            if epoch not in self._reported:
                self._trial.report(accuracy, epoch)
            return not self._trial.should_prune()


def _successor(trial: FrozenTrial) -> FrozenTrial:
    """Return a waiting trial with the values and reports of a lost one."""
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={PLACE: trial.user_attrs[PLACE]},
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
