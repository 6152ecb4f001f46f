"""How fast a recipe's steps are: bare, supervised, staged, cached, online; and its build.

All variants run interleaved in one process, in an order that changes every round, and each ratio is
taken within a round: a machine that slows down slows both sides.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from kdscale import config, experiment
from kdscale.building.shards import ShardBuilder
from kdscale.building.stored_outputs import configure_teacher
from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.commands.timing import (
    StagedTargets,
    Steps,
    TimedLoop,
    TimedSetup,
    soft_objective,
    student_settings,
    synthetic_outputs,
)
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.digest import digest
from kdscale.data.views.rng import permutation
from kdscale.data.views.schedule import ViewSchedule
from kdscale.distributed import create_accelerator
from kdscale.errors import ConfigError
from kdscale.losses.logits import label_loss
from kdscale.losses.objective import SUPERVISED
from kdscale.precision import autocast
from kdscale.runs.log import MetricsLog
from kdscale.signals import StopRequest
from kdscale.target_sources.base import LiveTeacher, NoTargets, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.stored_encoding import encoding_of, stored_encoding
from kdscale.targets import encode
from kdscale.teacher.frozen_teacher import OomSafeTeacher
from kdscale.training.callbacks import NEVER, Intervals, StepCallback
from kdscale.training.trainer import Trainer

MINIMUM_ROUNDS = 50  # single rounds scatter by tens of percent
_BUILD_ROUNDS = 5  # at least
_STEP_SHARE = 0.7  # of the time; the rest measures the build
_ROUND_SECONDS = 0.05  # wanted at least for each variant in a round

RATIOS = {
    "supervised_over_plain_time": ("supervised", "plain"),
    "cached_over_staged_time": ("cached", "staged"),
    "cached_over_supervised_time": ("cached", "supervised"),
    "online_over_cached_time": ("online", "cached"),
    "views_over_supervised_time": ("views", "supervised"),
}


def bench(
    recipe: config.Recipe, *, cache_root: Path, seconds: float, teacher_weights: str | None = None
) -> dict[str, Any]:
    """Measure a recipe's training steps and its build.

    Args:
        recipe: the recipe; its teacher is created with random weights where it has none.
        cache_root: where decoded images lie; the cache itself is a temporary one.
        seconds: to spend in all, start-up left out.
        teacher_weights: used where the recipe names none.

    Returns:
        Images a second and ratios of times: medians, with [smallest, largest] over rounds.
    """
    accelerator = create_accelerator()
    images = experiment.training_images(recipe, cache_root, labelled=False)
    _check_measurable(recipe, images)
    device, size = accelerator.device, student_settings(recipe).global_batch_size
    teacher = experiment.frozen_teacher_or_random(recipe, images, teacher_weights, device)
    parts = TimedSetup(recipe, images, DeviceImages(images, device), teacher, accelerator, size)
    with tempfile.TemporaryDirectory(prefix="kdscale-bench-") as folder:
        cache = _temporary_cache(Path(folder) / "steps.zarr", parts)
        with ExitStack() as stack:
            scratch = _Scratch(Path(folder), stack)
            cached = _open(cache, parts, scratch)
            variants = _variants(parts, cached, scratch)
            once = _warm_up(variants)
            before = cached.reading()
            steps = _measure_steps(variants, once, seconds * _STEP_SHARE)
            reading = cached.reading().since(before).to_json(sum(steps.seconds["cached"]))
        build = _measure_build(parts, Path(folder), seconds * (1 - _STEP_SHARE))
    summary = _summary(recipe, images.num_samples, steps, build, accelerator)
    return summary | {"reading": reading}


def _check_measurable(recipe: config.Recipe, images: ImageDataset) -> None:
    if not images.labelled:
        raise ConfigError(
            f"split {images.split!r} of {images.name} has no labels, and bench compares with steps "
            "on labels: name a labelled split (data.train_split)"
        )
    if recipe.views.mode == "fixed":
        raise ConfigError(
            "bench measures steps on what the teacher saw: set views.mode = 'replayed'"
        )


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Where runs that are timed keep their logs, and until when."""

    folder: Path
    stack: ExitStack


def _temporary_cache(path: Path, parts: TimedSetup) -> Path:
    """A finished cache of two views with true digests and made-up logits: cheap, read the same.

    Without features: losses between them are not timed.
    """
    recipe, images = parts.recipe, parts.images
    kept = experiment.stored_outputs_of(recipe, images, parts.teacher)
    asked = experiment.required_manifest(recipe, images, parts.teacher.describe(), kept=kept)
    views = 2 if recipe.views.operations else 1
    asked = replace(asked, features=()).with_num_views(views)
    manifest = create_or_resume(path, asked, images.labels, once=kept.once)
    writer = ShardWriter(path, manifest)
    pipeline = experiment.cached_pipeline(recipe, images.num_samples)
    made_up = synthetic_outputs(images, images.num_samples, kept.head)
    for view in range(views):
        for shard in range(manifest.num_shards):
            index = torch.arange(*manifest.shard_range(shard))
            digests = [
                digest(parts.resident.render_views(pipeline, view, part).pixels).cpu()
                for part in index.split(1024)
            ]
            said = made_up.with_each(itemgetter(index))
            values = encode(said.logits_BC, encoding_of(manifest, kept.head), said.embedding_BD)
            values["digests"] = (torch.cat(digests) + 1).numpy().astype(np.uint64)
            writer.write(view, shard, values, 0.0)
    finish(path, manifest, {})
    return path


