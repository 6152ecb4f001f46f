"""Which runs are seeds of one another, what they differ in, and what was tested on one split."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.cache.manifest import Manifest
from kdscale.config import differences
from kdscale.formatting import NOTHING, number_of
from kdscale.report.entry import Entry
from kdscale.report.fields import name_text, tables_of
from kdscale.report.runs import KINDS, Kind, Run

_WHAT_MATTERS: dict[Kind, tuple[str, ...]] = {
    "teacher": ("data", "teacher"),
    "alone": ("data", "views", "student"),
    "online": ("data", "views", "student", "teacher", "loss"),
    "cache": ("data", "views", "student", "teacher", "loss", "cache", "ensemble"),
}
"""Sections of a recipe that a kind of model depends on: runs that agree there, and in the images
and the teacher's weights that they learned from, are seeds of one another, and a student alone is
compared with all that share its images, views and training."""
_MOST_FIELDS = 3


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
        return f"{state}, {number_of(self.run.epochs_done, 'epoch')}"


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
    problems: Sequence[str] = field(default=())
    """Files that could not be read, and runs left out for it, in words."""

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
        ours = entry.runs[0]
        for other in self.of_kind(kind):
            theirs = other.runs[0]
            if (
                _part(theirs.recipe, matters) == _part(ours.recipe, matters)
                and _may_be_equal(theirs.dataset, ours.dataset)
                and _may_be_equal(theirs.taught_by, ours.taught_by)
            ):
                return other if other.finished else None
        return None


def _may_be_equal(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are equal, as far as both are known."""
    return one is None or other is None or one == other


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    """Runs grouped into entries, by kind, then as they came."""
    groups: dict[tuple[Kind, str, str | None, str | None], list[Run]] = {}
    for run in runs:
        settings = _part(run.recipe, _WHAT_MATTERS[run.kind]) + _teachers_views(run)
        key = run.kind, settings, run.dataset, run.taught_by
        groups.setdefault(key, []).append(run)
    entries = []
    for kind in KINDS:
        of_kind = [seeds for (k, *_), seeds in groups.items() if k == kind]
        for seeds, setting in zip(of_kind, _settings(kind, of_kind), strict=True):
            entries.append(Entry(kind, sorted(seeds, key=lambda run: run.seed), setting))
    return entries


def _teachers_views(run: Run) -> str:
    """What a teacher without an augmentation of its own is shown: new ones of these each epoch."""
    train = tables_of(run.recipe, "teacher", "train")
    if run.kind != "teacher" or not train or train.get("operations") is not None:
        return ""
    views = tables_of(run.recipe, "views")
    return _part(views, [name for name in sorted(views) if name not in ("count", "mode")])


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
    tables = [_described(seeds[0]) for seeds in groups]
    fields = _varied(tables)
    more = len(fields) - _MOST_FIELDS
    rest = f" and {number_of(more, 'more field')}" if more > 0 else ""
    words = [
        ", ".join(f"{name} {value_text(_field(one, name))}" for name in fields[:_MOST_FIELDS])
        for one in tables
    ]
    return _numbered([f"{one}{rest}" for one in words])


def _described(run: Run) -> dict[str, Any]:
    """All that decides whether runs are seeds of one another."""
    matters = (*_WHAT_MATTERS[run.kind], *(["views"] if _teachers_views(run) else []))
    return {
        "training images": _start(run.dataset),
        "teacher weights": _start(run.taught_by),
        **{name: run.recipe.get(name) for name in matters},
    }


def _start(fingerprint: str | None) -> str | None:
    return None if fingerprint is None else fingerprint[:12]


def _numbered(words: Sequence[str]) -> list[str]:
    """The same, with numbers where some are alike: a name is never that of two settings."""
    if len(set(words)) == len(words):
        return list(words)
    return [f"{one}, number {number}" for number, one in enumerate(words, 1)]


def value_text(value: Any) -> str:
    """A recipe's value as a person writes it."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return name_text(words)
