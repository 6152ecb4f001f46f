"""Repair a cache: what is bad is taken out and built again, and nothing else."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdscale.cache.manifest import read_manifest
from kdscale.cache.repair import discard_bad_shards, restored_manifest
from kdscale.cache.stores.base import Place
from kdscale.cache.verify import VerifyReport, verify
from kdscale.commands.build import build
from kdscale.config import Recipe
from kdscale.distributed import broadcast_from_main, create_accelerator, main_process_first
from kdscale.errors import CacheCorruptError
from kdscale.experiment import frozen_teacher, required_manifest, stored_outputs_of, training_images
from kdscale.target_sources.compatibility import check_compatible, with_keys

log = logging.getLogger(__name__)


def repair(
    recipe: Recipe, path: Place, *, cache_root: Path, teacher_weights: str | None = None
) -> dict[str, Any]:
    """Build anew what `verify` finds bad in the cache at `path`; a sound one is left alone.

    Stopped at any moment, it leaves a cache that says what it misses; the same command goes on.

    Args:
        recipe: the one that the cache was built with; number of views and size of shards are the
            cache's.
        path: the cache's folder or URL.
        cache_root: where decoded images lie.
        teacher_weights: used where the recipe names none.

    Returns:
        The JSON object of `kdscale cache repair --json`: what was rebuilt, by the names that
        `verify` gave it.

    Raises:
        CacheNotFoundError: there is no manifest.
        CacheMismatchError: the cache is another recipe's.
        CacheCorruptError: too little is left to know what the cache holds.
        KdscaleError: see `build`.
    """
    accelerator = create_accelerator()
    with main_process_first(accelerator):
        found = verify(path) if accelerator.is_main_process else None
    found = broadcast_from_main(accelerator, found)
    assert found is not None
    if found.ok:
        log.info("cache %s is sound: nothing to repair", path)
        return _answer(path, found)
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            found = _take_out(recipe, path, cache_root, teacher_weights)
    views = read_manifest(path).num_views
    build(
        recipe, cache_root=cache_root, cache=path, teacher_weights=teacher_weights, num_views=views
    )
    found = broadcast_from_main(accelerator, found)
    log.info("cache %s is repaired: %s", path, ", ".join(_names(found)) or "its build is finished")
    return _answer(path, found)


def _answer(path: Place, found: VerifyReport) -> dict[str, Any]:
    return {"path": str(path), "ok": True, "rebuilt": _names(found)}


def _names(found: VerifyReport) -> list[str]:
    return [*found.missing_shards, *found.corrupt_shards]


def _take_out(recipe: Recipe, path: Place, root: Path, weights: str | None) -> VerifyReport:
    images = training_images(recipe, root, labelled=recipe.loss.hard_weight > 0)
    teacher = frozen_teacher(recipe, images, weights, create_accelerator().device)
    kept = stored_outputs_of(recipe, images, teacher)
    asked = required_manifest(recipe, images, teacher.describe(), kept=kept)
    asked, once = with_keys(asked, images)
    once |= kept.once
    try:
        manifest = read_manifest(path)
    except CacheCorruptError:
        restored = restored_manifest(path, asked, images.labels, once)
        return discard_bad_shards(path, images.labels, restored, once)
    check_compatible(path, manifest, replace(asked, num_views=manifest.num_views), images)
    return discard_bad_shards(path, images.labels, once=once)
