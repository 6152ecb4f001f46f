"""Start, resume or skip a run, and find, build or wait for the cache that it trains from."""

from typing import Any

from kdscale.commands.build import build
from kdscale.commands.train import train
from kdscale.experiment.cache_spec import check_recipe
from kdscale.experiment.checks import check_trackers, mention_ineffective
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.saved_runs import (
    finished_as,
    is_begun,
    open_run,
    trained_teacher,
    usual_folder,
)
from kdscale.experiment.target_source import cache_being_built
from kdscale.experiment.training_setup import section_of
from kdscale.runs.run_spec import RunSpec


def start_training(
    experiment: Experiment,
    spec: RunSpec,
    *,
    resume: bool = False,
    resume_if_begun: bool = False,
    wait: bool = False,
) -> dict[str, Any]:
    """Train one model; with `targets = 'cache'` and no cache named, find one or build it first.

    Args:
        experiment: recipe and locations, with a run folder.
        spec: which model, from which targets, with which seed.
        resume: continue from the newest checkpoint.
        resume_if_begun: continue if there is a checkpoint, else begin; a finished run is left as it
            is.
        wait: train while somebody else builds the cache, in place of building it here.

    Returns:
        The object in `result.json`.

    Raises:
        KdscaleError: see `train` and `build`.
    """
    recipe, run = experiment.recipe, experiment.locations.run_folder
    section_of(recipe, spec)
    check_trackers(recipe)
    mention_ineffective(recipe, spec.model)
    if resume_if_begun:
        if (result := finished_as(run, recipe, spec)) is not None:
            return result
        resume = is_begun(run)
    cache = experiment.locations.cache
    if spec.targets != "none":
        required = spec.targets == "teacher" or cache is None
        weights = trained_teacher(recipe, usual_folder(recipe), required=required)
        experiment = experiment.at(teacher_weights=weights)
    if spec.targets == "cache" and cache is None:
        # Errors in the recipe and in the run folder come before hours of building.
        check_recipe(recipe, experiment.locations.cache_root)
        open_run(run, recipe, spec, resume=resume, main=False)
        cache = cache_being_built(experiment) if wait else build(experiment)
        experiment = experiment.at(cache=cache)
    return train(experiment, spec, resume=resume, wait=wait)
