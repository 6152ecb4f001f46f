"""One line of a comparison: the figures of runs that differ in nothing but the seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from kdscale.report.evaluation import ClassCounts, Evaluation, Mistake, mistakes_in
from kdscale.report.runs import PHRASES, TITLES, Kind, Run


@dataclass(frozen=True)  # without slots, for what is added up once
class Entry:
    """One line of the comparison: runs that differ in nothing but the seed."""

    kind: Kind
    runs: Sequence[Run]
    setting: str = ""
    """What tells it from others of its kind; empty where there are none."""

    @property
    def label(self) -> str:
        """`student, cached teacher`, and the setting where there are several."""
        return f"{TITLES[self.kind]} ({self.setting})" if self.setting else TITLES[self.kind]

    @property
    def phrase(self) -> str:
        """Its label within a sentence."""
        return f"{PHRASES[self.kind]} ({self.setting})" if self.setting else PHRASES[self.kind]

    @property
    def is_trial(self) -> bool:
        """Whether a sweep made it, which says by itself what it has found."""
        return self.runs[0].trial is not None

    @property
    def finished(self) -> list[Run]:
        """Runs that have a result."""
        return [run for run in self.runs if run.finished]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Of the finished runs, one a seed; none whose classes are not those of the first."""
        found = {run.seed: run.evaluation for run in reversed(self.finished) if run.evaluation}
        in_order = [found[seed] for seed in sorted(found)]
        return [one for one in in_order if one.class_names == in_order[0].class_names]

    @property
    def seeds(self) -> list[int]:
        """Those of the finished runs, ascending; the same model may lie in several folders."""
        return sorted({run.seed for run in self.finished})

    @property
    def num_seeds(self) -> int:
        """Length of `seeds`."""
        return len(self.seeds)

    def values(self, metric: str) -> list[float]:
        """A metric's values by seed, of the finished runs that know it."""
        return list(self.by_seed(metric).values())

    def by_seed(self, metric: str) -> dict[int, float]:
        """The same with its seeds; of several runs with one seed, their mean."""
        found: dict[int, list[float]] = {}
        for run in self.finished:
            value = run.metrics.get(metric)
            if isinstance(value, int | float):
                found.setdefault(run.seed, []).append(float(value))
        return {seed: mean(values) for seed, values in found.items()}

    def mean(self, metric: str) -> float | None:
        """The mean over seeds."""
        values = self.values(metric)
        return mean(values) if values else None

    def latencies(self, batch: int, statistic: str) -> list[float]:
        """Seconds of a forward pass, by seed."""
        return [
            getattr(e.latency[batch], statistic) for e in self.evaluations if batch in e.latency
        ]

    @cached_property
    def classes(self) -> ClassCounts:
        """All seeds' samples by class added up; empty where none was evaluated."""
        each = [evaluation.classes for evaluation in self.evaluations]
        return ClassCounts(
            samples=_sums([one.samples for one in each]),
            correct=_sums([one.correct for one in each]),
            predicted=_sums([one.predicted for one in each]),
        )

    @cached_property
    def confusion(self) -> list[list[int]]:
        """All seeds' matrices added up; empty where none was evaluated, or classes are too many."""
        matrices = [one.confusion for one in self.evaluations if one.confusion is not None]
        if len(matrices) < len(self.evaluations):
            return []
        return [_sums(rows) for rows in zip(*matrices, strict=True)]

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """The most frequent wrong predictions, all seeds together.

        Without matrices, of those that are among the most frequent of a seed.
        """
        if self.confusion:
            return mistakes_in(self.confusion)
        sums: Counter[tuple[int, int]] = Counter()
        for evaluation in self.evaluations:
            for label, prediction, count in evaluation.most_confused:
                sums[label, prediction] += count
        found = [(*pair, count) for pair, count in sums.items()]
        return sorted(found, key=lambda one: (-one[2], one[:2]))

    @cached_property
    def recall(self) -> list[float]:
        """Per cent of each class's samples, all seeds together; 0 for a class without any."""
        return _per_cent(self.classes.correct, self.classes.samples)

    @cached_property
    def precision(self) -> list[float]:
        """Per cent of each class's predictions, all seeds together; 0 for one never predicted."""
        return _per_cent(self.classes.correct, self.classes.predicted)


def _sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _per_cent(parts: Sequence[int], wholes: Sequence[int]) -> list[float]:
    return [100 * part / (whole or 1) for part, whole in zip(parts, wholes, strict=True)]


def gains(entry: Entry, other: Entry) -> list[float]:
    """Points of top-1 by which `entry` is ahead, seed by seed where both have a seed."""
    ours, theirs = entry.by_seed("top1_accuracy"), other.by_seed("top1_accuracy")
    return [100 * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]
