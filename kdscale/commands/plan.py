"""What a cache will cost and when it has paid for itself, before anything is built."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from kdscale import config, experiment
from kdscale.building.location import free_path, space
from kdscale.building.stored_outputs import StoredOutputs, configure_teacher
from kdscale.cache.catalog import find_cache
from kdscale.cache.layout import with_large_objects
from kdscale.cache.manifest import Manifest, bytes_stored, read_manifest
from kdscale.cache.size_estimate import answers_bytes, num_files, other_bytes
from kdscale.cache.stores.base import Place, is_remote
from kdscale.cache.writer import ShardWriter
from kdscale.commands.timing import (
    SMALLEST_BATCH,
    StagedTargets,
    TimedLoop,
    TimedSetup,
    affordable_batch,
    ask_teacher,
    soft_objective,
    student_settings,
)
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.rng import permutation
from kdscale.data.views.schedule import ViewSchedule
from kdscale.distributed import create_accelerator
from kdscale.errors import CacheNotFoundError, ConfigError, LaunchError
from kdscale.experiment.checks import mention_ineffective
from kdscale.formatting import bytes_text
from kdscale.losses.objective import SUPERVISED
from kdscale.report.training_cost import break_even
from kdscale.target_sources.base import LiveTeacher, NoTargets, TargetSource
from kdscale.target_sources.compatibility import check_compatible, with_keys
from kdscale.target_sources.stored_encoding import choose_encoding, encoding_of
from kdscale.targets import ENCODINGS, Encoding, Head, encode
from kdscale.teacher.checks import inspect_teacher
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher, TeacherOutput
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)

_INSPECTED = 200  # images that the teacher is inspected on: a plan is quick
_TEACHER_SHARE = 0.4  # of the time; the rest goes into training steps
_ROUND_SECONDS = 0.05  # wanted at least for each kind of step in a round
_ROUNDS = 3  # at least

KINDS = ("supervised", "cached", "online")
"""Of students, cheapest first."""


def plan(
    recipe: config.Recipe,
    *,
    cache_root: Path,
    cache: Place | None = None,
    teacher_weights: str | None = None,
    num_processes: int = 1,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Tell what the recipe's cache costs and saves, from short runs on this machine.

    Nothing is written but decoded images, where those are not there yet.

    Args:
        recipe: the recipe; its teacher is timed with random weights where it has none.
        cache_root: where caches and decoded images lie.
        cache: the cache's folder or URL; found by content, or named after the recipe, when None.
        teacher_weights: used where the recipe names none.
        num_processes: that build and train, each as fast as this one and on its part of a batch.
        seconds: to spend on short runs, roughly.

    Returns:
        The JSON object of `kdscale cache plan`. Times are seconds; those of a student are of all
        its epochs, without evaluation, and null where there is no such student.

    Raises:
        KdscaleError: the recipe cannot be built or trained.
    """
    accelerator = create_accelerator()
    if accelerator.num_processes > 1:
        raise LaunchError(
            f"plan was started with {accelerator.num_processes} processes and times one: start it "
            f"alone, with --processes {accelerator.num_processes}"
        )
    mention_ineffective(recipe, "student")
    with _telling_what_is_decoded(cache_root):
        labelled = recipe.loss.hard_weight > 0
        images = experiment.training_images(recipe, cache_root, labelled=labelled)
    settings, device = student_settings(recipe), accelerator.device
    teacher = experiment.frozen_teacher_or_random(recipe, images, teacher_weights, device)
    trained = recipe.teacher.is_trained or teacher_weights is not None
    kept = experiment.stored_outputs_of(recipe, images, teacher)
    asked = experiment.required_manifest(recipe, images, teacher.describe(), kept=kept)
    asked, once = with_keys(asked, images)
    there = _look_for(asked, images, cache_root, cache) if trained else _Found(None, 0.0)
    path = there.path or cache or free_path(cache_root, recipe, asked)

    size = settings.global_batch_size
    parts = TimedSetup(
        recipe, images, DeviceImages(images, device), teacher, accelerator, size, num_processes
    )
    parts.loader(ViewSchedule(1, 0))  # a batch that does not split over the processes ends here
    embedded = _embedded(recipe, images, teacher)
    heard = replace(parts, teacher=configure_teacher(teacher, asked, embedded or kept))
    if trained:
        batches = OomSafeTeacher(heard.teacher, recipe.teacher.batch_size)
        inspect_teacher(batches, parts.resident, images, num_samples=_INSPECTED)
    encoding = encoding_of(asked, kept.head)
    answers = ask_teacher(heard, encoding, asked.num_views, seconds * _TEACHER_SHARE)
    steps = _step_seconds(parts, asked, encoding, seconds * (1 - _TEACHER_SHARE))
    build = answers.seconds_per_image * asked.num_views * asked.num_samples / num_processes
    said = answers.said if trained else None
    encodings = _sizes(recipe, asked, images, once, embedded, said)
    if is_remote(path):
        asked = with_large_objects(asked)
    needed, free = space(path, asked)
    return {
        "recipe": recipe.name,
        "num_views": asked.num_views,
        "num_samples": asked.num_samples,
        "num_classes": asked.num_classes,
        "teacher": recipe.teacher.model,
        "teacher_is_trained": trained,
        "encoding": asked.encoding,
        "reason": choose_encoding(recipe.cache, images.num_classes)[1],
        "encodings": encodings,
        "bytes": encodings[asked.encoding]["bytes"],
        "files": num_files(asked),
        "path": str(path),
        "share_built": round(there.share, 4),
        "needed_bytes": 0 if there.share == 1 else needed,
        "free_bytes": free,
        "whole_build_seconds": round(build, 6),
        **_payback(recipe, parts, build * (1 - there.share), steps),
        "num_processes": num_processes,
        "device": device.type,
        "num_threads": torch.get_num_threads(),
    }


