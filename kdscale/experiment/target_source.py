"""Targets of a run: open its caches, and make the source that training steps read."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale import config
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.wait import Patience
from kdscale.data.views.pipeline import Pipeline
from kdscale.experiment.cache_spec import required_manifest
from kdscale.experiment.checks import check_stored
from kdscale.experiment.encoding import check_temperature, mention_large_tail
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.models import frozen_teacher
from kdscale.experiment.training_setup import features_required, section_of
from kdscale.experiment.views import fresh_views, shared_views
from kdscale.experiment.views import num_views as count_views
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher, NoTargets, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.clean_image import CleanImageTargets, check_partners
from kdscale.target_sources.compatibility import check_compatible
from kdscale.target_sources.ensemble import Ensemble, check_different, further_caches, normalised
from kdscale.target_sources.memory_plan import plan_memory
from kdscale.teacher.output_checks import inspect_teacher
from kdscale.training.wait_for_build import wait_for_cache, wait_for_manifest

log = logging.getLogger(__name__)


@contextmanager
def opened_caches(
    experiment: Experiment, spec: RunSpec, *, wait: bool
) -> Iterator[list[CachedTargets]]:
    """Open the caches that a run trains from, and close them when the block ends.

    Args:
        experiment: the experiment; its locations name the recipe's own cache.
        spec: what is trained; without `targets = 'cache'` there are no caches.
        wait: whether the caches may still be being built.

    Raises:
        CacheError: one cannot be read, or is another recipe's.
        ConfigError: they cannot be used together, or at the student's temperature.
    """
    caches = _open_caches(experiment, spec, wait=wait) if spec.targets == "cache" else []
    try:
        yield caches
    finally:
        for cached in caches:
            cached.close()


def _open_caches(experiment: Experiment, spec: RunSpec, *, wait: bool) -> list[CachedTargets]:
    """Open the recipe's own cache, first, and those of its ensemble."""
    recipe, cache = experiment.recipe, experiment.locations.cache
    assert cache is not None, "a command builds or finds a cache first"
    images = experiment.train_set
    own = wait_for_manifest(cache) if wait else read_manifest(cache)
    required = _required(experiment, cache, own)
    growing = replace(own, num_views=max(own.num_views, required.num_views)) if wait else own
    check_compatible(cache, growing, required, images)
    others = further_caches(
        recipe.ensemble.caches, required, images, experiment.locations.cache_root
    )
    check_different([(str(cache), own), *others])
    views, num_views = experiment.views, count_views(recipe, experiment.given.views)
    features = [feature.module for feature in features_required(recipe)]
    memory = plan_memory(
        recipe.cache.targets_memory_bytes,
        [own, *(manifest for _, manifest in others)],
        num_views=num_views,
        together=views.pairing.within if views.pairing is not None else None,
        seed=spec.seed,
        features=features,
        epochs=section_of(recipe, spec)[1].epochs,
    )
    copies = experiment.locations.copies
    places: list[Place] = [cache, *(place for place, _ in others)]
    opened = [
        CachedTargets.open(
            place if copies is None else copies.over(place),
            device=experiment.device,
            num_views=num_views,
            shift_every=recipe.views.shift_every,
            memory=memory,
            pipeline=experiment.given.views,
            patience=Patience() if wait else None,
            features=features,
        )
        for place in places
    ]
    _check_usable(experiment, opened)
    if memory.windows is not None and recipe.views.mode == "fixed":
        check_partners(own, views)
    elif memory.windows is not None:
        _mention_partners_apart(own, views)
    return opened


def _check_usable(experiment: Experiment, caches: Sequence[CachedTargets]) -> None:
    """Stop where the losses need more than a cache stores."""
    for cached in caches:
        check_stored(experiment.loss, cached.manifest.target_encoding)
        check_temperature(cached.manifest.target_encoding, experiment.recipe.loss)
        mention_large_tail(cached.manifest, experiment.recipe.loss)


def _mention_partners_apart(own: Manifest, views: Pipeline) -> None:
    if views.pairing is not None and views.pairing.within is None:
        log.info(
            "targets are read by windows, and most samples are mixed with one of another window, "
            "so images are prepared twice an epoch: a cache with views.pair_within = %d would not "
            "need that", own.shard_samples,
        )  # fmt: skip


