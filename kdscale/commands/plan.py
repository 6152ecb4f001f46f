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
    soft_objective,
    student_settings,
    time_teacher,
)
from kdscale.data.rng import permutation
from kdscale.data.views.schedule import ViewSchedule
from kdscale.encodings import ENCODINGS, Embedding
from kdscale.errors import CacheNotFoundError, ConfigError, LaunchError
from kdscale.experiment.cache_spec import required_manifest, stored_outputs_of
from kdscale.experiment.checks import mention_ineffective
from kdscale.experiment.datasets import sample_indices
from kdscale.experiment.encoding import choose_encoding
from kdscale.experiment.experiment import Experiment
from kdscale.formatting import bytes_text
from kdscale.losses.objective import SUPERVISED
from kdscale.report.training_cost import break_even
from kdscale.target_sources.base import NoTargets, TargetSource
from kdscale.target_sources.compatibility import with_keys
from kdscale.targets import Codec, Head, create_codec
from kdscale.teacher.checks import inspect_teacher
from kdscale.teacher.frozen_teacher import TeacherOutput
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)

_INSPECTED = 200  # images that the teacher is inspected on: a plan is quick
_TEACHER_SHARE = 0.4  # of the time; the rest goes into training steps
_ROUND_SECONDS = 0.05  # wanted at least for each kind of step in a round
_ROUNDS = 3  # at least

KINDS = ("supervised", "cached", "online")
"""Of students, cheapest first."""


def plan(
    experiment: Experiment, *, num_processes: int = 1, seconds: float = 10.0
) -> dict[str, Any]:
    """Estimate what the recipe's cache costs and saves, from short runs on this machine.

    Nothing is written but decoded images, where those are not there yet.

    Args:
        experiment: recipe and locations; a teacher without weights is timed with random ones.
        num_processes: number of processes that will build and train, each as fast as this one and
            on its part of a batch.
        seconds: to spend on short runs, roughly.

    Returns:
        The JSON object of `kdscale cache plan`. Times are seconds; those of a student are of all
        its epochs, without evaluation, and null where there is no such student.

    Raises:
        KdscaleError: the recipe cannot be built or trained.
    """
    _check_one_process(experiment)
    recipe = experiment.recipe
    mention_ineffective(recipe, "student")
    experiment = replace(experiment, random_teacher=True)
    with _decoded_images_logged(experiment.locations.cache_root):
        images = experiment.train_set
    trained, outputs = experiment.teacher_is_trained, experiment.stored_outputs
    required, once = with_keys(experiment.required_manifest, images)
    existing = _find_existing(experiment, required) if trained else _Existing(None, 0.0)
    path = (
        existing.path
        or experiment.locations.cache
        or free_path(experiment.locations.cache_root, recipe.name, required)
    )

    setup = TimedSetup(experiment, student_settings(recipe).global_batch_size, num_processes)
    setup.loader(ViewSchedule(1, 0))  # a batch that does not split over the processes ends here
    embedded = _embedded(experiment)
    teacher = configure_teacher(experiment.teacher, required, embedded or outputs)
    if trained:
        batches = experiment.oom_safe(teacher)
        inspect_teacher(batches, experiment.train_images, images, num_samples=_INSPECTED)
    codec = create_codec(required.target_encoding, outputs.head)
    timed = time_teacher(setup, teacher, codec, required.num_views, seconds * _TEACHER_SHARE)
    steps = _step_seconds(setup, required, codec, seconds * (1 - _TEACHER_SHARE))
    build = timed.seconds_per_image * required.num_views * required.num_samples / num_processes
    measured = timed.outputs if trained else None
    encodings = _sizes(experiment, required, once, embedded, measured)
    if is_remote(path):
        required = with_large_objects(required)
    needed, free = space(path, required)
    return {
        "recipe": recipe.name,
        "num_views": required.num_views,
        "num_samples": required.num_samples,
        "num_classes": required.num_classes,
        "teacher": recipe.teacher.model,
        "teacher_is_trained": trained,
        "encoding": required.encoding,
        "reason": choose_encoding(recipe.cache, images.num_classes)[1],
        "encodings": encodings,
        "bytes": encodings[required.encoding]["bytes"],
        "files": num_files(required),
        "path": str(path),
        "share_built": round(existing.share, 4),
        "needed_bytes": 0 if existing.share == 1 else needed,
        "free_bytes": free,
        "whole_build_seconds": round(build, 6),
        **_payback(experiment, build * (1 - existing.share), steps),
        "num_processes": num_processes,
        "device": experiment.device.type,
        "num_threads": torch.get_num_threads(),
    }


def _check_one_process(experiment: Experiment) -> None:
    launched = experiment.accelerator.num_processes
    if launched > 1:
        raise LaunchError(
            f"plan was started with {launched} processes and times one: start it "
            f"alone, with --processes {launched}"
        )


@contextmanager
def _decoded_images_logged(cache_root: Path) -> Iterator[None]:
    """Log where images were decoded in the block, which the build would have done."""
    folder = cache_root / "images"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    yield
    for new in sorted(set(folder.iterdir()) - before):
        if new.is_dir() and not new.name.startswith("."):
            log.info("decoded images are stored in %s (%s)", new, bytes_text(bytes_stored(new)))


@dataclass(frozen=True, slots=True)
class _Existing:
    """A compatible cache that exists, maybe in part."""

    path: Place | None
    share: float
    """Share of the required targets that it holds, 0..1."""