@contextmanager
def _telling_what_is_decoded(cache_root: Path) -> Iterator[None]:
    """Say so where images had to be decoded, which the build would have done."""
    folder = cache_root / "images"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    yield
    for new in sorted(set(folder.iterdir()) - before):
        if new.is_dir() and not new.name.startswith("."):
            log.info("decoded images are kept in %s (%s)", new, bytes_text(bytes_stored(new)))


@dataclass(frozen=True, slots=True)
class _Found:
    """A cache that fits, and how much of what is asked for it holds already."""

    path: Place | None
    share: float
    """0..1"""


def _look_for(
    asked: Manifest, images: ImageDataset, cache_root: Path, cache: Place | None
) -> _Found:
    path = cache or find_cache(cache_root, asked)
    try:
        found = None if path is None else read_manifest(path)
    except CacheNotFoundError:
        found = None
    if path is None or found is None:
        return _Found(None, 0.0)
    enough = replace(found, num_views=max(found.num_views, asked.num_views))
    check_compatible(path, enough, asked, images)
    # In parts too, where the cache is unfinished.
    built = (
        found.num_views if found.complete else ShardWriter(path, found).committed().mean(1).sum()
    )
    return _Found(path, min(1.0, float(built) / asked.num_views))


def _embedded(
    recipe: config.Recipe, images: ImageDataset, teacher: FrozenTeacher
) -> StoredOutputs | None:
    """What a cache of embeddings would keep; None where the teacher's last layer is not linear."""
    settings = recipe.cache.model_copy(update={"encoding": "embedding"})
    with suppress(ConfigError):
        return experiment.stored_outputs_of(
            recipe.model_copy(update={"cache": settings}), images, teacher
        )
    return None


def _sizes(
    recipe: config.Recipe,
    asked: Manifest,
    images: ImageDataset,
    once: Mapping[str, np.ndarray],
    embedded: StoredOutputs | None,
    said: TeacherOutput | None,
) -> dict[str, dict[str, int]]:
    """Bytes of an answer and of the cache, by encoding.

    The cache's are what some of the teacher's answers take once compressed. An untrained teacher's
    say nothing of that, so what is told are then the bytes before compression.
    """
    sizes = {}
    for name in ENCODINGS:
        settings = recipe.cache.model_copy(update={"encoding": name})
        wanted = recipe.model_copy(update={"cache": settings})
        kept = embedded if name == "embedding" else StoredOutputs()
        if kept is None:
            continue
        with suppress(ConfigError):  # topk of fewer classes than it keeps
            manifest = experiment.required_manifest(wanted, images, asked.teacher, kept=kept)
            manifest = replace(manifest, features=asked.features, dataset=asked.dataset)
            each = float(manifest.bytes_per_sample)
            if said is not None:
                each = _stored_bytes_per_answer(manifest, said, kept.head)
            total = each * manifest.num_views * manifest.num_samples
            other = other_bytes(manifest, images.labels, {**once, **kept.once})
            sizes[name] = {
                "bytes_per_target": manifest.bytes_per_target,
                "bytes": round(total) + other,
            }
    return sizes


