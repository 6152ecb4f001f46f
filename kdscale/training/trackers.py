"""Experiment trackers (TensorBoard, Weights & Biases, MLflow), fed with the records of a run's log.

Accelerate's tracker classes write. A tracker gets each record right after `metrics.jsonl`, so it
never reads the device, and a failure of it never ends a training. `trackers.json` in the run's
folder states the id under which each tracker knows the run, so that a resumed run goes on there.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from kdscale.errors import ConfigError, RunError
from kdscale.formatting import shortened
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import MetricsLog, read_sound_metrics
from kdscale.runs.run_spec import TrackerState

log = logging.getLogger(__name__)

_INSTALL = {"tensorboard": "'kdscale[trackers]'", "wandb": "wandb", "mlflow": "mlflow"}
"""What to install for each tracker that kdscale can continue after a stop."""

Record = Mapping[str, Any]


def check_installed(names: Iterable[str]) -> None:
    """Check that trackers are installed.

    Raises:
        ConfigError: one is not; the message names the package to install.
    """
    available = {one.value for one in get_available_trackers()}
    for name in names:
        if name not in available:
            raise ConfigError(
                f"log_with names {name!r}, which is not installed: pip install {_INSTALL[name]}, "
                "or leave it out"
            )


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as trackers present it."""

    folder: RunFolder
    project: str
    """Name that all runs of a recipe share."""
    name: str
    group: str
    """Name that the trials of a sweep, or the seeds of a student, share."""
    configuration: Mapping[str, Any]
    """Group, model, targets, seed and fields of the recipe, as numbers, texts and booleans."""


@dataclass(slots=True)
class Trackers:
    """The trackers of a run that work; one that fails is left out of the rest of the run."""

    working: dict[str, GeneralTracker] = field(default_factory=dict)
    states: dict[str, TrackerState] = field(default_factory=dict)

    def log(self, record: Record) -> None:
        """Send a record of `metrics.jsonl` to all trackers; log the first failure of each."""
        for name in list(self.working):
            try:
                self._send(name, record)
            except Exception as error:  # of any client library
                self._leave_out(name, error)

    def replay(self, name: str, records: Iterable[Record]) -> None:
        """Send records of before a stop to one tracker."""
        for record in records:
            self._send(name, record)

    def _send(self, name: str, record: Record) -> None:
        if _key(record) in self.states[name].repeated:
            return
        step, part = _key(record)
        values = {
            f"{part}/{key}": value
            for key, value in record.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self.working[name].log(values, step=step)

    def _leave_out(self, name: str, error: Exception) -> None:
        del self.working[name]
        log.warning(
            "tracker %r failed (%s) and gets no more of this run: training goes on, and all is in "
            "metrics.jsonl", name, _reason(error),
        )  # fmt: skip

    def finish(self) -> None:
        """End all trackers, which may send what they have buffered."""
        for name in list(self.working):
            try:
                self.working[name].finish()
            except Exception as error:  # of any client library
                self._leave_out(name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def start_trackers(
    names: Sequence[str], run: TrackedRun, metrics: MetricsLog, *, resumed_at: int | None
) -> Trackers:
    """Start the trackers of a run, or continue those that followed it before a stop.

    A tracker that is new to a resumed run first gets what `metrics.jsonl` holds.

    Args:
        names: of the trackers.
        run: its folder, name and configuration.
        metrics: its log, cut back to the checkpoint that the training goes on from.
        resumed_at: step of that checkpoint; None = the training begins.

    Raises:
        RunError: a tracker cannot be started, or `trackers.json` is damaged.
    """
    trackers = Trackers()
    if not names:
        return trackers
    begins = resumed_at is None
    trackers.states = {} if begins else run.folder.read_trackers()
    records = [] if begins else read_sound_metrics(run.folder.path)[0]
    repeated = [_key(one) for one in metrics.dropped_records()]
    for name in dict.fromkeys(names):
        known = trackers.states.get(name)
        since = 0 if known is None else resumed_at or 0
        try:
            tracker = _start(name, run, known, since)
            trackers.working[name] = tracker
            if known is None:
                trackers.states[name] = TrackerState(_ID_OF[name](tracker))
                tracker.store_init_configuration(dict(run.configuration))
            elif name not in _REWOUND:
                ahead = {key for key in (*known.repeated, *repeated) if key[0] >= since}
                trackers.states[name] = TrackerState(known.id, sorted(ahead))
            if known is None or name in _REWOUND:
                trackers.replay(name, [one for one in records if one["step"] >= since])
        except Exception as error:  # of any client library
            trackers.finish()
            raise RunError(
                f"tracker {name!r} cannot be started ({_reason(error)}): correct its settings, or "
                "leave it out of log_with"
            ) from error
    run.folder.write_trackers(trackers.states)
    return trackers


_REWOUND = ("tensorboard",)
"""Trackers that drop what they got of the steps that a resumed run repeats, when started again."""
_ID_OF: Mapping[str, Callable[[Any], str]] = {
    "tensorboard": lambda tracker: str(tracker.run_name),
    "wandb": lambda tracker: str(tracker.tracker.id),
    "mlflow": lambda tracker: str(tracker.tracker.info.run_id),
}
"""Id under which a tracker that was started knows the run."""


def _start(name: str, run: TrackedRun, known: TrackerState | None, since: int) -> GeneralTracker:
    """Start one tracker, on the run that it knows already if there is one."""
    create = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        folder = run.folder.tensorboard
        tracker = create(folder.name, folder.parent, purge_step=since)
    elif name == "wandb":
        tracker = create(
            run.project, name=run.name, group=run.group,
            id=known.id if known else secrets.token_hex(4), resume="allow",
        )  # fmt: skip
    else:
        tracker = create(run.project, run_name=run.name, run_id=known.id if known else None)
    if hasattr(tracker, "start"):  # in earlier versions of Accelerate, the constructor starts it
        tracker.start()
    return tracker


def _key(record: Record) -> tuple[int, str]:
    """Return the step of a record, and its part: train, test or validation."""
    return record["step"], record.get("split", "train")


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, 300)
