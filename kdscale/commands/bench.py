"""Speed of a recipe's training steps (bare, supervised, staged, cached, online) and of its build.

All variants run interleaved in one process, in an order that changes every round, and each ratio is
taken within a round: a machine that slows down slows both sides.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count, islice, repeat
from operator import itemgetter
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from kdscale import config
from kdscale.building.shards import ShardBuilder
from kdscale.building.stored_outputs import configure_teacher
from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.commands.timing import (
    StagedTargets,
    Steps,
    TimedLoop,
    TimedSetup,
    student_settings,
    synthetic_outputs,
    timed_objective,
)
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.rng import permutation
from kdscale.data.views.digest import digest
from kdscale.data.views.schedule import ViewSchedule
from kdscale.encodings import FeaturesOnly
from kdscale.errors import ConfigError
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.training_setup import forward_pass
from kdscale.experiment.training_setup import optimizer as create_optimizer
from kdscale.experiment.training_setup import schedule as learning_rates
from kdscale.losses.logits import label_loss
from kdscale.losses.objective import SUPERVISED
from kdscale.progress import progress
from kdscale.runs.log import MetricsLog
from kdscale.signals import StopRequest
from kdscale.target_sources.base import NoTargets, TargetSource
from kdscale.target_sources.buffer import stored_codec
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import create_codec
from kdscale.training.callbacks import NEVER, Intervals, StepCallback
from kdscale.training.trainer import Trainer

MINIMUM_ROUNDS = 50  # single rounds scatter by tens of percent
_FEWEST_ROUNDS = 5  # of models so slow that more would take over twice the time
_BUILD_ROUNDS = 5  # at least
_STEP_SHARE = 0.7  # of the time; the rest measures the build
_ROUND_SECONDS = 0.05  # wanted at least for each variant in a round

RATIOS = {
    "fixed_batch_over_plain_time": ("fixed_batch", "plain"),
    "supervised_over_plain_time": ("supervised", "plain"),
    "cached_over_staged_time": ("cached", "staged"),
    "cached_over_supervised_time": ("cached", "supervised"),
    "online_over_cached_time": ("online", "cached"),
    "views_over_supervised_time": ("views", "supervised"),
}


def bench(experiment: Experiment, *, seconds: float) -> dict[str, Any]:
    """Measure a recipe's training steps and its build.

    Args:
        experiment: recipe and locations; a teacher without weights is created with random ones.
            The cache is a temporary one.
        seconds: to spend in all, start-up left out.

    Returns:
        Images a second and ratios of times: medians, with [smallest, largest] over rounds.
    """
    experiment = replace(experiment, require_labels=False, random_teacher=True)
    _check_measurable(experiment)
    experiment.log_teacher()
    setup = TimedSetup(experiment, student_settings(experiment.recipe).global_batch_size)
    with tempfile.TemporaryDirectory(prefix="kdscale-bench-") as folder:
        cache = _temporary_cache(Path(folder) / "steps.zarr", experiment)
        with ExitStack() as stack:
            scratch = _Scratch(Path(folder), stack)
            cached = _open(cache, experiment, scratch)
            variants = _variants(setup, cached, scratch)
            first = _first_steps(variants)
            once = _warm_up(variants)
            before = cached.reading()
            steps = _measure_steps(variants, once, seconds * _STEP_SHARE)
            reading = cached.reading().since(before).to_json(sum(steps.seconds["cached"]))
        build = _measure_build(experiment, Path(folder), seconds * (1 - _STEP_SHARE))
    return _summary(experiment, steps, build) | {"first_step_seconds": first, "reading": reading}


def _check_measurable(experiment: Experiment) -> None:
    images = experiment.train_set
    if experiment.recipe.cache.encoding == FeaturesOnly.name:
        raise ConfigError(
            "bench compares steps on labels with steps on logits, and cache.encoding = 'none' "
            "stores no logits: `kdscale cache plan` times the steps of such a recipe"
        )
    if not images.labelled:
        raise ConfigError(
            f"split {images.split!r} of {images.name} has no labels, and bench compares with steps "
            "on labels: name a labelled split (data.train_split)"
        )
    if experiment.recipe.views.mode == "fixed":
        raise ConfigError(
            "bench measures steps on what the teacher saw: set views.mode = 'replayed'"
        )


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Temporary folder for the logs of timed runs, and a stack that closes them."""

    folder: Path
    stack: ExitStack


