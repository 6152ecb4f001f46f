"""Build a cache: images -> views -> teacher -> targets encoded -> shards -> manifest, last."""

import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from kdscale.cache.manifest import Manifest, check_identity, read_manifest
from kdscale.cache.search import find_cache
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.config import Recipe
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images
from kdscale.data.views.pipeline import Pipeline
from kdscale.engine.building import ShardBuilder
from kdscale.engine.components import (
    asked_manifest,
    cached_pipeline,
    frozen_teacher,
    training_images,
)
from kdscale.engine.encoding import choose_encoding, encoding_of
from kdscale.engine.processes import (
    StopRequest,
    create_accelerator,
    from_main_process,
    main_process_first,
    orderly_stop,
)
from kdscale.engine.teacher import SizedBatches
from kdscale.errors import CacheNotFoundError, Interrupted, StorageError
from kdscale.fidelity import fidelity
from kdscale.targets import Encoding, decode, encode

log = logging.getLogger(__name__)

_PROBE_SAMPLES = 1000


def build(
    recipe: Recipe,
    *,
    cache_root: Path,
    cache: Path | None = None,
    teacher_weights: str | None = None,
    views: Pipeline | None = None,
) -> Path:
    """Build the cache that a recipe asks for, go on with one begun, or find it finished.

    Args:
        recipe: the recipe.
        cache_root: where caches and decoded images lie.
        cache: the cache's folder; found by content, or named after the recipe, when None.
        teacher_weights: used where the recipe names none.
        views: what the teacher is asked about, in place of the recipe's operations: from Python, a
            pipeline may hold callables of your own (`PerSample`).

    Returns:
        The folder of the finished cache.

    Raises:
        KdscaleError: see `kdscale.errors`; whole shards are kept and the next build goes on.
    """
    _mention_ending(cache)
    accelerator = create_accelerator()
    with main_process_first(accelerator):
        images = training_images(recipe, cache_root, labelled=recipe.loss.hard_weight > 0)
    teacher = frozen_teacher(recipe, images, teacher_weights, accelerator.device)
    views = views or cached_pipeline(recipe, images.num_samples)
    asked = asked_manifest(recipe, images, teacher.describe(), views)
    _mention_encoding(recipe, asked)
    path = cache or find_cache(cache_root, asked) or _free_path(cache_root, recipe, asked)
    path = from_main_process(accelerator, path)
    if _is_finished(path, asked):
        log.info("cache %s fits and is complete: reused", path)
        return path

    _check_space(path, asked)
    batches = SizedBatches(teacher, recipe.teacher.batch_size)
    resident = Images(images, accelerator.device)
    probe = _probe(batches, resident, images, views, encoding_of(asked))
    asked = _with_probe(asked, probe)
    with main_process_first(accelerator):
        manifest = create_or_resume(path, asked, images.labels)
    writer = ShardWriter(path, manifest)
    todo = _my_shards(writer, accelerator)
    _announce(path, manifest, probe, writer)
    accelerator.wait_for_everyone()
    builder = ShardBuilder(resident, views, batches, writer)
    with orderly_stop() as stop:
        _build_shards(builder, manifest, todo, stop, path, main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            manifest = finish(path, manifest, {"num_processes": accelerator.num_processes})
            log.info("cache %s is complete: %.1f s of building", path, manifest.build["seconds"])
    return path


def _is_finished(path: Path, asked: Manifest) -> bool:
    """Whether the cache there is complete and fits; raises where it is another one."""
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        return False
    check_identity(path, replace(found, num_views=max(found.num_views, asked.num_views)), asked)
    return found.complete and found.num_views >= asked.num_views


def _mention_ending(cache: Path | None) -> None:
    if cache is not None and cache.suffix != ".zarr":
        log.warning("%s has no ending .zarr: it is not listed, nor found without --cache", cache)


def _mention_encoding(recipe: Recipe, asked: Manifest) -> None:
    if recipe.cache.encoding == "auto":
        _, reason = choose_encoding(recipe.cache, asked.num_classes)
        log.info("cache.encoding = 'auto' is %s: %s", asked.encoding, reason)


def _free_path(root: Path, recipe: Recipe, asked: Manifest) -> Path:
    """NAME.zarr, or with the identity in its name where that one holds something else."""
    path = root / f"{recipe.name}.zarr"
    # A build that was killed before its first manifest left a temporary file at most.
    taken = path.is_file() or any(child.suffix != ".tmp" for child in path.glob("*"))
    return root / f"{recipe.name}-{asked.id[:8]}.zarr" if taken else path


def _probe(
    batches: SizedBatches, resident: Images, images: ImageSet, views: Pipeline, encoding: Encoding
) -> dict[str, Any]:
    """Ask the teacher about the first clean samples: is it right, how fast, how well stored?"""
    index = torch.arange(min(_PROBE_SAMPLES, images.num_samples))
    pixels, labels = resident.take(index)
    batches.logits(pixels[: min(64, len(index))])  # the first pass sets things up
    began = perf_counter()
    logits = batches.logits(pixels)
    _synchronize(logits.device)
    seconds = perf_counter() - began
    hits = (logits.argmax(1) == labels).double().mean().item() if images.labelled else None
    stored = decode(encode(logits, encoding), encoding)
    measured = fidelity(logits.cpu(), stored, labels.cpu() if images.labelled else None)
    return {
        "top1_accuracy": hits,
        "images_per_second": 1 / (seconds / len(index) + _seconds_a_view(resident, views)),
        "fidelity": {**measured, "num_samples": len(index)},
    }


def _seconds_a_view(resident: Images, views: Pipeline) -> float:
    """Native views cost next to nothing, those of others' transforms may cost the most."""
    index = torch.arange(min(64, len(resident.labels)))
    resident.show(views, 0, index[:2])
    began = perf_counter()
    pixels = resident.show(views, 0, index).pixels
    _synchronize(pixels.device)
    return (perf_counter() - began) / len(index)


def _with_probe(asked: Manifest, probe: Mapping[str, Any]) -> Manifest:
    teacher = {**asked.teacher, "top1_accuracy": probe["top1_accuracy"]}
    return replace(asked, teacher=teacher, fidelity=probe["fidelity"])


def _my_shards(writer: ShardWriter, accelerator: Accelerator) -> list[tuple[int, int]]:
    """This process's part of the (view, shard) pairs that are not committed yet."""
    todo = [(int(view), int(shard)) for view, shard in np.argwhere(~writer.committed())]
    return todo[accelerator.process_index :: accelerator.num_processes]


def _announce(
    path: Path, manifest: Manifest, probe: Mapping[str, Any], writer: ShardWriter
) -> None:
    """Say what is about to happen, while it can still be stopped."""
    committed = writer.committed()
    answers = manifest.num_views * manifest.num_samples
    left = answers * (1 - committed.mean())
    if probe["top1_accuracy"] is not None:
        log.info(
            "teacher's top-1 on the first %d training images: %.1f %%",
            manifest.fidelity["num_samples"], 100 * probe["top1_accuracy"],
        )  # fmt: skip
    log.info(
        "%s: %d views of %d samples, %d of %d shards done; about %.1f MB and %.0f s to go "
        "for one process",
        path, manifest.num_views, manifest.num_samples, committed.sum(), committed.size,
        left * _bytes_per_answer(manifest) / 1e6, left / probe["images_per_second"],
    )  # fmt: skip


def _check_space(path: Path, asked: Manifest) -> None:
    """Before anything is written, so that a build too large leaves what is there as it is."""
    present = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    wanted = asked.num_views * asked.num_samples * _bytes_per_answer(asked) - present
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StorageError(
            f"{path} needs about {wanted / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free: "
            "free some, choose another --cache-root, or fewer views"
        )


def _bytes_per_answer(manifest: Manifest) -> int:
    """Logits and digest, before compression."""
    return manifest.bytes_per_target + 8


def _build_shards(
    builder: ShardBuilder,
    manifest: Manifest,
    todo: list[tuple[int, int]],
    stop: StopRequest,
    path: Path,
    *,
    main: bool,
) -> None:
    interval = 0.5 if sys.stderr.isatty() else 30.0
    total = sum(stop - start for start, stop in (manifest.shard_range(s) for _, s in todo))
    bar = tqdm(
        total=total,
        unit=" views",
        unit_scale=True,
        mininterval=interval,
        delay=interval,
        leave=False,
        disable=not main,
    )
    try:
        with bar:
            building = builder.build_each(todo)
            for _, shard in todo:
                if stop.received is not None:
                    raise Interrupted(
                        f"stopped; finished shards of {path} are kept: run the same command again"
                    )
                next(building)
                start, end = manifest.shard_range(shard)
                bar.update(end - start)
    finally:
        builder.close()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
