"""Which runs are seeds of one another, what they differ in, what they gain and what they cost."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from kdscale.cache.manifest import Manifest
from kdscale.config import differences
from kdscale.report.evaluation import Evaluation
from kdscale.report.runs import KINDS, PHRASES, TITLES, Kind, Run
from kdscale.wording import NOTHING

_WHAT_MATTERS: dict[Kind, tuple[str, ...]] = {
    "teacher": ("data", "teacher"),
    "alone": ("data", "views", "student"),
    "online": ("data", "views", "student", "teacher", "loss"),
    "cache": ("data", "views", "student", "teacher", "loss", "cache", "ensemble"),
}
"""Sections of a recipe that a kind of model depends on: runs that agree there are seeds of one
another, and a student alone is compared with all that share its images, views and training."""
_MOST_FIELDS = 3


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

    @property
    def evaluations(self) -> list[Evaluation]:
        """Of the runs that `kdscale evaluate` has seen."""
        return [run.evaluation for run in self.finished if run.evaluation is not None]

    @property
    def num_seeds(self) -> int:
        """Different ones, of the finished runs: the same model may lie in several folders."""
        return len({run.seed for run in self.finished})

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
    def confusion(self) -> list[list[int]]:
        """All seeds' matrices added up; empty where none was evaluated."""
        matrices = [evaluation.confusion for evaluation in self.evaluations]
        return [
            [sum(cells) for cells in zip(*rows, strict=True)]
            for rows in zip(*matrices, strict=True)
        ]

    @cached_property
    def recall(self) -> list[float]:
        """Per cent of each class's samples, all seeds together; 0 for a class without any."""
        return [100 * row[n] / (sum(row) or 1) for n, row in enumerate(self.confusion)]

    @cached_property
    def precision(self) -> list[float]:
        """Per cent of each class's predictions, all seeds together; 0 for one never predicted."""
        predicted = [sum(column) for column in zip(*self.confusion, strict=True)]
        hits = [row[label] for label, row in enumerate(self.confusion)]
        return [100 * hit / (count or 1) for hit, count in zip(hits, predicted, strict=True)]


EARLY = "ended early"
"""State of a trial that a sweep has given up."""
_OVER = (EARLY, "failed")


@dataclass(frozen=True, slots=True)
class Trial:
    """A run of a sweep."""

    run: Run
    parameters: Mapping[str, Any]
    """Those fields of the recipe that the sweep varies."""
    score: float | None
    """What trials are compared by: top-1 on the validation split, 0..1; None where unknown."""
    told_state: str | None = None
    """As the sweep's own table has it."""

    @property
    def state(self) -> str:
        """`finished`, or how it ended, or how far it came."""
        if self.run.finished:
            return "finished"
        state = self.told_state or "not finished"
        return f"{state}, {self.run.epochs_done:.3g} epochs"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Trials over one cache."""

    folder: Path
    name: str
    trials: Sequence[Trial]
    seconds: float | None = None
    """From the first trial's begin to the last one's end, all workers together."""
    num_planned: int = 0
    """Trials that there are to be, those too that have no folder yet; 0 where it is not told."""
    among: str = ""
    """What tells it from other sweeps of its study; empty where there are none."""

    @property
    def num_trials(self) -> int:
        """All there are, begun or not."""
        return max(self.num_planned, len(self.trials))

    @property
    def num_left(self) -> int:
        """Trials that the sweep's command would go on with, or begin."""
        over = [t for t in self.trials if t.run.finished or t.told_state in _OVER]
        return self.num_trials - len(over)

    @property
    def ranked(self) -> list[Trial]:
        """Finished trials first, best first."""
        return sorted(self.trials, key=lambda t: (not t.run.finished, -(t.score or 0.0)))

    @property
    def finished(self) -> list[Trial]:
        """Trials that have a result."""
        return [trial for trial in self.trials if trial.run.finished]

    @property
    def best(self) -> Trial | None:
        """The trial that did best on the validation split; the test split chooses none."""
        first = self.ranked[0]
        return first if first.run.finished and first.score is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What was tested on the same images."""

    folders: Sequence[Path]
    entries: Sequence[Entry]
    sweeps: Sequence[Sweep] = ()
    cache_place: Path | None = None
    manifest: Manifest | None = None
    bench: Mapping[str, Any] | None = None
    recipes: Mapping[str, str] = field(default_factory=dict)
    """TOML texts by the folder that they stand in."""

    @property
    def runs(self) -> list[Run]:
        """All, trials too, each once."""
        runs = [run for entry in self.entries for run in entry.runs]
        runs += [trial.run for sweep in self.sweeps for trial in sweep.trials]
        return list({run.folder / run.evaluation_file: run for run in runs}.values())

    @property
    def name(self) -> str:
        """The recipes' names."""
        names = dict.fromkeys(str(run.recipe.get("name", run.folder.name)) for run in self.runs)
        return ", ".join(names)

    def of_kind(self, kind: Kind) -> list[Entry]:
        """Entries of a kind, those with results first."""
        return sorted((e for e in self.entries if e.kind == kind), key=lambda e: not e.finished)

    @property
    def main(self) -> Entry | None:
        """The entry that is shown where there is room for one: from a cache if there is one."""
        for kind in ("cache", "online", "alone", "teacher"):
            found = [entry for entry in self.of_kind(kind) if entry.finished]
            if found:
                return found[0]
        return None

    @property
    def examined(self) -> Entry | None:
        """Like `main`, of the entries that were evaluated class by class."""
        for kind in ("cache", "online", "alone", "teacher"):
            found = [entry for entry in self.of_kind(kind) if entry.evaluations]
            if found:
                return found[0]
        return None

    def peer(self, entry: Entry, kind: Kind) -> Entry | None:
        """The entry of another kind that shares with `entry` all that matters to both."""
        matters = [name for name in _WHAT_MATTERS[kind] if name in _WHAT_MATTERS[entry.kind]]
        for other in self.of_kind(kind):
            if _part(other.runs[0].recipe, matters) == _part(entry.runs[0].recipe, matters):
                return other if other.finished else None
        return None


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    """Runs grouped into entries, by kind, then as they came."""
    groups: dict[tuple[Kind, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.kind, _part(run.recipe, _WHAT_MATTERS[run.kind])), []).append(run)
    entries = []
    for kind in KINDS:
        of_kind = [seeds for (k, _), seeds in groups.items() if k == kind]
        for seeds, setting in zip(of_kind, _settings(kind, of_kind), strict=True):
            entries.append(Entry(kind, sorted(seeds, key=lambda run: run.seed), setting))
    return entries


