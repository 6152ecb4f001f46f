"""Build a cache: images -> views -> teacher -> targets encoded -> shards -> manifest, last."""

import logging
from dataclasses import replace

import numpy as np

from kdscale.building.builder import Builder
from kdscale.building.location import (
    check_place,
    check_space,
    clear_abandoned,
    free_path,
    mention_ending,
)
from kdscale.building.part import WHOLE, Part
from kdscale.building.preflight import PreflightReport, announce, run_preflight
from kdscale.building.stored_outputs import configure_teacher, mention_large_shards
from kdscale.cache.catalog import find_cache
from kdscale.cache.layout import with_large_objects
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.reader import check_present
from kdscale.cache.stores.store import Place, is_remote
from kdscale.cache.writer import create_or_resume
from kdscale.distributed import broadcast_from_main, main_process_first
from kdscale.errors import CacheNotFoundError
from kdscale.experiment.encoding import mention_encoding
from kdscale.experiment.experiment import Experiment
from kdscale.signals import orderly_stop
from kdscale.target_sources.compatibility import with_keys
from kdscale.targets import create_codec
from kdscale.teacher.frozen_teacher import OomSafeTeacher

log = logging.getLogger(__name__)


def build(experiment: Experiment, *, num_views: int | None = None, part: Part = WHOLE) -> Place:
    """Build the experiment's cache, resume one that was begun, or find it finished.

    Args:
        experiment: recipe and locations. Its cache is found by content, or named after the recipe,
            where the locations name none.
        num_views: number of views to build; None = the recipe's.
        part: part of the cache that this builder begins with, beside builders of the others.

    Returns:
        Folder or URL of the finished cache.

    Raises:
        KdscaleError: see `kdscale.errors`; whole shards are stored and the next build resumes.
    """
    check_place(experiment.locations.cache)
    mention_ending(experiment.locations.cache)
    if experiment.accelerator.is_main_process:
        clear_abandoned(experiment.locations.cache_root)
    with main_process_first(experiment.accelerator):
        _ = experiment.train_set  # decoded by the main process
    path, required = _location(experiment, num_views)
    if _is_finished(experiment, path, required):
        log.info("cache %s fits and is complete: reused", path)
        return path
    check_space(path, required)
    mention_large_shards(required)
    experiment.log_teacher()
    teacher = experiment.oom_safe(experiment.teacher)
    first = _preflight(experiment, required, teacher)
    with Leases(path) as leases:
        with main_process_first(experiment.accelerator):
            if experiment.accelerator.is_main_process:
                _create_or_resume(experiment, path, first.recorded_in(required), leases)
        announce(path, read_manifest(path), first, part)
        _complete(experiment, path, leases, teacher, part)
    return path


def _location(experiment: Experiment, num_views: int | None) -> tuple[Place, Manifest]:
    """Return where the cache lies or will lie, and the manifest it must have."""
    recipe, root, cache = (
        experiment.recipe, experiment.locations.cache_root, experiment.locations.cache
    )  # fmt: skip
    required = experiment.required_manifest
    if num_views is not None:
        required = required.with_num_views(num_views)
    if recipe.cache.encoding == "auto":
        mention_encoding(recipe, required, experiment.teacher, experiment.few_views)
    path = cache or find_cache(root, required) or free_path(root, recipe.name, required)
    path = broadcast_from_main(experiment.accelerator, path)
    return path, with_large_objects(required) if is_remote(path) else required


def _is_finished(experiment: Experiment, path: Place, required: Manifest) -> bool:
    """Return whether the main process finds the cache complete.

    Its result counts for all processes: builders beside this launch may finish at any time.
    """
    with main_process_first(experiment.accelerator):
        main = experiment.accelerator.is_main_process
        finished = main and _is_complete(experiment, path, required)
    return broadcast_from_main(experiment.accelerator, finished)


def _is_complete(experiment: Experiment, path: Place, required: Manifest) -> bool:
    """Return whether the cache is complete; raise if it is another one, or damaged."""
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        return False
    num_views = max(found.num_views, required.num_views)
    experiment.check_compatible(path, replace(found, num_views=num_views), required)
    if found.complete:
        check_present(path, found)
    return found.complete and found.num_views >= required.num_views


def _preflight(
    experiment: Experiment, required: Manifest, teacher: OomSafeTeacher
) -> PreflightReport:
    """Run the teacher on the first images and check its outputs."""
    outputs = experiment.stored_outputs
    # Without features: those of the first images may be gigabytes.
    without_features = replace(required, features=())
    teacher.teacher = configure_teacher(experiment.teacher, without_features, outputs)
    return run_preflight(
        teacher, experiment.train_images, experiment.train_set,
        experiment.cached_views, create_codec(required.target_encoding, outputs.head),
        configure_teacher(experiment.teacher, required, outputs),
    )  # fmt: skip


def _create_or_resume(
    experiment: Experiment, path: Place, required: Manifest, leases: Leases
) -> None:
    """Write the metadata of a new cache, or check that of one that was begun."""
    known, arrays = static_arrays(experiment, required)
    create_or_resume(path, known, experiment.train_set.labels, leases, arrays)


def static_arrays(
    experiment: Experiment, required: Manifest
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Return the manifest with the kind of image keys in it, and the arrays stored once."""
    known, keys = with_keys(required, experiment.train_set)
    return known, keys | experiment.stored_outputs.once


def _complete(
    experiment: Experiment, path: Place, leases: Leases, teacher: OomSafeTeacher, part: Part
) -> None:
    """Build the missing shards, beside any other builders."""
    teacher.teacher = configure_teacher(
        experiment.teacher, read_manifest(path), experiment.stored_outputs
    )
    with orderly_stop() as stop:
        Builder(
            path, experiment.train_images, experiment.cached_views, teacher, leases,
            experiment.accelerator, stop, experiment.recipe.views.shift_every, part,
        ).complete()  # fmt: skip
