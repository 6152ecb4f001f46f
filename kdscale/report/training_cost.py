"""Training time of students from a cache, against students with an online teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from kdscale.report.entry import Entry
from kdscale.report.fields import is_number, tables_of
from kdscale.report.model import Comparison, SweepResults
from kdscale.report.run_results import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """Seconds of students trained from one cache, and of the alternatives."""

    build_seconds: float
    """Build of the cache, once for all students."""
    cached_seconds: float
    """Mean training time of a student from the cache."""
    online_seconds: float | None
    """Mean training time with an online teacher, measured or estimated; None where unknown."""
    alone_seconds: float | None
    """Mean training time of a student without a teacher; None where unknown."""
    measured: bool
    """Whether online students were trained; else their time is estimated from `ratio`."""
    ratio: float | None = None
    """Time of an online step over that of a cached step, by `kdscale bench`; None if unused."""

    @property
    def break_even(self) -> int | None:
        """Number of students from which on the cache costs no more; None where it never does."""
        return break_even(self.build_seconds, self.cached_seconds, self.online_seconds)


def break_even(build: float, cached: float, online: float | None) -> int | None:
    """Return the smallest n >= 1 with `build + n * cached <= n * online`; None without one.

    Args:
        build: seconds of the build, once.
        cached: seconds of a student from the cache.
        online: seconds of a student with an online teacher; None where unknown.
    """
    if online is None:
        return None
    saved = round(online - cached, 6)  # what is less is the noise of floating point
    if saved <= 0:
        return 1 if saved == build == 0 else None
    number = max(1, math.ceil(build / saved))
    # Division rounds: the number itself decides.
    while number > 1 and build <= (number - 1) * saved:
        number -= 1
    while build > number * saved:
        number += 1
    return number


def cost_of(study: Comparison, entry: Entry) -> TrainingCost | None:
    """Return the training cost of an entry of cached students; None where it is not known."""
    build, cached = entry.mean("build_seconds"), entry.mean("train_seconds")
    if build is None or cached is None:
        return None
    online, alone = study.peer(entry, "online"), study.peer(entry, "alone")
    measured = online.mean("train_seconds") if online else None
    ratio = None if measured or not study.bench else float(study.bench["online_over_cached_time"])
    return TrainingCost(
        build_seconds=build,
        cached_seconds=cached,
        online_seconds=measured or (cached * ratio if ratio else None),
        alone_seconds=alone.mean("train_seconds") if alone else None,
        measured=measured is not None,
        ratio=ratio,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """Seconds of all trials of a sweep, those that ended early too."""

    train_seconds: float
    """Training time of all trials."""
    build_seconds: float
    """Build of the cache, once."""
    teacher_seconds_per_image: float | None
    """Time that an online teacher adds to a step, for each image; None where not measured."""
    images: int
    """Images of all steps of all trials."""

    @property
    def online_seconds(self) -> float | None:
        """Estimated training time of the same trials with an online teacher."""
        if self.teacher_seconds_per_image is None:
            return None
        return self.train_seconds + self.images * self.teacher_seconds_per_image


def cost_of_sweep(study: Comparison, sweep: SweepResults) -> SweepCost:
    """Return the cost of a sweep's trials so far."""
    runs = [trial.run for trial in sweep.trials]
    return SweepCost(
        train_seconds=sum(float(run.metrics.get("train_seconds", 0)) for run in runs),
        build_seconds=max((float(run.metrics.get("build_seconds", 0)) for run in runs), default=0),
        teacher_seconds_per_image=_teacher_seconds(study),
        images=sum(_images(run) for run in runs),
    )


def _teacher_seconds(study: Comparison) -> float | None:
    """Return the teacher's time by image: of trained students of both kinds, else of the bench."""
    for entry in study.of_kind("cache"):
        online = study.peer(entry, "online")
        if online is None:
            continue
        theirs, ours = _seconds_per_image(online.finished), _seconds_per_image(entry.finished)
        if theirs is not None and ours is not None:
            return max(theirs - ours, 0.0)
    rates = study.bench or {}
    online_rate, cached_rate = (
        rates.get(f"{kind}_images_per_second") for kind in ("online", "cached")
    )
    if online_rate is None or cached_rate is None:
        return None
    return max(1 / float(online_rate) - 1 / float(cached_rate), 0.0)


def _seconds_per_image(runs: Sequence[Run]) -> float | None:
    """Return the mean over runs whose training time is known; None without any."""
    each = [
        run.metrics["train_seconds"] / max(_images(run), 1)
        for run in runs
        if "train_seconds" in run.metrics
    ]
    return mean(each) if each else None


def _images(run: Run) -> int:
    """Return the number of images of all training steps, repeats counted."""
    batch = tables_of(run.recipe, "student", "train").get("global_batch_size", 0)
    return int(run.metrics.get("steps", 0)) * (int(batch) if is_number(batch) else 0)