def _open(cache: Path, parts: TimedSetup, scratch: _Scratch) -> CachedTargets:
    memory = parts.recipe.cache.targets_memory_bytes
    cached = CachedTargets.open(cache, device=parts.accelerator.device, memory_bytes=memory)
    scratch.stack.callback(cached.close)
    return cached


def _variants(parts: TimedSetup, cached: CachedTargets, scratch: _Scratch) -> dict[str, TimedLoop]:
    schedule = ViewSchedule(cached.num_views, 0)
    encoding = stored_encoding(cached.reader)
    staged = StagedTargets(parts.images, encoding, cached.schedule, cached.device, cached.windows)
    sources: dict[str, TargetSource] = {
        "supervised": NoTargets(schedule),
        "staged": staged,
        "cached": cached,
        "online": LiveTeacher(parts.teacher, schedule),
    }
    soft = soft_objective(parts.recipe)
    loops = {
        name: parts.loop(source, SUPERVISED if name == "supervised" else soft)
        for name, source in sources.items()
    }
    ours = {name: _ours(parts, loop, scratch) for name, loop in loops.items()}
    ours["staged"] = replace(
        ours["staged"], prepare=lambda count: staged.stage(loops["staged"], count)
    )
    plain, views = TimedLoop(_plain(parts, schedule)), TimedLoop(_views_alone(parts, schedule))
    return {"plain": plain, **ours, "views": views}


def _views_alone(parts: TimedSetup, schedule: ViewSchedule) -> Steps:
    """The views of a step's batches, shown to nobody."""
    loader, steps_done = parts.loader(schedule), count()

    def steps(number: int) -> None:
        for step in islice(steps_done, number):
            loader.batch(step)

    return steps


