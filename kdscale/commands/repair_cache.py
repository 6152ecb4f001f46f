"""Repair a cache: discard bad shards and build them again, and nothing else."""

import logging
from typing import Any

from kdscale.cache.manifest import read_manifest
from kdscale.cache.repair import discard_bad_shards, restored_manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.verify import VerifyReport, verify
from kdscale.commands.build import build, static_arrays
from kdscale.distributed import broadcast_from_main, main_process_first
from kdscale.errors import CacheCorruptError
from kdscale.experiment.experiment import Experiment

log = logging.getLogger(__name__)


def repair(experiment: Experiment, path: Place) -> dict[str, Any]:
    """Rebuild what `verify` finds missing or corrupt in a cache; leave a sound one unchanged.

    After a stop at any moment, the manifest lists what is missing, and the same command resumes.

    Args:
        experiment: experiment of the recipe that the cache was built with; number of views and
            size of shards are the cache's.
        path: folder or URL of the cache.

    Returns:
        The JSON object of `kdscale cache repair --json`: what was rebuilt, by the names of
        `verify`.

    Raises:
        CacheNotFoundError: there is no manifest.
        CacheMismatchError: the cache is another recipe's.
        CacheCorruptError: too little is left to know the content of the cache.
        KdscaleError: see `build`.
    """
    accelerator = experiment.accelerator
    with main_process_first(accelerator):
        found = verify(path) if accelerator.is_main_process else None
    found = broadcast_from_main(accelerator, found)
    assert found is not None
    if found.ok:
        log.info("cache %s is sound: nothing to repair", path)
        return _result(path, found)
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            found = _discard_bad_shards(experiment, path)
    build(experiment.at(cache=path), num_views=read_manifest(path).num_views)
    found = broadcast_from_main(accelerator, found)
    log.info("cache %s is repaired: %s", path, ", ".join(_names(found)) or "its build is finished")
    return _result(path, found)


def _result(path: Place, found: VerifyReport) -> dict[str, Any]:
    return {"path": str(path), "ok": True, "rebuilt": _names(found)}


def _names(found: VerifyReport) -> list[str]:
    return [*found.missing_shards, *found.corrupt_shards]


def _discard_bad_shards(experiment: Experiment, path: Place) -> VerifyReport:
    required, arrays = static_arrays(experiment, experiment.required_manifest)
    labels = experiment.train_set.labels
    try:
        manifest = read_manifest(path)
    except CacheCorruptError:
        return discard_bad_shards(
            path, labels, restored_manifest(path, required, labels, arrays), arrays
        )
    experiment.check_compatible(path, manifest, required)
    return discard_bad_shards(path, labels, once=arrays)
