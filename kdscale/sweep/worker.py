"""One of any number of workers: train queued trials until none is left."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

from optuna import TrialPruned

from kdscale import config
from kdscale.atomic_write import write_durably
from kdscale.cache.lease import Leases
from kdscale.commands.build import build
from kdscale.commands.evaluate import QUICK_SECONDS, Evaluation
from kdscale.commands.run import ready_teacher
from kdscale.commands.train import train
from kdscale.config import RangeSection, SweepSection, Variants
from kdscale.config.sweep_section import SEED
from kdscale.config.variants import in_words
from kdscale.distributed import is_out_of_memory
from kdscale.errors import (
    ClaimLostError,
    ConfigError,
    DeviceMemoryError,
    DivergedError,
    KdscaleError,
    LaunchError,
    ModelError,
    PrunedError,
)
from kdscale.experiment import Experiment, Locations, check_recipe
from kdscale.experiment.saved_runs import check_same_run, inputs_of, is_begun, is_finished
from kdscale.experiment.trained_models import Trust, trained_model_of
from kdscale.regular_files import check_no_links
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.sweep.search_space import planned
from kdscale.sweep.study import Ended, Running, Study
from kdscale.sweep.sweep_folder import SweepFolder, begin, is_sweep
from kdscale.sweep.trials import ERROR, STOPPED

log = logging.getLogger(__name__)

_OF_THE_TRIAL = (DivergedError, DeviceMemoryError, ModelError, ConfigError)
"""Errors of one student; any other error would hit the next one too."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals at which workers poll and report, in seconds."""

    poll: float
    """Seconds between looks at the queue."""
    heartbeat: int
    """Seconds between two heartbeats of a trial."""
    patience: int
    """Seconds without a heartbeat after which a trial has lost its worker."""

    @classmethod
    def of(cls, patience: int) -> "Pace":
        """Return the intervals that go with a patience, in whole seconds as Optuna requires."""
        return cls(patience / 30, max(1, patience // 6), patience)


@contextmanager
def opened(
    variants: Variants, folder: Path, storage: str | None, cache_root: Path, pace: Pace
) -> Iterator[tuple[SweepFolder, Study, Leases]]:
    """Start a sweep after checking its recipe and students, or join an existing one.

    Raises:
        KdscaleError: the recipe has an error, or the sweep cannot be joined.
    """
    _check_alone()
    check_no_links(folder)
    points = check_values(variants)
    if not is_sweep(folder):
        _check_students(variants, points or variants.samples(), cache_root)
    with Leases(folder) as claims:
        begun = begin(folder, variants, storage, claims)
        study = Study(
            begun.database, begun.study, variants.sweep,
            heartbeat_seconds=pace.heartbeat, patience_seconds=pace.patience,
        )  # fmt: skip
        try:
            claims.tidy()
            with claims.exclusive("queue", "another worker queues the trials: waiting"):
                study.plan(points)
            yield begun, study, claims
        finally:
            study.close()


def work(
    begun: SweepFolder,
    study: Study,
    claims: Leases,
    locations: Locations,
    *,
    poll_seconds: float,
) -> None:
    """Train the teacher and build the cache once, then train trials until none is left.

    Args:
        begun: the sweep.
        study: its trials.
        claims: leases of this process on its folder.
        locations: cache root, cache and copies.
        poll_seconds: seconds between looks at the queue.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command resumes.
    """
    experiment = Experiment(begun.variants.widest(), replace(locations, run=begun.path))
    experiment = experiment.at(teacher_weights=_teacher(experiment, claims))
    cache = build(experiment)
    begun.record_cache(cache)
    Worker(begun, study, claims, replace(experiment.locations, cache=cache)).work(poll_seconds)


def check_values(variants: Variants) -> list[dict[str, object]] | None:
    """Parse the recipe of every trial, or of some if values are drawn when a trial starts.

    Returns:
        The values of every trial; None if they are drawn when a trial starts.

    Raises:
        ConfigError: the recipe refuses values, which the message names.
    """
    points = planned(variants.sweep)
    for values in points or variants.samples():
        variants.trial(values)
    return points


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            f"{os.environ['WORLD_SIZE']} processes were launched, and each worker of a sweep is a "
            "single one: start `kdscale sweep` without a launcher, with --workers N"
        )


def _check_students(
    variants: Variants, points: Sequence[Mapping[str, Any]], cache_root: Path
) -> None:
    """Check each student and loss before anything is trained or built."""
    check_recipe(variants.widest(), cache_root)
    for values in _covering(variants.sweep, points):
        with _named({field: value for field, value in values.items() if _is_checked(field)}):
            check_recipe(variants.trial(values), cache_root)


def _is_checked(field: str) -> bool:
    return not field.startswith(("student.train.", "views.", SEED))


def _covering(sweep: SweepSection, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a few points that cover each listed value, and both ends of each range."""
    chosen: list[Mapping[str, Any]] = []
    for field, among in sweep.dimensions.items():
        had = [values[field] for values in points]
        if _is_checked(field):
            wanted = [min(had), max(had)] if isinstance(among, RangeSection) else among
            found = (next((one for one in points if one[field] == value), None) for value in wanted)
            chosen += [one for one in found if one is not None and one not in chosen]
    return chosen


@contextmanager
def _named(values: Mapping[str, object]) -> Iterator[None]:
    """Prefix an error with the values that cause it."""
    try:
        yield
    except KdscaleError as error:
        raise type(error)(f"with {in_words(values)}: {error}") from error


def _teacher(experiment: Experiment, claims: Leases) -> str | None:
    """Train the teacher once; return its weights, or None if the recipe names trained ones."""
    if experiment.recipe.teacher.is_trained:
        return None
    with claims.exclusive("teacher", "another worker trains the teacher: waiting"):
        train_set, test_set = check_recipe(experiment.recipe, experiment.locations.cache_root)
        return ready_teacher(experiment, inputs_of(train_set, test_set))[1]


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a sweep: its folder, study, leases and locations."""

    folder: SweepFolder
    study: Study
    claims: Leases
    locations: Locations
    """Cache root, cache, copies and teacher weights of all trials."""

    def work(self, poll_seconds: float) -> None:
        """Train queued trials, and wait for those of other workers, which may be killed."""
        waiting = False
        while True:
            self.study.refill()
            states = {place.state for place in self.study.places()}
            if "waiting" in states:
                self.study.run_next(self._run)
                waiting = False
            elif states & {"running", "lost"}:
                if not waiting:
                    log.info("nothing is queued; waiting for the trials of other workers to end")
                waiting = True
                sleep(poll_seconds)
            else:
                return

    def _run(self, trial: Running) -> float:
        """Train a trial's student, or read its result if an earlier worker finished it."""
        place, run = trial.place.name, self.folder.run(trial.place.name)
        with (
            self.claims.exclusive(place, f"{place}: its worker may be alive: waiting"),
            _noted(trial),
        ):
            self.folder.variants.check_among(trial.values)
            recipe = self.folder.variants.trial(trial.values)
            job = RunSpec("student", "cache", int(trial.values.get(SEED, 0)))
            log.info("trial %s: %s", place, in_words(trial.values))
            if is_finished(run):
                check_same_run(run, recipe, job)
            else:
                self._train(trial, recipe, job, run)
            self._evaluate(run, recipe)
        value = accuracy_of(run, best=self._counts_best(recipe))
        log.info("trial %s: validation top-1 %.2f %%", place, 100 * value)
        return value

    def _evaluate(self, run: Path, recipe: config.Recipe) -> None:
        """Evaluate a run; latencies are rough beside other workers, `kdscale evaluate` repeats."""
        evaluation = Evaluation(
            self.locations.cache_root,
            teacher=self.locations.teacher_weights,
            seconds=QUICK_SECONDS,
            reuse=True,
        )
        evaluation.model(trained_model_of(run, trust=Trust(recipe=recipe)))

    def _counts_best(self, recipe: config.Recipe) -> bool:
        """Return whether the metric is of the best evaluation rather than of the last one."""
        restored = recipe.student.train is not None and recipe.student.train.restore_best
        return restored or self.study.sweep.metric == "best_validation_accuracy"

    def _train(self, trial: Running, recipe: config.Recipe, job: RunSpec, run: Path) -> None:
        pruned = RunFolder(run).pruned_file
        if pruned.is_file():
            raise TrialPruned

        def watch(epoch: float, found: Mapping[str, Mapping[str, float]]) -> bool:
            return trial.report(round(epoch), found["validation"]["top1_accuracy"])

        try:
            train(
                Experiment(recipe, replace(self.locations, run=run)), job,
                resume=is_begun(run), watch=watch,
                check_lock=partial(self.claims.check, trial.place.name),
            )  # fmt: skip
        except PrunedError as given_up:
            log.info("trial %s: ended early, it falls behind", trial.place.name)
            write_durably(pruned, f"{given_up}\n".encode())
            raise TrialPruned from None


@contextmanager
def _noted(trial: Running) -> Iterator[None]:
    """Store with the trial the reason for which it ended."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ClaimLostError):
            raise Ended from error
        if isinstance(error, _OF_THE_TRIAL) or is_out_of_memory(error):
            trial.note(ERROR, str(error))
            log.error("trial %s failed: %s", trial.place.name, error)
            raise Ended from error
        if isinstance(error, KdscaleError):
            trial.note(STOPPED, value=True)
        elif not isinstance(error, TrialPruned):
            trial.note(ERROR, f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        trial.note(STOPPED, value=True)
        raise


def accuracy_of(run: Path, *, best: bool) -> float:
    """Return a run's top-1 on the validation split, of its last or its best evaluation."""
    found = [
        float(line["top1_accuracy"])
        for line in read_metrics(run)
        if line.get("split") == "validation"
    ]
    return max(found) if best else found[-1]