def _temporary_cache(path: Path, experiment: Experiment) -> Path:
    """Write a finished cache of two views with true digests and synthetic logits.

    It is written fast and read like any other. Features are left out: their losses are not timed.
    """
    images, outputs = experiment.train_set, experiment.stored_outputs
    views = 2 if experiment.recipe.views.operations else 1
    required = replace(experiment.required_manifest, features=()).with_num_views(views)
    manifest = create_or_resume(path, required, images.labels, once=outputs.once)
    writer = ShardWriter(path, manifest)
    synthetic = synthetic_outputs(images, images.num_samples, outputs.head)
    for view in range(views):
        for shard in range(manifest.num_shards):
            index = torch.arange(*manifest.shard_range(shard))
            digests = [
                digest(
                    experiment.train_images.render_views(experiment.cached_views, view, part).pixels
                ).cpu()
                for part in index.split(1024)
            ]
            rows = synthetic.with_each(itemgetter(index))
            codec = create_codec(manifest.target_encoding, outputs.head)
            values = codec.encode(rows.logits_BC, rows.embedding_BD)
            values["digests"] = (torch.cat(digests) + 1).numpy().astype(np.uint64)
            writer.write(view, shard, values, 0.0)
    finish(path, manifest, {})
    return path


def _open(cache: Path, experiment: Experiment, scratch: _Scratch) -> CachedTargets:
    memory = experiment.recipe.cache.targets_memory_bytes
    cached = CachedTargets.open(cache, device=experiment.device, memory=memory)
    scratch.stack.callback(cached.close)
    return cached


def _variants(setup: TimedSetup, cached: CachedTargets, scratch: _Scratch) -> dict[str, TimedLoop]:
    experiment, schedule = setup.experiment, ViewSchedule(cached.num_views, 0)
    codec = stored_codec(cached.reader)
    staged = StagedTargets(
        experiment.train_set, codec, cached.schedule, cached.device, cached.windows
    )
    sources: dict[str, TargetSource] = {
        "supervised": NoTargets(schedule),
        "staged": staged,
        "cached": cached,
        "online": setup.live_teacher(schedule),
    }
    soft = timed_objective(experiment.recipe)
    trainers = {
        name: setup.trainer(source, SUPERVISED if name == "supervised" else soft)
        for name, source in sources.items()
    }
    ours = {name: _ours(setup, trainer, scratch) for name, trainer in trainers.items()}
    ours["staged"] = replace(
        ours["staged"], prepare=lambda count: staged.stage(trainers["staged"], count)
    )
    bare = {
        "fixed_batch": TimedLoop(_plain(setup, schedule, fixed=True)),
        "plain": TimedLoop(_plain(setup, schedule)),
    }
    return {**bare, **ours, "views": TimedLoop(_views_alone(setup, schedule))}


def _views_alone(setup: TimedSetup, schedule: ViewSchedule) -> Steps:
    """Render the views of a step's batches, without a model."""
    loader, steps_done = setup.loader(schedule), count()

    def steps(number: int) -> None:
        for step in islice(steps_done, number):
            loader.batch(step)

    return steps


def _plain(setup: TimedSetup, schedule: ViewSchedule, *, fixed: bool = False) -> Steps:
    """Run a bare PyTorch loop: same student, views, batches and optimizer, without a trainer.

    With `fixed`, every step takes the first batch, which lies on the device: no data path.
    """
    settings, experiment = setup.settings, setup.experiment
    student, device = experiment.student(seed=0), experiment.device
    model = student.model.to(device)
    forward = forward_pass(settings, model, student.preprocess, device, setup.process_batch)
    optimizer = create_optimizer(settings, model)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    loader = setup.loader(schedule)
    rates = learning_rates(settings, loader.steps_per_epoch)
    plans = map(loader.plan, count())
    rendered = experiment.train_images.render_each(experiment.views, plans)
    batches = enumerate(repeat(next(rendered)) if fixed else rendered)

    def steps(number: int) -> None:
        model.train()
        for step, batch in islice(batches, number):
            for group in optimizer.param_groups:
                group["lr"] = rates(step)
            logits, _ = forward(batch.pixels)
            scaler.scale(label_loss(logits, batch.labels, batch.mix)).backward()
            if settings.gradient_clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return steps