def _stored_bytes_per_answer(manifest: Manifest, said: TeacherOutput, head: Head | None) -> float:
    """Compressed, but for features, whose bytes are told as they are."""
    values = encode(said.logits_BC, encoding_of(manifest, head), said.embedding_BD)
    logits = said.logits_BC
    # Digests are as good as random.
    seen = torch.randint(1, 1 << 32, (len(logits),), generator=torch.Generator().manual_seed(0))
    values["digests"] = seen.numpy().astype("uint64")
    features = manifest.bytes_per_sample - replace(manifest, features=()).bytes_per_sample
    return answers_bytes(manifest, values) / len(logits) + features


# --------------------------------------------------------------------------- time


def _step_seconds(
    parts: TimedSetup, asked: Manifest, encoding: Encoding, seconds: float
) -> dict[str, float]:
    """Seconds a sample that training steps of each kind take; medians of interleaved rounds."""
    tiny = _variants(
        replace(parts, batch_size=SMALLEST_BATCH * parts.num_processes), asked, encoding
    )
    for variant in tiny.values():
        variant.timed(1)  # the first pass sets things up
    each = sum(variant.timed(1) for variant in tiny.values()) / SMALLEST_BATCH
    own = max(1, parts.batch_size // parts.num_processes)
    own = affordable_batch(own, each, seconds)
    size = own * parts.num_processes if own * parts.num_processes < parts.batch_size else 0
    parts = replace(parts, batch_size=size or parts.batch_size)
    loader = parts.loader(ViewSchedule(1, 0))
    samples = loader.num_samples / loader.steps_per_epoch
    measured = _measure(_variants(parts, asked, encoding), seconds)
    return {kind: step / samples for kind, step in measured.items()}


def _variants(parts: TimedSetup, asked: Manifest, encoding: Encoding) -> dict[str, TimedLoop]:
    schedule = ViewSchedule(asked.num_views, 0)
    staged = StagedTargets(parts.images, encoding, schedule, parts.accelerator.device)
    sources: dict[str, TargetSource] = {"cached": staged}
    if parts.images.labelled:
        sources["supervised"] = NoTargets(schedule)
    if parts.recipe.views.mode == "replayed":
        sources["online"] = LiveTeacher(parts.teacher, schedule)
    soft = soft_objective(parts.recipe)
    found = {}
    for kind, source in sources.items():
        loop = parts.loop(source, SUPERVISED if kind == "supervised" else soft)
        prepare = partial(staged.stage, loop) if kind == "cached" else None
        found[kind] = TimedLoop(partial(_go_on, loop), prepare)
    return found


def _go_on(loop: Trainer, count: int) -> None:
    loop.run(loop.state.step + count)


def _measure(variants: Mapping[str, TimedLoop], seconds: float) -> dict[str, float]:
    """Seconds of a step of each kind."""
    names, ended = list(variants), perf_counter() + seconds
    once = {name: variant.timed(1) for name, variant in variants.items()}
    for name, variant in variants.items():
        if once[name] < 1:  # the first pass sets things up, which matters where steps are short
            once[name] = variant.timed(1)
    counts = {name: max(1, round(_ROUND_SECONDS / one)) for name, one in once.items()}
    taken: dict[str, list[float]] = {name: [] for name in names}
    turn = 0
    while turn < _ROUNDS or perf_counter() < ended:
        for position in permutation(len(names), turn).tolist():
            name = names[position]
            taken[name].append(variants[name].timed(counts[name]) / counts[name])
        turn += 1
    return {name: median(rounds) for name, rounds in taken.items()}


def _payback(
    recipe: config.Recipe, parts: TimedSetup, build: float, steps: Mapping[str, float]
) -> dict[str, Any]:
    """Times of the build and of a student of each kind, and when the one has saved the other."""
    settings = student_settings(recipe)
    training, _ = experiment.sample_indices(recipe, parts.images)
    each = len(training) * settings.epochs
    students = {kind: round(steps[kind] * each, 6) for kind in steps}
    build = round(build, 6)
    return {
        "build_seconds": build,
        "epochs": settings.epochs,
        "may_end_early": settings.stop_after is not None,
        **{f"{kind}_student_seconds": students.get(kind) for kind in KINDS},
        "break_even_students": break_even(build, students["cached"], students.get("online")),
        "break_even_epochs": break_even(
            build * settings.epochs, students["cached"], students.get("online")
        ),
    }
