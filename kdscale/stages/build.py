"""Build a cache: images -> views -> teacher -> targets encoded -> shards -> manifest, last."""

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from kdscale.cache.claims import Claims
from kdscale.cache.layout import with_large_objects
from kdscale.cache.manifest import Manifest, bytes_stored, read_manifest
from kdscale.cache.reader import check_present
from kdscale.cache.search import find_cache
from kdscale.cache.store import Place, is_remote
from kdscale.cache.writer import ShardWriter, create_or_resume, finish, is_free
from kdscale.config import Recipe
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.engine.building import ShardBuilder, Shards
from kdscale.engine.components import (
    asked_manifest,
    cached_pipeline,
    few_views,
    frozen_teacher,
    kept_of,
    training_images,
)
from kdscale.engine.encoding import choose_encoding, encoding_of
from kdscale.engine.identity import check_fits, with_keys
from kdscale.engine.kept import asked_for, mention_large_shards
from kdscale.engine.order import building_order
from kdscale.engine.processes import (
    StopRequest,
    create_accelerator,
    from_main_process,
    main_process_first,
    orderly_stop,
)
from kdscale.engine.teacher import FrozenTeacher, SizedBatches
from kdscale.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheNotFoundError,
    ConfigError,
    Interrupted,
    StorageError,
)
from kdscale.fidelity import fidelity
from kdscale.targets import Encoding, decode, encode

log = logging.getLogger(__name__)

_PROBE_SAMPLES = 1000
_POLL_SECONDS = 0.2  # between looks at what other builders do


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
            pipeline may hold callables of your own (`PerSample`).
        num_views: how many views to build; the recipe's when None.

    Returns:
        The place of the finished cache.

    Raises:
        KdscaleError: see `kdscale.errors`; whole shards are kept and the next build goes on.
    """
    _mention_ending(cache)
    accelerator = create_accelerator()
    with main_process_first(accelerator):
        images = training_images(recipe, cache_root, labelled=recipe.loss.hard_weight > 0)
    teacher = frozen_teacher(recipe, images, teacher_weights, accelerator.device)
    views = views or cached_pipeline(recipe, images.num_samples)
    kept = kept_of(recipe, images, teacher, views)
    asked = asked_manifest(recipe, images, teacher.describe(), views, kept)
    if num_views is not None:
        asked = replace(asked, num_views=num_views, views={**asked.views, "count": num_views})
    if recipe.cache.encoding == "auto":
        mention_encoding(recipe, asked, teacher, few_views(recipe, images, teacher.device, views))
    path = cache or find_cache(cache_root, asked) or free_path(cache_root, recipe, asked)
    path = from_main_process(accelerator, path)
    if is_remote(path):
        asked = with_large_objects(asked)
    with main_process_first(accelerator):
        finished = accelerator.is_main_process and _is_finished(path, asked, images)
    if from_main_process(accelerator, finished):  # builders beside this launch may finish any time
        log.info("cache %s fits and is complete: reused", path)
        return path

    _check_space(path, asked)
    # Without its features: those of the probe's images may be gigabytes.
    without = asked_for(teacher, replace(asked, features=()), kept)
    batches = SizedBatches(without, recipe.teacher.batch_size)
    mention_large_shards(asked)
    resident = Images(images, accelerator.device)
    probe = _probe(batches, resident, images, views, encoding_of(asked, kept.head))
    with Claims(path) as claims:
        with main_process_first(accelerator):
            if accelerator.is_main_process:
                known, once = with_keys(_with_probe(asked, probe), images)
                once |= kept.once
                create_or_resume(path, known, images.labels, claims, once)
        manifest = read_manifest(path)
        _announce(path, manifest, probe)
        batches.teacher = asked_for(teacher, manifest, kept)
        with orderly_stop() as stop:
            shift = recipe.views.shift_every
            _complete(_Work(path, resident, views, batches, claims, accelerator, stop, shift))
    return path


def _is_finished(path: Place, asked: Manifest, images: ImageSet) -> bool:
    """Whether the cache there is complete and fits; raises where it is another one, or damaged."""
    try:
        found = read_manifest(path)
    except CacheNotFoundError:
        return False
    enough = max(found.num_views, asked.num_views)
    check_fits(path, replace(found, num_views=enough), asked, images)
    if found.complete:
        check_present(path, found)
    return found.complete and found.num_views >= asked.num_views


def _mention_ending(cache: Place | None) -> None:
    if isinstance(cache, Path) and cache.suffix != ".zarr":
        log.warning("%s has no ending .zarr: it is not listed, nor found without --cache", cache)


def mention_encoding(
    recipe: Recipe, asked: Manifest, teacher: FrozenTeacher, pixels: Tensor
) -> None:
    """What `auto` came to and why, and where an embedding would be smaller or lose less."""
    _, reason = choose_encoding(recipe.cache, asked.num_classes)
    log.info("cache.encoding = 'auto' is %s: %s", asked.encoding, reason)
    with suppress(ConfigError):  # the teacher's last layer is not linear
        size = 2 * teacher.find_head(pixels)[1].inputs
        if size <= recipe.cache.budget_bytes and (
            asked.encoding != "float16" or size < asked.bytes_per_target
        ):
            log.info(
                "cache.encoding = 'embedding' would take %d bytes and keep all classes about as "
                "exactly as float16: auto does not choose what depends on the teacher", size,
            )  # fmt: skip


def free_path(root: Path, recipe: Recipe, asked: Manifest) -> Path:
    """NAME.zarr, or with the identity and then a number in its name where others hold that.

    Raises:
        CacheCorruptError: a cache of that name is damaged, so nobody knows what it holds.
    """
    other = f"{recipe.name}-{asked.id[:8]}"
    names = chain([recipe.name, other], (f"{other}-{number}" for number in count(2)))
    return next(
        path for path in (root / f"{name}.zarr" for name in names) if not _is_taken(path, asked)
    )


def _is_taken(path: Path, asked: Manifest) -> bool:
    """Whether something else is there than a cache that fits, which began just now."""
    try:
        if path.is_file():
            return True
        found = read_manifest(path)
    except CacheNotFoundError:  # as a build leaves it that was killed before its first manifest
        return not is_free(path)
    except CacheCorruptError:
        if b'"kdscale"' in (path / "zarr.json").read_bytes():
            raise
        return True
    return found.id != asked.id or any(found.lacks(asked))


def _probe(
    batches: SizedBatches, resident: Images, images: ImageSet, views: Pipeline, encoding: Encoding
) -> dict[str, Any]:
    """Ask the teacher about the first clean samples: is it right, how fast, how well stored?"""
    index = torch.arange(min(_PROBE_SAMPLES, images.num_samples))
    pixels, labels = resident.take(index)
    batches.logits(pixels[: min(64, len(index))])  # the first pass sets things up
    began = perf_counter()
    answers = batches.answers(pixels)
    logits = answers.logits_BC
    _synchronize(logits.device)
    seconds = perf_counter() - began
    hits = (logits.argmax(1) == labels).double().mean().item() if images.labelled else None
    stored = decode(encode(logits, encoding, answers.embedding_BD), encoding)
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


def _announce(path: Place, manifest: Manifest, probe: Mapping[str, Any]) -> None:
    """Say what is about to happen, while it can still be stopped."""
    committed = ShardWriter(path, manifest).committed()
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
        left * manifest.bytes_per_sample / 1e6, left / probe["images_per_second"],
    )  # fmt: skip


def _check_space(path: Place, asked: Manifest) -> None:
    """Before anything is written, so that a build too large leaves what is there as it is."""
    wanted, free = space(path, asked)
    if free is not None and free < wanted:
        raise StorageError(
            f"{path} needs about {wanted / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free: "
            "free some, choose another --cache-root, or fewer views"
        )


def space(path: Place, asked: Manifest) -> tuple[int, int | None]:
    """Bytes that a build may write, were nothing compressed, and bytes that are free.

    A remote store does not say how many are free.
    """
    wanted = asked.num_views * asked.num_samples * asked.bytes_per_sample - bytes_stored(path)
    if not isinstance(path, Path):
        return max(0, wanted), None
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return max(0, wanted), shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class _Work:
    """What one builder has in hand."""

    path: Place
    images: Images
    views: Pipeline
    teacher: SizedBatches
    claims: Claims
    accelerator: Accelerator
    stop: StopRequest
    shift_every: int | None
    """Of the recipe's schedule, which shards are built in the order of."""

    def wait(self) -> None:
        """Give other builders a moment."""
        self.check_stop()
        time.sleep(_POLL_SECONDS)

    def check_stop(self) -> None:
        """Stop where the user asked for it."""
        if self.stop.received is not None:
            raise Interrupted(
                f"stopped; finished shards of {self.path} are kept: run the same command again"
            )


