"""Grouping of runs: seeds of one setting, trials of a sweep, results on one test split."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.cache.manifest import Manifest
from kdscale.config import differences
from kdscale.formatting import NOTHING, number_of
from kdscale.report.entry import Entry
from kdscale.report.fields import name_text, tables_of
from kdscale.report.run_results import KINDS, Kind, Run

_RELEVANT_SECTIONS: dict[Kind, tuple[str, ...]] = {
    "teacher": ("data", "teacher"),
    "alone": ("data", "views", "student"),
    "online": ("data", "views", "student", "teacher", "loss"),
    "cache": ("data", "views", "student", "teacher", "loss", "cache", "ensemble"),
}
"""Sections of a recipe that the results of a kind of model depend on. Runs that agree in them, in
the training images and in the teacher's weights are seeds of one setting."""
_MOST_FIELDS = 3


EARLY = "ended early"
"""State of a trial that the sweep pruned."""
_OVER = (EARLY, "failed")


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """One trial of a sweep."""

    run: Run
    """The trained model."""
    parameters: Mapping[str, Any]
    """Values of the recipe's fields that the sweep varies."""
    score: float | None
    """Top-1 on the validation split, 0..1, which ranks trials; None where unknown."""
    recorded_state: str | None = None
    """State in the sweep's own `trials.json`; None where it has none."""

    @property
    def state(self) -> str:
        """`finished`, or how the trial ended, with the epochs so far."""
        if self.run.finished:
            return "finished"
        state = self.recorded_state or "not finished"
        return f"{state}, {number_of(self.run.epochs_done, 'epoch')}"


