"""An entry of a comparison: the results of runs that differ only in the seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from kdscale.report.evaluation_file import ClassCounts, Mistake, ModelEvaluation, mistakes_in
from kdscale.report.run_results import PHRASES, TITLES, Kind, Run


@dataclass(frozen=True)  # without slots, for what is added up once
class Entry:
    """Runs that differ only in the seed: one row of the comparison."""

    kind: Kind
    """Role of the models and source of their targets."""
    runs: Sequence[Run]
    """The runs, by seed."""
    setting: str = ""
    """Settings in which the entry differs from others of its kind; empty if it has none."""

    @property
    def label(self) -> str:
        """`student, cached teacher`, with the setting where there are several of a kind."""
        return f"{TITLES[self.kind]} ({self.setting})" if self.setting else TITLES[self.kind]

    @property
    def phrase(self) -> str:
        """Label of the entry within a sentence."""
        return f"{PHRASES[self.kind]} ({self.setting})" if self.setting else PHRASES[self.kind]

    @property
    def is_trial(self) -> bool:
        """Whether the entry is a trial of a sweep."""
        return self.runs[0].trial is not None

    @property
    def finished(self) -> list[Run]:
        """Runs that have a result."""
        return [run for run in self.runs if run.finished]

    @cached_property
    def evaluations(self) -> list[ModelEvaluation]:
        """One evaluation for each seed of the finished runs, all of the same classes."""
        found = {run.seed: run.evaluation for run in reversed(self.finished) if run.evaluation}
        in_order = [found[seed] for seed in sorted(found)]
        return [one for one in in_order if one.class_names == in_order[0].class_names]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the finished runs, ascending, each once."""
        return sorted({run.seed for run in self.finished})

    @property
    def num_seeds(self) -> int:
        """Number of different seeds of the finished runs."""
        return len(self.seeds)

    def values(self, metric: str) -> list[float]:
        """Return a metric's value for each seed of the finished runs that have it."""
        return list(self.by_seed(metric).values())

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return a metric's value by seed; the mean of several runs with one seed."""
        found: dict[int, list[float]] = {}
        for run in self.finished:
            value = run.metrics.get(metric)
            if isinstance(value, int | float):
                found.setdefault(run.seed, []).append(float(value))
        return {seed: mean(values) for seed, values in found.items()}

    def mean(self, metric: str) -> float | None:
        """Return a metric's mean over seeds; None where no run has it."""
        values = self.values(metric)
        return mean(values) if values else None

    def latencies(self, batch: int, statistic: str) -> list[float]:
        """Return a statistic of the latency at a batch size, seconds, for each seed."""
        return [
            getattr(e.latency[batch], statistic) for e in self.evaluations if batch in e.latency
        ]

    @cached_property
    def classes(self) -> ClassCounts:
        """Samples by class, summed over seeds; empty without an evaluation."""
        each = [evaluation.classes for evaluation in self.evaluations]
        return ClassCounts(
            samples=_sums([one.samples for one in each]),
            correct=_sums([one.correct for one in each]),
            predicted=_sums([one.predicted for one in each]),
        )

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Confusion matrix summed over seeds; empty where unknown or with too many classes."""
        matrices = [one.confusion for one in self.evaluations if one.confusion is not None]
        if len(matrices) < len(self.evaluations):
            return []
        return [_sums(rows) for rows in zip(*matrices, strict=True)]

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """Most frequent wrong predictions, all seeds together.

        Without confusion matrices, of those that are among the most frequent of a seed.
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
        """Recall of each class, per cent, all seeds together; 0 for a class without samples."""
        return _percentages(self.classes.correct, self.classes.samples)

    @cached_property
    def precision(self) -> list[float]:
        """Precision of each class, per cent, all seeds together; 0 for a class never predicted."""
        return _percentages(self.classes.correct, self.classes.predicted)


def _sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _percentages(parts: Sequence[int], wholes: Sequence[int]) -> list[float]:
    return [100 * part / (whole or 1) for part, whole in zip(parts, wholes, strict=True)]


def gains(entry: Entry, other: Entry) -> list[float]:
    """Return the difference in top-1, percentage points, for each seed that both entries have."""
    ours, theirs = entry.by_seed("top1_accuracy"), other.by_seed("top1_accuracy")
    return [100 * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]