def _complete(work: _Work) -> None:
    """Build until the cache is complete, beside any number of other builders.

    Nobody waits for a process, only for shards: those of a builder that dies are taken over.
    """
    build = {"num_processes": work.accelerator.num_processes}
    while not (manifest := read_manifest(work.path)).complete:
        _build_shards(work, ShardWriter(work.path, manifest))
        with suppress(CacheIncompleteError):  # views were added meanwhile: go on with them
            finish(work.path, manifest, build, work.claims)
    log.info("cache %s is complete: %.1f s of building", work.path, manifest.build["seconds"])


def _build_shards(work: _Work, writer: ShardWriter) -> None:
    """Build what nobody else does, until all shards of the manifest are committed."""
    accelerator = work.accelerator
    manifest = writer.manifest
    schedule = ViewSchedule(manifest.num_views, manifest.views["seed"], work.shift_every)
    order = building_order(schedule, manifest)
    who = accelerator.process_index, accelerator.num_processes
    shards = Shards(writer, work.claims, order, *who)
    sizes = {one: np.ptp(manifest.shard_range(one[1])) for one in shards.missing}
    bar = _bar(sum(sizes.values()), visible=accelerator.is_main_process)
    builder = ShardBuilder(work.images, work.views, work.teacher, writer, work.claims)
    waiting = False
    try:
        with bar:
            while shards.missing:
                work.check_stop()
                for one in builder.build_each(shards.claim_each()):
                    bar.update(sizes[one])
                    work.check_stop()
                builder.wait()
                shards.look()
                if shards.missing:
                    if not waiting:
                        log.info("waiting for %d shards of other builders", len(shards.missing))
                    waiting = True
                    work.wait()
    finally:
        builder.close()


def _bar(total: int, *, visible: bool) -> "tqdm[Any]":
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        unit=" views",
        unit_scale=True,
        mininterval=interval,
        delay=interval,
        leave=False,
        disable=not visible,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