def _find_existing(experiment: Experiment, required: Manifest) -> _Existing:
    path = experiment.locations.cache or find_cache(experiment.locations.cache_root, required)
    try:
        found = None if path is None else read_manifest(path)
    except CacheNotFoundError:
        found = None
    if path is None or found is None:
        return _Existing(None, 0.0)
    num_views = max(found.num_views, required.num_views)
    experiment.check_compatible(path, replace(found, num_views=num_views), required)
    # In parts too, where the cache is unfinished.
    built = (
        found.num_views if found.complete else ShardWriter(path, found).committed().mean(1).sum()
    )
    return _Existing(path, min(1.0, float(built) / required.num_views))


def _embedded(experiment: Experiment) -> StoredOutputs | None:
    """Outputs that a cache of embeddings stores; None if the teacher's last layer is not linear."""
    recipe = experiment.recipe
    settings = recipe.cache.model_copy(update={"encoding": Embedding.name})
    with suppress(ConfigError):
        return stored_outputs_of(
            recipe.model_copy(update={"cache": settings}), experiment.train_set, experiment.teacher
        )
    return None


def _sizes(
    experiment: Experiment,
    required: Manifest,
    once: Mapping[str, np.ndarray],
    embedded: StoredOutputs | None,
    measured: TeacherOutput | None,
) -> dict[str, dict[str, int]]:
    """Bytes of a target and of the cache, by encoding.

    Those of the cache are estimated by compressing some of the teacher's outputs. Outputs of random
    weights would not compress alike, so without `measured` bytes before compression are given.
    """
    recipe, images = experiment.recipe, experiment.train_set
    sizes = {}
    for name in ENCODINGS:
        settings = recipe.cache.model_copy(update={"encoding": name})
        wanted = recipe.model_copy(update={"cache": settings})
        outputs = embedded if name == Embedding.name else StoredOutputs()
        if outputs is None:
            continue
        with suppress(ConfigError):  # topk of fewer classes than it stores
            manifest = required_manifest(wanted, images, required.teacher, outputs=outputs)
            manifest = replace(manifest, features=required.features, dataset=required.dataset)
            each = float(manifest.bytes_per_sample)
            if measured is not None:
                each = _stored_bytes_per_target(manifest, measured, outputs.head)
            total = each * manifest.num_views * manifest.num_samples
            other = other_bytes(manifest, images.labels, {**once, **outputs.once})
            sizes[name] = {
                "bytes_per_target": manifest.bytes_per_target,
                "bytes": round(total) + other,
            }
    return sizes


def _stored_bytes_per_target(
    manifest: Manifest, outputs: TeacherOutput, head: Head | None
) -> float:
    """Bytes of a target, compressed; those of features before compression."""
    logits_BC = outputs.logits_BC
    codec = create_codec(manifest.target_encoding, head)
    values = codec.encode(logits_BC, outputs.embedding_BD)
    # Digests are as good as random.
    generator = torch.Generator().manual_seed(0)
    digests = torch.randint(1, 1 << 32, (len(logits_BC),), generator=generator)
    values["digests"] = digests.numpy().astype("uint64")
    features = manifest.bytes_per_sample - replace(manifest, features=()).bytes_per_sample
    return answers_bytes(manifest, values) / len(logits_BC) + features


# --------------------------------------------------------------------------- time


def _step_seconds(
    setup: TimedSetup, required: Manifest, codec: Codec, seconds: float
) -> dict[str, float]:
    """Seconds a sample of training steps, by kind; medians of interleaved rounds."""
    tiny = _variants(
        replace(setup, batch_size=SMALLEST_BATCH * setup.num_processes, compiled=False),
        required,
        codec,
    )
    for variant in tiny.values():
        variant.timed(1)  # the first pass sets things up
    each = sum(variant.timed(1) for variant in tiny.values()) / SMALLEST_BATCH
    own = max(1, setup.batch_size // setup.num_processes)
    own = affordable_batch(own, each, seconds)
    size = own * setup.num_processes if own * setup.num_processes < setup.batch_size else 0
    setup = replace(setup, batch_size=size or setup.batch_size)
    loader = setup.loader(ViewSchedule(1, 0))
    samples = loader.num_samples / loader.steps_per_epoch
    measured = _measure(_variants(setup, required, codec), seconds)
    return {kind: step / samples for kind, step in measured.items()}


def _variants(setup: TimedSetup, required: Manifest, codec: Codec) -> dict[str, TimedLoop]:
    experiment, schedule = setup.experiment, ViewSchedule(required.num_views, 0)
    staged = StagedTargets(experiment.train_set, codec, schedule, experiment.device)
    sources: dict[str, TargetSource] = {"cached": staged}
    if experiment.train_set.labelled:
        sources["supervised"] = NoTargets(schedule)
    if experiment.recipe.views.mode == "replayed":
        sources["online"] = setup.live_teacher(schedule)
    soft = soft_objective(experiment.recipe)
    found = {}
    for kind, source in sources.items():
        trainer = setup.trainer(source, SUPERVISED if kind == "supervised" else soft)
        prepare = partial(staged.stage, trainer) if kind == "cached" else None
        found[kind] = TimedLoop(partial(_continue, trainer), prepare)
    return found


def _continue(trainer: Trainer, count: int) -> None:
    trainer.run(trainer.state.step + count)


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


def _payback(experiment: Experiment, build: float, steps: Mapping[str, float]) -> dict[str, Any]:
    """Times of the build and of a student of each kind, and when the build has paid for itself."""
    settings = student_settings(experiment.recipe)
    training, _ = sample_indices(experiment.recipe, experiment.train_set)
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
