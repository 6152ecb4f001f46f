"""What students from a cache have cost, against their teacher at every step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from kdscale.report.entry import Entry
from kdscale.report.fields import is_whole, tables_of
from kdscale.report.model import Study, Sweep
from kdscale.report.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of students taught from one cache, against their teacher at every step."""

    build_seconds: float
    """Once, for all students."""
    cached_seconds: float
    """Mean of a student's training."""
    online_seconds: float | None
    alone_seconds: float | None
    measured: bool
    """Whether online students were trained; else their time follows from a measured ratio."""
    ratio: float | None = None
    """Online over cached step, where it is `kdscale bench` that measured it."""

    @property
    def break_even(self) -> int | None:
        """The number of students from which on the cache has cost no more; None for never."""
        return break_even(self.build_seconds, self.cached_seconds, self.online_seconds)


def break_even(build: float, cached: float, online: float | None) -> int | None:
    """The smallest n >= 1 with `build + n * cached <= n * online`; None where there is none.

    Args:
        build: seconds, once.
        cached: seconds of a student taught from the cache.
        online: seconds of one with the teacher at every step; None where that is not known.
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


def cost_of(study: Study, entry: Entry) -> Cost | None:
    """What an entry of cached students has cost; None where its results do not tell."""
    build, cached = entry.mean("build_seconds"), entry.mean("train_seconds")
    if build is None or cached is None:
        return None
    online, alone = study.peer(entry, "online"), study.peer(entry, "alone")
    measured = online.mean("train_seconds") if online else None
    ratio = None if measured or not study.bench else float(study.bench["online_over_cached_time"])
    return Cost(
        build_seconds=build,
        cached_seconds=cached,
        online_seconds=measured or (cached * ratio if ratio else None),
        alone_seconds=alone.mean("train_seconds") if alone else None,
        measured=measured is not None,
        ratio=ratio,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """Seconds of a sweep's trials, those that ended early too."""

    train_seconds: float
    build_seconds: float
    """Of the cache, once."""
    teacher_seconds_per_image: float | None
    """What the teacher adds to a step, for each image shown; None where it was not measured."""
    images: int
    """Shown to all trials."""

    @property
    def online_seconds(self) -> float | None:
        """What the same trials would have taken with the teacher at every step, reckoned."""
        if self.teacher_seconds_per_image is None:
            return None
        return self.train_seconds + self.images * self.teacher_seconds_per_image


def cost_of_sweep(study: Study, sweep: Sweep) -> SweepCost:
    """What a sweep's trials have cost so far."""
    runs = [trial.run for trial in sweep.trials]
    return SweepCost(
        train_seconds=sum(float(run.metrics.get("train_seconds", 0)) for run in runs),
        build_seconds=max((float(run.metrics.get("build_seconds", 0)) for run in runs), default=0),
        teacher_seconds_per_image=_teacher_seconds(study),
        images=sum(_images(run) for run in runs),
    )


def _teacher_seconds(study: Study) -> float | None:
    """From students of both kinds that were trained, else from what `kdscale bench` measured."""
    for entry in study.of_kind("cache"):
        online = study.peer(entry, "online")
        if online is None:
            continue
        theirs, ours = _seconds_per_image(online.finished), _seconds_per_image(entry.finished)
        if theirs is not None and ours is not None:
            return max(theirs - ours, 0)
    rates = study.bench or {}
    online, cached = (rates.get(f"{kind}_images_per_second") for kind in ("online", "cached"))
    return None if online is None or cached is None else max(1 / online - 1 / cached, 0.0)


def _seconds_per_image(runs: Sequence[Run]) -> float | None:
    """Mean over the runs that tell how long they trained; None where none does."""
    each = [
        run.metrics["train_seconds"] / max(_images(run), 1)
        for run in runs
        if "train_seconds" in run.metrics
    ]
    return mean(each) if each else None


def _images(run: Run) -> int:
    """Images shown while a student was trained, each as often as it was."""
    batch = tables_of(run.recipe, "student", "train").get("global_batch_size", 0)
    return int(run.metrics.get("steps", 0)) * (batch if is_whole(batch) else 0)