def _plain(parts: TimedSetup, schedule: ViewSchedule) -> Steps:
    """A bare PyTorch loop: same student, views, batches and optimizer, none of kdscale's loop."""
    settings, images = parts.settings, parts.resident
    pipeline = experiment.pipeline(parts.recipe, parts.images.num_samples)
    student = experiment.model_to_train(
        parts.recipe, parts.recipe.student, parts.images, seed=0, what="student"
    )
    model, preprocess = student.model.to(parts.accelerator.device), student.preprocess
    optimizer = experiment.optimizer(settings, model)
    device, loader = parts.accelerator.device, parts.loader(schedule)
    rates = experiment.schedule(settings, loader.steps_per_epoch)
    wanted = ((step // loader.steps_per_epoch, loader.index(step)) for step in count())
    views = ((schedule.view(epoch, index), index) for epoch, index in wanted)
    batches = enumerate(images.render_views_each(pipeline, views))

    def steps(number: int) -> None:
        model.train()
        for step, shown in islice(batches, number):
            for group in optimizer.param_groups:
                group["lr"] = rates(step)
            with autocast(settings.precision, device):
                logits = model(preprocess(shown.pixels))
            loss = label_loss(logits, shown.labels, shown.mix)
            loss.backward()
            if settings.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def _ours(parts: TimedSetup, loop: Trainer, scratch: _Scratch) -> TimedLoop:
    """kdscale's loop, with everything that follows its steps but evaluation and checkpoints."""
    metrics = scratch.stack.enter_context(MetricsLog(scratch.folder / f"{id(loop)}.jsonl"))
    cadence = Intervals(log=parts.settings.log_every, evaluate=NEVER, checkpoint=NEVER, last=NEVER)
    bar = tqdm(disable=True)
    following = StepCallback(scratch.folder, cadence, None, metrics, StopRequest(), bar)

    def steps(count: int) -> None:
        loop.run(loop.state.step + count, after_step=following)

    return TimedLoop(steps)


@dataclass(frozen=True, slots=True)
class _Timings:
    """Seconds of each variant in each round."""

    seconds: Mapping[str, list[float]]
    steps: int
    """Steps of each variant in a round."""


def _warm_up(variants: Mapping[str, TimedLoop]) -> dict[str, float]:
    """Seconds of one step of each variant, about."""
    for variant in variants.values():
        variant.timed(3)
    return {name: variant.timed(2) / 2 for name, variant in variants.items()}


def _measure_steps(
    variants: Mapping[str, TimedLoop], once: Mapping[str, float], seconds: float
) -> _Timings:
    wanted = max(1, round(_ROUND_SECONDS / min(once.values())))
    affordable = max(1, int(seconds / MINIMUM_ROUNDS / sum(once.values())))
    count = min(wanted, affordable)
    rounds = max(MINIMUM_ROUNDS, int(seconds / (count * sum(once.values()))))
    measured: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for position in permutation(len(names), turn).tolist():
            name = names[position]
            measured[name].append(variants[name].timed(count))
    return _Timings(measured, count)


def _measure_build(parts: TimedSetup, folder: Path, seconds: float) -> dict[str, Any]:
    """Whole shards, written and flushed, against a bare teacher loop over the same views."""
    recipe, teacher = parts.recipe, parts.teacher
    pipeline = experiment.cached_pipeline(recipe, parts.images.num_samples)
    kept = experiment.stored_outputs_of(recipe, parts.images, teacher)
    size = recipe.teacher.batch_size

    def bare(start: int, stop: int) -> None:
        for index in torch.arange(start, stop).split(size):
            teacher.logits(parts.resident.render_views(pipeline, 0, index).pixels).cpu()

    bare(0, min(size, parts.images.num_samples))
    began = perf_counter()
    bare(0, min(size, parts.images.num_samples))
    per_image = (perf_counter() - began) / min(size, parts.images.num_samples)
    shard_samples = _shard_samples(recipe, parts.images, seconds, per_image)
    asked = experiment.required_manifest(recipe, parts.images, teacher.describe(), kept=kept)
    asked = replace(asked, shard_samples=shard_samples).with_num_views(1)
    batches = OomSafeTeacher(configure_teacher(teacher, asked, kept), recipe.teacher.batch_size)
    path = folder / "build.zarr"
    manifest: Manifest = create_or_resume(path, asked, parts.images.labels, once=kept.once)
    builder = ShardBuilder(parts.resident, pipeline, batches, ShardWriter(path, manifest))

    together = _shards_a_round(manifest, per_image)
    whole = manifest.num_samples // shard_samples // together
    ratios, rates, ended, turn = [], [], perf_counter() + seconds, 0
    while turn < _BUILD_ROUNDS or (perf_counter() < ended and turn < 100):
        first = turn % whole * together
        shards = range(first, first + together)
        span = (first * shard_samples, (first + together) * shard_samples)

        def ours(_: int, shards: range = shards) -> None:
            for shard in shards:
                builder.build(0, shard)
            builder.wait()

        def plain(_: int, span: tuple[int, int] = span) -> None:
            bare(*span)

        pair: list[Steps] = [ours, plain] if turn % 2 else [plain, ours]
        times = {steps: TimedLoop(steps).timed(1) for steps in pair}
        ratios.append(times[ours] / times[plain])
        rates.append((span[1] - span[0]) / times[ours])
        turn += 1
    builder.close()
    return {"ratios": ratios, "rates": rates, "shard_samples": shard_samples, "shards": together}


def _shards_a_round(manifest: Manifest, per_image: float) -> int:
    """As many shards as take about a second: a build writes one while it asks about the next."""
    wanted = round(1 / (per_image * manifest.shard_samples))
    return max(1, min(wanted, 4, manifest.num_samples // manifest.shard_samples))


def _shard_samples(
    recipe: config.Recipe, images: ImageDataset, seconds: float, per_image: float
) -> int:
    """The recipe's shard, or a smaller one where not ten pairs of it fit into the time."""
    largest = min(recipe.cache.shard_samples, images.num_samples)
    affordable = int(seconds / (20 * per_image))
    return max(min(largest, 256), min(largest, affordable - affordable % 256))


def _summary(
    recipe: config.Recipe,
    num_samples: int,
    steps: _Timings,
    build: Mapping[str, Any],
    accelerator: Accelerator,
) -> dict[str, Any]:
    settings = student_settings(recipe)
    images = steps.steps * num_samples / -(-num_samples // settings.global_batch_size)
    summary: dict[str, Any] = {"recipe": recipe.name}
    for name, seconds in steps.seconds.items():
        summary[f"{name}_images_per_second"] = round(images / median(seconds), 1)
    for ratio, (over, under) in RATIOS.items():
        pairs = zip(steps.seconds[over], steps.seconds[under], strict=True)
        _put(summary, ratio, [a / b for a, b in pairs])
    _put(summary, "build_over_bare_teacher_time", build["ratios"])
    summary["build_images_per_second"] = round(median(build["rates"]), 1)
    summary["build_shard_samples"] = build["shard_samples"]
    summary["build_shards_per_round"] = build["shards"]
    summary["rounds"] = len(steps.seconds["plain"])
    summary["steps_per_round"] = steps.steps
    summary["build_rounds"] = len(build["ratios"])
    summary["global_batch_size"] = settings.global_batch_size
    summary["device"] = _device_name(accelerator.device)
    summary["num_threads"] = torch.get_num_threads()
    return summary


def _put(summary: dict[str, Any], name: str, ratios: list[float]) -> None:
    summary[name] = round(median(ratios), 4)
    summary[f"{name}_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