@dataclass(frozen=True, slots=True)
class SweepResults:
    """The trials of a sweep over one cache."""

    folder: Path
    """Folder of the sweep."""
    name: str
    """Name of the recipe."""
    trials: Sequence[SweepTrial]
    """Trials that have a folder."""
    seconds: float | None = None
    """Wall time from the first trial's start to the last one's end; None where unknown."""
    num_planned: int = 0
    """Number of trials that the sweep was started with; 0 where unknown."""
    among: str = ""
    """Name of the sweep among several of the report; empty if it is the only one."""

    @property
    def num_trials(self) -> int:
        """Number of trials, started or not."""
        return max(self.num_planned, len(self.trials))

    @property
    def num_left(self) -> int:
        """Number of trials that the sweep's command would resume or start."""
        over = [t for t in self.trials if t.run.finished or t.recorded_state in _OVER]
        return self.num_trials - len(over)

    @property
    def ranked(self) -> list[SweepTrial]:
        """Trials, finished ones first, best first."""
        return sorted(self.trials, key=lambda t: (not t.run.finished, -(t.score or 0.0)))

    @property
    def finished(self) -> list[SweepTrial]:
        """Trials that have a result."""
        return [trial for trial in self.trials if trial.run.finished]

    @property
    def best(self) -> SweepTrial | None:
        """Finished trial with the best validation accuracy; None without a validation split."""
        first = self.ranked[0]
        return first if first.run.finished and first.score is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All results on one test split."""

    folders: Sequence[Path]
    """Folders that the user named."""
    entries: Sequence[Entry]
    """Models to compare; of a sweep, the best trial."""
    sweeps: Sequence[SweepResults] = ()
    """Sweeps with all their trials."""
    cache_place: Path | None = None
    """Folder of the cache; None where it was not found."""
    manifest: Manifest | None = None
    """Manifest of the cache; None where it was not found."""
    bench: Mapping[str, Any] | None = None
    """Content of `bench.json`; None where there is none."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """Recipes as TOML, by folder."""
    problems: Sequence[str] = field(default=())
    """Messages about files that cannot be read and runs that are left out."""

    @property
    def runs(self) -> list[Run]:
        """All runs and trials, each once."""
        runs = [run for entry in self.entries for run in entry.runs]
        runs += [trial.run for sweep in self.sweeps for trial in sweep.trials]
        return list({run.folder / run.evaluation_file: run for run in runs}.values())

    @property
    def name(self) -> str:
        """Names of the recipes."""
        names = dict.fromkeys(str(run.recipe.get("name", run.folder.name)) for run in self.runs)
        return ", ".join(names)

    def of_kind(self, kind: Kind) -> list[Entry]:
        """Return the entries of a kind, those with results first."""
        return sorted((e for e in self.entries if e.kind == kind), key=lambda e: not e.finished)

    @property
    def main(self) -> Entry | None:
        """Entry that headlines are about: a student from a cache if there is one."""
        return self._first(lambda entry: bool(entry.finished))

    @property
    def examined(self) -> Entry | None:
        """Entry that per-class results are about: like `main`, of those that were evaluated."""
        return self._first(lambda entry: bool(entry.evaluations))

    def _first(self, wanted: Callable[[Entry], bool]) -> Entry | None:
        kinds: tuple[Kind, ...] = ("cache", "online", "alone", "teacher")
        entries = (entry for kind in kinds for entry in self.of_kind(kind))
        return next(filter(wanted, entries), None)

    def peer(self, entry: Entry, kind: Kind) -> Entry | None:
        """Return the finished entry of another kind to compare `entry` with; None without one."""
        sections = [
            name for name in _RELEVANT_SECTIONS[kind] if name in _RELEVANT_SECTIONS[entry.kind]
        ]
        ours = entry.runs[0]
        for other in self.of_kind(kind):
            theirs = other.runs[0]
            if (
                _part(theirs.recipe, sections) == _part(ours.recipe, sections)
                and _may_be_equal(theirs.dataset, ours.dataset)
                and _may_be_equal(theirs.teacher_sha256, ours.teacher_sha256)
            ):
                return other if other.finished else None
        return None


def _may_be_equal(one: str | None, other: str | None) -> bool:
    """Return whether two fingerprints are equal, as far as both are known."""
    return one is None or other is None or one == other


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    """Group runs into entries, by kind, then in the order given."""
    groups: dict[tuple[Kind, str, str | None, str | None], list[Run]] = {}
    for run in runs:
        settings = _part(run.recipe, _RELEVANT_SECTIONS[run.kind]) + _views_of_teacher(run)
        key = run.kind, settings, run.dataset, run.teacher_sha256
        groups.setdefault(key, []).append(run)
    entries = []
    for kind in KINDS:
        of_kind = [seeds for (k, *_), seeds in groups.items() if k == kind]
        for seeds, setting in zip(of_kind, _settings(kind, of_kind), strict=True):
            entries.append(Entry(kind, sorted(seeds, key=lambda run: run.seed), setting))
    return entries


def _views_of_teacher(run: Run) -> str:
    """Return the views that a teacher without an augmentation of its own was trained on."""
    train = tables_of(run.recipe, "teacher", "train")
    if run.kind != "teacher" or not train or train.get("operations") is not None:
        return ""
    views = tables_of(run.recipe, "views")
    return _part(views, [name for name in sorted(views) if name not in ("count", "mode")])


def parameters_of(runs: Sequence[Run], named: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Return each run's values of the fields that a sweep varies, by dotted name.

    Args:
        runs: of one sweep.
        named: the varied fields; where empty, those in which recipes differ, and the seed.
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
    """Return the dotted fields in which any recipe differs from the first."""
    names = {name for one in recipes[1:] for name, *_ in differences(recipes[0], one)}
    return sorted(names)


def _field(recipe: Mapping[str, Any], name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _settings(kind: Kind, groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return what distinguishes the groups of a kind: recipe names, or the fields that differ."""
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
    """Return everything that decides whether runs are seeds of one setting."""
    sections = (*_RELEVANT_SECTIONS[run.kind], *(["views"] if _views_of_teacher(run) else []))
    return {
        "training images": _start(run.dataset),
        "teacher weights": _start(run.teacher_sha256),
        **{name: run.recipe.get(name) for name in sections},
    }


def _start(fingerprint: str | None) -> str | None:
    return None if fingerprint is None else fingerprint[:12]


def _numbered(words: Sequence[str]) -> list[str]:
    """Add numbers where names are equal: a name is never that of two settings."""
    if len(set(words)) == len(words):
        return list(words)
    return [f"{one}, number {number}" for number, one in enumerate(words, 1)]


def value_text(value: Any) -> str:
    """Return a recipe's value as a user writes it."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return name_text(words)
