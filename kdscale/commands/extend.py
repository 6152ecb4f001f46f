"""Extend a cache: run the teacher on more views, and leave stored views unchanged."""

from typing import Any

from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.store import Place
from kdscale.commands.build import build
from kdscale.config import Recipe
from kdscale.errors import ConfigError
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.views import pipeline
from kdscale.formatting import number_of


def extend(experiment: Experiment, path: Place, num_views: int) -> dict[str, Any]:
    """Add views to the cache at `path` until it has `num_views`.

    View `v` does not depend on their number, so the cache's id and shards stay the same, and it can
    be read meanwhile. The same command resumes after a stop at any moment.

    Args:
        experiment: experiment of the recipe that the cache was built with; its number of views is
            ignored.
        path: folder or URL of the cache.
        num_views: number of views in all.

    Returns:
        The JSON object of `kdscale cache extend --json`.

    Raises:
        CacheNotFoundError: there is no cache.
        ConfigError: it has more views already, or no more can be made.
        CacheMismatchError: the cache is another recipe's.
        KdscaleError: see `build`.
    """
    _check_number(experiment.recipe, path, read_manifest(path), num_views)
    build(experiment.at(cache=path), num_views=num_views)
    after = read_manifest(path)
    return {
        "path": str(path),
        "id": after.id,
        "num_views": after.num_views,
        "build_seconds": after.build_seconds,
    }


def _check_number(recipe: Recipe, path: Place, cache: Manifest, wanted: int) -> None:
    if wanted < cache.num_views:
        raise ConfigError(
            f"{path} has {number_of(cache.num_views, 'view')}, --views {wanted} requests fewer: "
            f"views are only ever added, and nothing was changed. To train on the first {wanted}, "
            f"set views.count = {wanted}"
        )
    if recipe.views.mode == "fixed":
        raise ConfigError(
            "views.mode is 'fixed', where the teacher sees each image clean, once: there are no "
            "more views to add"
        )
    views = pipeline(recipe, num_samples=0)
    if recipe.views.count == "all" and wanted > views.count_all():
        raise ConfigError(
            f"--views {wanted}, but the recipe's operations have "
            f"{number_of(views.count_all(), 'view')} in all (views.count = 'all'): request those"
        )
    if wanted > 1 and not any(one.num_draws for one in views.operations):
        raise ConfigError(
            f"--views {wanted}, but no operation of the recipe draws anything, so all views are "
            "alike: name operations that do"
        )
