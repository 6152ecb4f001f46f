"""Seconds of training steps of each kind, and when a build has paid for itself."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from kdscale.cache.manifest import Manifest
from kdscale.commands.timing import (
    SMALLEST_BATCH,
    StagedTargets,
    TimedLoop,
    TimedSetup,
    affordable_batch,
    student_settings,
    timed_objective,
)
from kdscale.data.rng import permutation
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ModelError
from kdscale.experiment.datasets import sample_indices
from kdscale.experiment.experiment import Experiment
from kdscale.losses.objective import SUPERVISED
from kdscale.models.registry import has_convolutions
from kdscale.report.training_cost import break_even
from kdscale.target_sources.base import NoTargets, TargetSource
from kdscale.targets import Codec
from kdscale.training.trainer import Trainer

_ROUND_SECONDS = 0.05  # wanted at least for each kind of step in a round
_ROUNDS = 3  # at least

KINDS = ("supervised", "cached", "online")
"""Of students, cheapest first."""


def step_seconds(
    setup: TimedSetup, required: Manifest, codec: Codec, seconds: float
) -> dict[str, float]:
    """Return seconds a sample of training steps, by kind; medians of interleaved rounds.

    "channels_last" is the kind "cached" in that memory format, where the recipe says another one
    and the student has convolutions that take it.
    """
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
    variants = _variants(setup, required, codec)
    with suppress(ModelError):  # models that call `view` do not take it
        variants |= _channels_last(setup, required, codec)
    measured = _measure(variants, seconds)
    return {kind: step / samples for kind, step in measured.items()}


def _variants(setup: TimedSetup, required: Manifest, codec: Codec) -> dict[str, TimedLoop]:
    experiment, schedule = setup.experiment, ViewSchedule(required.num_views, 0)
    staged = StagedTargets(
        experiment.train_set, codec, schedule, experiment.device, outputs=experiment.stored_outputs
    )
    sources: dict[str, TargetSource] = {"cached": staged}
    if experiment.train_set.labelled and not experiment.recipe.student.headless:
        sources["supervised"] = NoTargets(schedule)
    if experiment.recipe.views.mode == "replayed":
        sources["online"] = setup.live_teacher(schedule)
    soft = timed_objective(experiment.recipe)
    found = {}
    for kind, source in sources.items():
        trainer = setup.trainer(source, SUPERVISED if kind == "supervised" else soft)
        prepare = partial(staged.stage, trainer) if kind == "cached" else None
        found[kind] = TimedLoop(partial(_continue, trainer), prepare)
    return found


def _channels_last(setup: TimedSetup, required: Manifest, codec: Codec) -> dict[str, TimedLoop]:
    """Return the steps of the kind "cached" in channels last; none where that is no question.

    Raises:
        ModelError: the student does not take it.
    """
    recipe, schedule = setup.experiment.recipe, ViewSchedule(required.num_views, 0)
    undecided = setup.settings.memory_format == "contiguous" and not setup.settings.compile
    if not undecided or not has_convolutions(setup.experiment.student(0).model):
        return {}
    staged = StagedTargets(
        setup.experiment.train_set, codec, schedule, setup.experiment.device,
        outputs=setup.experiment.stored_outputs,
    )  # fmt: skip
    trainer = setup.trainer(staged, timed_objective(recipe), memory_format="channels_last")
    prepare = partial(staged.stage, trainer)
    return {"channels_last": TimedLoop(partial(_continue, trainer), prepare)}


def channels_last_ratio(steps: Mapping[str, float]) -> float | None:
    """Return the time of a step in channels last over one as the recipe has it; None: unknown."""
    return round(steps["channels_last"] / steps["cached"], 4) if "channels_last" in steps else None


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


def payback(experiment: Experiment, build: float, steps: Mapping[str, float]) -> dict[str, Any]:
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