def cache_being_built(experiment: Experiment) -> Path:
    """Return the cache below the cache root that fits the recipe, once its build has begun.

    Raises:
        CacheIncompleteError: no build of one starts.
        WeightsError: the teacher, by which it would be found, is not known.
    """
    teacher = _describe_teacher(experiment)
    required = required_manifest(experiment.recipe, experiment.train_set, teacher)
    return wait_for_cache(experiment.locations.cache_root, required)


def _required(experiment: Experiment, cache: Place, found: Manifest) -> Manifest:
    """Return the manifest that the recipe's own cache must have.

    A student needs no teacher: without its weights, the one that the cache records is taken.
    """
    if experiment.teacher_is_trained:
        teacher: Mapping[str, Any] = _describe_teacher(experiment)
    else:
        teacher = found.teacher
        log.info("no teacher weights at hand: taking the teacher recorded in %s", cache)
    views = experiment.given.views
    return required_manifest(experiment.recipe, experiment.train_set, teacher, views)


def _describe_teacher(experiment: Experiment) -> dict[str, Any]:
    """Describe the teacher without loading it onto the device."""
    return frozen_teacher(
        experiment.recipe,
        experiment.train_set,
        experiment.locations.teacher_weights,
        torch.device("cpu"),
    ).describe()


def make_target_source(
    experiment: Experiment, spec: RunSpec, caches: Sequence[CachedTargets]
) -> TargetSource:
    """Return where training steps take their targets from: labels, a live teacher, or caches.

    Args:
        experiment: the experiment.
        spec: what is trained.
        caches: those of `opened_caches`.
    """
    recipe, settings = experiment.recipe, section_of(experiment.recipe, spec)[1]
    if spec.targets == "none":
        return NoTargets(fresh_views(recipe, settings, experiment.train_set.num_samples))
    if spec.targets == "teacher":
        teacher = replace(experiment.teacher, taps=features_required(recipe))
        inspect_teacher(experiment.oom_safe(teacher), experiment.train_images, experiment.train_set)
        forward_passes = experiment.accelerator.num_processes * settings.accumulation
        batch_size = -(-settings.global_batch_size // forward_passes)
        return LiveTeacher(experiment.compiled(teacher, batch_size), shared_views(recipe))
    members: list[TargetSource] = list(caches)
    if recipe.views.mode == "fixed":
        log.warning(_FIXED)
        fresh = fresh_views(recipe, settings, experiment.train_set.num_samples)
        members = [CleanImageTargets(cached, experiment.train_images, fresh) for cached in caches]
    if len(members) == 1:
        return members[0]
    weights = normalised(recipe.ensemble.weights, len(members))
    return Ensemble(members, weights, recipe.ensemble.mean, recipe.loss.temperature)


_FIXED = (
    "views.mode = 'fixed': the teacher got each image clean, the student gets another picture "
    "of it, so the targets are not those of what it sees: that cost 0.6 points of top-1 on "
    "CIFAR-10 with crop, flip and mixup. It is there for comparison: views.mode = 'replayed' "
    "trains on what the teacher saw"
)


def describe_caches(caches: Sequence[CachedTargets], recipe: config.Recipe) -> dict[str, Any]:
    """Return the fields of `result.json` about caches; of several, each with its weight."""
    seconds = [cached.reader.build_seconds() for cached in caches]
    described: dict[str, Any] = {
        "cache": caches[0].manifest.id,
        "build_seconds": round(sum(seconds), 3),
    }
    if len(caches) > 1:
        weights = normalised(recipe.ensemble.weights, len(caches))
        described["caches"] = [
            {
                "path": cached.reader.location,
                "id": cached.manifest.id,
                "teacher": cached.manifest.teacher["model"],
                "weight": weight,
                "build_seconds": one,
            }
            for cached, weight, one in zip(caches, weights, seconds, strict=True)
        ]
    return described


def feature_shapes(source: TargetSource, pixels: Tensor) -> dict[str, tuple[int, ...]]:
    """Return shapes of the teacher's features of one sample, by module."""
    if isinstance(source, LiveTeacher):
        features = source.teacher.outputs(pixels).features
        return {name: tuple(values.shape[1:]) for name, values in features.items()}
    assert isinstance(source, CachedTargets), "features come from one cache or a live teacher"
    return {one["module"]: tuple(one["shape"]) for one in source.manifest.features}
