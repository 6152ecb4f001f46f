"""Start a sweep, join one, or go on with one: a worker here, or several beside each other."""

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
from kdscale.sweep.status import describe, keep
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
    crew: WorkerPool | None = None,
    retry_failed: bool = False,
    page: bool = True,
    patience_seconds: int = 60,
) -> dict[str, Any]:
    """Work at a sweep until nothing is left of it.

    Args:
        variants: the recipe and what varies in it.
        locations: cache root, cache and copies; the run folder is the sweep's, which all workers
            see.
        storage: URL of the database; a file in the folder when None.
        crew: workers on this machine; this process is the only one when None.
        retry_failed: queue what failed again.
        page: write `report.html` once nothing is left; False where who started this one does.
        patience_seconds: a worker not heard of for so long is dead.

    Returns:
        What `summary.describe` says of it.

    Raises:
        KdscaleError: see `kdscale.errors`; the same command goes on from there.
    """
    folder, cache_root = locations.run_folder, locations.cache_root
    check_place(locations.cache)
    pace = Pace.of(patience_seconds)
    looking = opened(variants, folder, storage, cache_root, pace)
    with stopped_with_advice(folder), looking as (begun, study, claims):
        if retry_failed:
            study.retry_failed()
        if not is_left(study.places()):
            log.info("%s is finished: nothing is trained", folder)
        elif crew is None:
            work(begun, study, claims, locations, poll_seconds=pace.poll)
        else:
            logs = folder / "logs"
            run_workers(crew, logs=logs, tell=Teller(study).tell, every=pace.poll)
        found = _end(begun, study.places())
    if page:
        write_page(folder, variants.recipe.data.source, cache_root)
    return found


class Teller:
    """Says what becomes of trials, each time once."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._told = {place.name: place.state for place in study.places()}

    def tell(self) -> None:
        """Say what is new."""
        places = self._study.places()
        for place in places:
            if place.state != self._told.get(place.name):
                self._told[place.name] = place.state
                over = sum(state in ENDED for state in self._told.values())
                done = f"{over} of {len(places)} done"
                log.info("trial %s: %s", place.name, _news(place, done))


def _news(place: StudentPlace, done: str) -> str:
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
    keep(begun, found, sweep_table(found))
    if is_left(places):
        raise RunError(
            f"all workers have ended, and trials of {begun.path} are left: see what they said in "
            f"{begun.path / 'logs'}, then run the same command again"
        )
    if not found["trials"]["finished"] and not found["trials"]["pruned"]:
        raise RunError(f"all trials of {begun.path} failed, the first one: {places[0].error}")
    return found