def parameters_of(runs: Sequence[Run], named: Iterable[str] = ()) -> dict[str, list[Any]]:
    """What runs were tried with: each run's values by dotted field.

    Args:
        runs: of one sweep.
        named: the fields that it varies; those in which recipes differ, and the seed, when empty.
    """
    names = list(named)
    if not names:
        seeds = ["seed"] if len({run.seed for run in runs}) > 1 else []
        names = _varied([_without_name(run.recipe) for run in runs]) + seeds
    return {name: [_value(run, name) for run in runs] for name in names}


def _value(run: Run, name: str) -> Any:
    return run.seed if name == "seed" else _field(run.recipe, name)


def _part(recipe: Mapping[str, Any], sections: Sequence[str]) -> str:
    return json.dumps({name: recipe.get(name) for name in sections}, sort_keys=True, default=str)


def _without_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in ("name", "description")}


def _varied(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted fields in which any recipe differs from the first."""
    names = {name for one in recipes[1:] for name, *_ in differences(recipes[0], one)}
    return sorted(names)


def _field(recipe: Mapping[str, Any], name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _settings(kind: Kind, groups: Sequence[Sequence[Run]]) -> list[str]:
    """What tells the groups of a kind apart: the recipes' names, or the fields that differ."""
    if len(groups) < 2:
        return [""] * len(groups)
    names = [str(seeds[0].recipe.get("name", "")) for seeds in groups]
    if len(set(names)) == len(names):
        return names
    recipes = [{k: seeds[0].recipe.get(k) for k in _WHAT_MATTERS[kind]} for seeds in groups]
    fields = _varied(recipes)
    return [
        ", ".join(f"{name} {value_text(_field(one, name))}" for name in fields[:_MOST_FIELDS])
        + (f" and {len(fields) - _MOST_FIELDS} more fields" if len(fields) > _MOST_FIELDS else "")
        for one in recipes
    ]


def value_text(value: Any) -> str:
    """A recipe's value as a person writes it."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def gains(entry: Entry, other: Entry) -> list[float]:
    """Points of top-1 by which `entry` is ahead, seed by seed where both have a seed."""
    ours, theirs = entry.by_seed("top1_accuracy"), other.by_seed("top1_accuracy")
    return [100 * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]
