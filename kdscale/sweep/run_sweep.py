"""Start, join or resume a sweep, with this process or a pool of processes as workers."""

import logging
from typing import Any

from kdscale.building.location import check_place
from kdscale.commands.report import write_page
from kdscale.commands.run import stopped_with_advice
from kdscale.config import Variants
from kdscale.config.variants import in_words
from kdscale.errors import RunError
from kdscale.experiment.locations import Locations
from kdscale.sweep.local_workers import WorkerPool, run_workers
from kdscale.sweep.search_space import unlabelled
from kdscale.sweep.status import describe, write_summary
from kdscale.sweep.study import Study
from kdscale.sweep.sweep_folder import SweepFolder
from kdscale.sweep.trials import ENDED, StudentPlace, is_left
from kdscale.sweep.worker import Pace, opened, work
from kdscale.tables.sweep_table import sweep_table

log = logging.getLogger(__name__)


def sweep(
    variants: Variants,
    locations: Locations,
    *,
    storage: str | None = None,
    pool: WorkerPool | None = None,
    retry_failed: bool = False,
    page: bool = True,
    patience_seconds: int = 60,
) -> dict[str, Any]:
    """Train the trials of a sweep until none is left.

    Args:
        variants: the recipe, and the fields that vary in it.
        locations: cache root, cache and copies; the run folder is the sweep's, which all workers
            share.
        storage: URL of the database; None for a file in the folder.
        pool: workers on this machine; None for this process alone.
        retry_failed: queue failed trials again.
        page: write `report.html` at the end; False if the process that started this one does.
        patience_seconds: seconds without a heartbeat after which a worker is dead.

    Returns:
        The summary of `status.describe`.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command resumes the sweep.
    """
    folder, cache_root = locations.run_folder, locations.cache_root
    check_place(locations.cache)
    pace = Pace.of(patience_seconds)
    opening = opened(variants, folder, storage, cache_root, pace)
    with stopped_with_advice(folder), opening as (begun, study, claims):
        if retry_failed:
            study.retry_failed()
        if not is_left(study.places()):
            log.info("%s is finished: nothing is trained", folder)
        elif pool is None:
            work(begun, study, claims, locations, poll_seconds=pace.poll)
        else:
            logs = folder / "logs"
            progress = TrialProgress(study)
            run_workers(pool, logs=logs, log_progress=progress.log, interval_seconds=pace.poll)
        found = _end(begun, study.places())
    if page:
        write_page(folder, variants.recipe.data.source, cache_root)
    return found


class TrialProgress:
    """Logs changes in the states of trials, each change once."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._states = {place.name: place.state for place in study.places()}

    def log(self) -> None:
        """Log the states that have changed since the last call."""
        places = self._study.places()
        for place in places:
            if place.state != self._states.get(place.name):
                self._states[place.name] = place.state
                over = sum(state in ENDED for state in self._states.values())
                done = f"{over} of {len(places)} done"
                log.info("trial %s: %s", place.name, _state_text(place, done))


def _state_text(place: StudentPlace, done: str) -> str:
    values = in_words({name: unlabelled(one) for name, one in place.parameters.items()})
    if place.state == "running":
        again = ", taken over" if place.deaths else ""
        return f"begun{again} ({values})"
    if place.state == "finished":
        return f"validation top-1 {100 * (place.value or 0.0):.2f} %, {done}"
    if place.state == "pruned":
        return f"ended early, it falls behind; {done}"
    if place.state == "failed":
        return f"failed: {place.error}; {done}"
    return "queued again" if place.state == "waiting" else "stopped; it can be resumed"


def _end(begun: SweepFolder, places: list[StudentPlace]) -> dict[str, Any]:
    found = describe(begun, places)
    write_summary(begun, found, sweep_table(found))
    if is_left(places):
        raise RunError(
            f"all workers have ended, and trials of {begun.path} are left: read their output in "
            f"{begun.path / 'logs'}, then run the same command again"
        )
    if not found["trials"]["finished"] and not found["trials"]["pruned"]:
        raise RunError(f"all trials of {begun.path} failed, the first one: {places[0].error}")
    return found