def _ours(setup: TimedSetup, trainer: Trainer, scratch: _Scratch) -> TimedLoop:
    """Run the trainer, with all callbacks of its steps but evaluation and checkpoints."""
    metrics = scratch.stack.enter_context(MetricsLog(scratch.folder / f"{id(trainer)}.jsonl"))
    intervals = Intervals(
        log=setup.settings.log_every, evaluate=NEVER, checkpoint=NEVER, last=NEVER
    )
    bar = progress(0, "steps", visible=False)
    callback = StepCallback(scratch.folder, intervals, None, metrics, StopRequest(), bar)

    def steps(count: int) -> None:
        trainer.run(trainer.state.step + count, after_step=callback)

    return TimedLoop(steps)


@dataclass(frozen=True, slots=True)
class _Timings:
    """Seconds of each variant in each round."""

    seconds: Mapping[str, list[float]]
    steps: int
    """Steps of each variant in a round."""


def _first_steps(variants: Mapping[str, TimedLoop]) -> dict[str, float]:
    """Return seconds of the first step of each variant, which sets up and compiles."""
    return {name: round(variant.timed(1), 3) for name, variant in variants.items()}


def _warm_up(variants: Mapping[str, TimedLoop]) -> dict[str, float]:
    """Return roughly the seconds of one step of each variant."""
    for variant in variants.values():
        variant.timed(2)
    return {name: variant.timed(2) / 2 for name, variant in variants.items()}


def _measure_steps(
    variants: Mapping[str, TimedLoop], once: Mapping[str, float], seconds: float
) -> _Timings:
    wanted = max(1, round(_ROUND_SECONDS / min(once.values())))
    affordable = max(1, int(seconds / MINIMUM_ROUNDS / sum(once.values())))
    count = min(wanted, affordable)
    fitting = seconds / (count * sum(once.values()))
    rounds = max(_FEWEST_ROUNDS, int(fitting), min(MINIMUM_ROUNDS, int(2 * fitting)))
    measured: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for position in permutation(len(names), turn).tolist():
            name = names[position]
            measured[name].append(variants[name].timed(count))
    return _Timings(measured, count)


def _measure_build(experiment: Experiment, folder: Path, seconds: float) -> dict[str, Any]:
    """Time whole shards, written and flushed, against a bare teacher loop over the same views."""
    recipe, teacher, images = experiment.recipe, experiment.teacher, experiment.train_set
    size, outputs = recipe.teacher.batch_size, experiment.stored_outputs

    def bare(start: int, stop: int) -> None:
        for index in torch.arange(start, stop).split(size):
            pixels = experiment.train_images.render_views(experiment.cached_views, 0, index).pixels
            teacher.logits(pixels).cpu()

    bare(0, min(size, images.num_samples))
    began = perf_counter()
    bare(0, min(size, images.num_samples))
    per_image = (perf_counter() - began) / min(size, images.num_samples)
    shard_samples = _shard_samples(recipe, images, seconds, per_image)
    required = replace(experiment.required_manifest, shard_samples=shard_samples)
    required = required.with_num_views(1)
    batches = experiment.oom_safe(configure_teacher(teacher, required, outputs))
    path = folder / "build.zarr"
    manifest: Manifest = create_or_resume(path, required, images.labels, once=outputs.once)
    builder = ShardBuilder(
        experiment.train_images, experiment.cached_views, batches, ShardWriter(path, manifest)
    )

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
    """Return a number of shards that takes about a second, so that writing overlaps the teacher."""
    wanted = round(1 / (per_image * manifest.shard_samples))
    return max(1, min(wanted, 4, manifest.num_samples // manifest.shard_samples))


def _shard_samples(
    recipe: config.Recipe, images: ImageDataset, seconds: float, per_image: float
) -> int:
    """Return the recipe's samples per shard, or fewer if not ten pairs of it fit in the time."""
    largest = min(recipe.cache.shard_samples, images.num_samples)
    affordable = int(seconds / (20 * per_image))
    return max(min(largest, 256), min(largest, affordable - affordable % 256))


def _summary(experiment: Experiment, steps: _Timings, build: Mapping[str, Any]) -> dict[str, Any]:
    settings, num_samples = student_settings(experiment.recipe), experiment.train_set.num_samples
    images = steps.steps * num_samples / -(-num_samples // settings.global_batch_size)
    summary: dict[str, Any] = {"recipe": experiment.recipe.name}
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
    summary["device"] = _device_name(experiment.device)
    summary["num_threads"] = torch.get_num_threads()
    return summary


def _put(summary: dict[str, Any], name: str, ratios: list[float]) -> None:
    summary[name] = round(median(ratios), 4)
    summary[f"{name}_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
