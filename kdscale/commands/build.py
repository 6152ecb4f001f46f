"""Build a cache: images -> views -> teacher -> targets encoded -> shards -> manifest, last."""

import logging
from dataclasses import replace
from pathlib import Path

from kdscale.building.builder import Builder
from kdscale.building.location import (
    check_place,
    check_space,
    clear_abandoned,
    free_path,
    mention_ending,
)
from kdscale.building.preflight import announce, run_preflight
from kdscale.building.stored_outputs import configure_teacher, mention_large_shards
from kdscale.cache.catalog import find_cache
from kdscale.cache.layout import with_large_objects
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.reader import check_present
from kdscale.cache.stores.base import Place, is_remote
from kdscale.cache.writer import create_or_resume
from kdscale.config import Recipe
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import broadcast_from_main, create_accelerator, main_process_first
from kdscale.errors import CacheNotFoundError
from kdscale.experiment import (
    cached_pipeline,
    few_views,
    frozen_teacher,
    required_manifest,
    stored_outputs_of,
    training_images,
)
from kdscale.signals import orderly_stop
from kdscale.target_sources.compatibility import check_compatible, with_keys
from kdscale.target_sources.stored_encoding import encoding_of, mention_encoding
from kdscale.teacher.frozen_teacher import OomSafeTeacher

log = logging.getLogger(__name__)


def build(
    recipe: Recipe,
    *,
    cache_root: Path,
    cache: Place | None = None,
    teacher_weights: str | None = None,
    views: Pipeline | None = None,
    num_views: int | None = None,
) -> Place:
    """Build the cache that a recipe asks for, go on with one begun, or find it finished.

    Args:
        recipe: the recipe.
        cache_root: where caches and decoded images lie.
        cache: the cache's folder or URL; found by content, or named after the recipe, when None.
        teacher_weights: used where the recipe names none.
        views: what the teacher is asked about, in place of the recipe's operations: from Python, a
            pipeline may hold callables of your own (`TorchvisionOp`).
        num_views: how many views to build; the recipe's when None.

    Returns:
        The place of the finished cache.

    Raises:
        KdscaleError: see `kdscale.errors`; whole shards are kept and the next build goes on.
    """
    check_place(cache)
    mention_ending(cache)
    accelerator = create_accelerator()
    if accelerator.is_main_process:
        clear_abandoned(cache_root)
    with main_process_first(accelerator):
        images = training_images(recipe, cache_root, labelled=recipe.loss.hard_weight > 0)
    teacher = frozen_teacher(recipe, images, teacher_weights, accelerator.device)
    views = views or cached_pipeline(recipe, images.num_samples)
    kept = stored_outputs_of(recipe, images, teacher, views)
    asked = required_manifest(recipe, images, teacher.describe(), views, kept)
    if num_views is not None:
        asked = asked.with_num_views(num_views)
    if recipe.cache.encoding == "auto":
        mention_encoding(recipe, asked, teacher, few_views(recipe, images, teacher.device, views))
    path = cache or find_cache(cache_root, asked) or free_path(cache_root, recipe, asked)
    path = broadcast_from_main(accelerator, path)
    if is_remote(path):
        asked = with_large_objects(asked)
    with main_process_first(accelerator):
        finished = accelerator.is_main_process and _is_finished(path, asked, images)
    if broadcast_from_main(
        accelerator, finished
    ):  # builders beside this launch may finish any time
        log.info("cache %s fits and is complete: reused", path)
        return path

    check_space(path, asked)
    mention_large_shards(asked)
    resident = DeviceImages(images, accelerator.device)
    # Without its features: those of the first images may be gigabytes.
    without = configure_teacher(teacher, replace(asked, features=()), kept)
    batches = OomSafeTeacher(without, recipe.teacher.batch_size)
    encoding, whole = encoding_of(asked, kept.head), configure_teacher(teacher, asked, kept)
    first = run_preflight(batches, resident, images, views, encoding, whole)
    with Leases(path) as claims:
        with main_process_first(accelerator):
            if accelerator.is_main_process:
                known, once = with_keys(first.told_in(asked), images)
                create_or_resume(path, known, images.labels, claims, once | kept.once)
        manifest = read_manifest(path)
        announce(path, manifest, first)
        batches.teacher = configure_teacher(teacher, manifest, kept)
        with orderly_stop() as stop:
            shift = recipe.views.shift_every
            Builder(path, resident, views, batches, claims, accelerator, stop, shift).complete()
    return path


def _is_finished(path: Place, asked: Manifest, images: ImageDataset) -> bool:
    """Whether the cache there is complete and fits; raises where it is another one, or damaged."""
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        return False
    enough = max(found.num_views, asked.num_views)
    check_compatible(path, replace(found, num_views=enough), asked, images)
    if found.complete:
        check_present(path, found)
    return found.complete and found.num_views >= asked.num_views
