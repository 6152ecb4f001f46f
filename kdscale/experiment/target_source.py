"""Who teaches a student: from a recipe and its caches to a source of targets."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale import config, experiment
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.base import Place
from kdscale.cache.stores.read_through import Copies
from kdscale.cache.wait import Patience
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.experiment.checks import check_stored
from kdscale.target_sources.base import LiveTeacher, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.clean_image import CleanImageTargets, check_partners
from kdscale.target_sources.compatibility import check_compatible
from kdscale.target_sources.ensemble import Ensemble, check_different, further_caches, normalised
from kdscale.target_sources.memory_plan import plan_memory
from kdscale.target_sources.stored_encoding import (
    check_temperature,
    encoding_of,
    mention_large_tail,
)
from kdscale.training.wait_for_build import wait_for_cache, wait_for_manifest

log = logging.getLogger(__name__)


def open_caches(
    recipe: config.Recipe,
    images: ImageDataset,
    cache: Place,
    *,
    cache_root: Path,
    teacher_weights: str | None,
    device: torch.device,
    seed: int,
    epochs: int,
    wait: bool = False,
    copies: Copies | None = None,
) -> list[CachedTargets]:
    """The recipe's own cache and those of its ensemble, each of which holds what it should.

    Args:
        recipe: the recipe.
        images: its training split.
        cache: its own cache.
        cache_root: where the others may lie.
        teacher_weights: used where the recipe names none.
        device: where targets are wanted.
        seed: of the order of training.
        epochs: how many there will be.
        copies: local ones of remote caches' objects.
        wait: whether they may still be being built, the own one from its beginning.

    Raises:
        CacheError: one cannot be read, or holds something else.
        ConfigError: they cannot be used together, or at the student's temperature.
    """
    own = wait_for_manifest(cache) if wait else read_manifest(cache)
    asked = _asked(recipe, images, cache, own, teacher_weights)
    growing = replace(own, num_views=max(own.num_views, asked.num_views)) if wait else own
    check_compatible(cache, growing, asked, images)
    others = further_caches(recipe.ensemble.caches, asked, images, cache_root)
    check_different([(str(cache), own), *others])
    shown, num_views = experiment.pipeline(recipe, images.num_samples), experiment.num_views(recipe)
    features = [tap.module for tap in experiment.taps_asked(recipe)]
    fit = plan_memory(
        recipe.cache.targets_memory_bytes,
        [own, *(manifest for _, manifest in others)],
        num_views=num_views,
        together=shown.pairing.within if shown.pairing is not None else None,
        seed=seed,
        features=features,
    )
    places: list[Place] = [cache, *(place for place, _ in others)]
    opened = [
        CachedTargets.open(
            place if copies is None else copies.over(place),
            device=device,
            num_views=num_views,
            shift_every=recipe.views.shift_every,
            epochs=epochs,
            fit=fit,
            patience=Patience() if wait else None,
            features=features,
        )
        for place in places
    ]
    for cached in opened:
        check_stored(experiment.objective(recipe), encoding_of(cached.manifest))
        check_temperature(encoding_of(cached.manifest), recipe.loss)
        mention_large_tail(cached.manifest, recipe.loss)
    if fit.windows is not None and recipe.views.mode == "fixed":
        check_partners(own, shown)
    elif fit.windows is not None:
        _mention_partners_apart(own, shown)
    return opened


def _mention_partners_apart(own: Manifest, shown: Pipeline) -> None:
    if shown.pairing is not None and shown.pairing.within is None:
        log.info(
            "targets are read by windows, and most samples are mixed with one of another window, "
            "so images are prepared twice an epoch: a cache with views.pair_within = %d would not "
            "need that", own.shard_samples,
        )  # fmt: skip


def cache_being_built(
    recipe: config.Recipe, *, cache_root: Path, teacher_weights: str | None
) -> Path:
    """The cache below `cache_root` that fits the recipe, once somebody has begun to build it.

    Raises:
        CacheIncompleteError: nobody begins one.
        WeightsError: the teacher, by which it would be found, is not known.
    """
    images = experiment.training_images(recipe, cache_root, labelled=recipe.loss.hard_weight > 0)
    cpu = torch.device("cpu")
    teacher = experiment.frozen_teacher(recipe, images, teacher_weights, cpu).describe()
    return wait_for_cache(cache_root, experiment.required_manifest(recipe, images, teacher))


def _asked(
    recipe: config.Recipe, images: ImageDataset, cache: Place, found: Manifest, weights: str | None
) -> Manifest:
    """What the recipe asks of its own cache.

    A student needs no teacher: where its weights are not at hand, the cache's word is taken for it.
    """
    if not recipe.teacher.is_trained and weights is None:
        teacher: Mapping[str, Any] = found.teacher
        log.info("no teacher weights at hand: taking the teacher recorded in %s", cache)
    else:
        cpu = torch.device("cpu")
        teacher = experiment.frozen_teacher(recipe, images, weights, cpu).describe()
    return experiment.required_manifest(recipe, images, teacher)


def make_target_source(
    caches: Sequence[CachedTargets],
    recipe: config.Recipe,
    images: DeviceImages,
    fresh: ViewSchedule,
) -> TargetSource:
    """The caches as one source of targets.

    Args:
        caches: the recipe's own first.
        recipe: the recipe.
        images: the training split.
        fresh: the views that a student is shown in fixed mode.
    """
    members: list[TargetSource] = list(caches)
    if recipe.views.mode == "fixed":
        log.warning(_FIXED)
        members = [CleanImageTargets(cached, images, fresh) for cached in caches]
    if len(members) == 1:
        return members[0]
    settings = recipe.ensemble
    weights = normalised(settings.weights, len(members))
    return Ensemble(members, weights, settings.mean, recipe.loss.temperature)


_FIXED = (
    "views.mode = 'fixed': the teacher saw each image clean, the student is shown another picture "
    "of it, so the targets are not those of what it sees: that cost 0.6 points of top-1 on "
    "CIFAR-10 with crop, flip and mixup. It is there for comparison: views.mode = 'replayed' "
    "trains on what the teacher saw"
)


def describe_caches(caches: Sequence[CachedTargets], recipe: config.Recipe) -> dict[str, Any]:
    """What a result says of the caches that taught; of several, each with its weight."""
    seconds = [cached.reader.build_seconds() for cached in caches]
    told: dict[str, Any] = {
        "cache": caches[0].manifest.id,
        "build_seconds": round(sum(seconds), 3),
    }
    if len(caches) > 1:
        weights = normalised(recipe.ensemble.weights, len(caches))
        told["caches"] = [
            {
                "path": cached.reader.location,
                "id": cached.manifest.id,
                "teacher": cached.manifest.teacher["model"],
                "weight": weight,
                "build_seconds": one,
            }
            for cached, weight, one in zip(caches, weights, seconds, strict=True)
        ]
    return told


def feature_shapes(source: TargetSource, pixels: Tensor) -> dict[str, tuple[int, ...]]:
    """Of one sample's features of the teacher, by module; a live one is asked about `pixels`."""
    if isinstance(source, LiveTeacher):
        features = source.teacher.answers(pixels).features
        return {name: tuple(values.shape[1:]) for name, values in features.items()}
    assert isinstance(source, CachedTargets), "features come from one cache or a live teacher"
    return {one["module"]: tuple(one["shape"]) for one in source.manifest.features}
