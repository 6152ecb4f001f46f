"""From the folders that a user names to what a report is about."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kdscale import config
from kdscale.cache.catalog import list_caches
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.base import is_remote, place_of
from kdscale.errors import CacheError, RunError, UnsafePathError
from kdscale.report.entry import Entry
from kdscale.report.fields import dicts, is_number, read_json, shown, tables_of
from kdscale.report.model import EARLY, Study, Sweep, Trial, entries_of, parameters_of
from kdscale.report.runs import Run, given_teacher, read_recipe, read_run, rows_of
from kdscale.runs.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder that the user named, and the runs in it."""

    folder: Path
    runs: Sequence[Run]
    is_sweep: bool = False
    cache_path: str | None = None
    """Where the folder's result says that the cache lies."""
    bench: Mapping[str, Any] | None = None
    """What `kdscale bench --json` found, where the folder holds it."""
    problems: Sequence[str] = field(default=())
    """Files of the folder that could not be read, and runs left out for it, in words."""


def gather(folders: Sequence[Path], cache_root: Path) -> list[Study]:
    """Everything there is to tell of the folders, one study for each test split.

    A run that cannot be read is left out, and said to be.

    Args:
        folders: of single runs, of whole recipes, of sweeps.
        cache_root: where caches lie that are not where a result says.

    Raises:
        RunError: a folder holds no run, or none of all the runs can be read.
    """
    sources = [_source(folder) for folder in _without_repeats(folders)]
    runs = [run for source in sources for run in source.runs]
    problems = [problem for source in sources for problem in source.problems]
    if not runs:
        raise RunError(f"{problems[0]}, and there is no other run")
    for problem in problems:
        log.warning("%s", problem)
    splits = list(dict.fromkeys(run.test_split for run in runs))
    known = dict(list_caches(cache_root)) if cache_root.is_dir() else {}
    caches = {path: m for path, m in known.items() if isinstance(m, Manifest)}
    studies = [_study(split, sources, caches) for split in splits]
    return [replace(studies[0], problems=problems), *studies[1:]]


def _without_repeats(folders: Sequence[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]


# --------------------------------------------------------------------------- folders


def _source(folder: Path) -> Source:
    if not folder.is_dir():
        raise RunError(f"no folder {folder}: name one that `kdscale run`, `train` or `sweep` wrote")
    bench, problems = _bench(folder)
    if RunFolder(folder).is_run:
        runs, left_out = _readable([folder], read_run)
        return Source(folder=folder, runs=runs, bench=bench, problems=[*problems, *left_out])
    if RunFolder(folder).is_sweep:
        return _sweep_source(folder, bench, problems)
    result, damaged = read_json(RunFolder(folder).result_file)
    runs, left_out = _readable(_runs_below(folder), read_run)
    if not any(run.kind == "teacher" for run in runs):
        runs += _teacher_elsewhere(folder, result, runs)
    problems = [*problems, *damaged, *left_out]
    _refuse_empty(folder, runs, problems)
    path = (result or {}).get("cache_path")
    place = path if isinstance(path, str) else None
    return Source(folder=folder, runs=runs, cache_path=place, bench=bench, problems=problems)


def _sweep_source(folder: Path, bench: Mapping[str, Any] | None, problems: Sequence[str]) -> Source:
    trials, left_out = _readable(
        _runs_below(RunFolder(folder).trials), lambda path: read_run(path, trial=path.name)
    )
    problems = [*problems, *left_out]
    _refuse_empty(folder, trials, problems)
    others, left_out = _readable(_runs_below(folder), read_run)  # its teacher
    others = others or _teacher_elsewhere(folder, None, trials)
    return Source(
        folder=folder,
        runs=[*trials, *others],
        is_sweep=bool(trials),
        bench=bench,
        problems=[*problems, *left_out],
    )


_Found = TypeVar("_Found")


def _readable(
    folders: Iterable[Path], read: Callable[[Path], _Found]
) -> tuple[list[_Found], list[str]]:
    """What is read of each folder, and why others are left out."""
    found, problems = [], []
    for folder in sorted(folders):
        try:
            found.append(read(folder))
        except (RunError, UnsafePathError) as error:
            problems.append(f"{error}: {folder} is left out")
    return found, problems


def _runs_below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if RunFolder(path).is_run:
            yield path


def _refuse_empty(folder: Path, runs: Sequence[Run], problems: Sequence[str]) -> None:
    """A folder without runs is a wrong name; one whose runs cannot be read is left out."""
    if not runs and not problems:
        raise RunError(
            f"no run at {folder}: name a folder that `kdscale run`, `train` or `sweep` wrote"
        )


def _teacher_elsewhere(
    folder: Path, result: Mapping[str, Any] | None, runs: Sequence[Run]
) -> list[Run]:
    """The teacher that came with weights, or that another folder holds."""
    if not RunFolder(folder).has_recipe:
        return []
    rows = (row for row in rows_of(result) if row.get("label") == "teacher")
    told = next((one for row in rows for one in dicts(row.get("results"))), None)
    split = runs[0].test_split if runs else None
    teachers, _ = _readable([folder], lambda path: given_teacher(path, told, split))
    return [teacher for teacher in teachers if teacher is not None]


_RATES = ("online_over_cached_time", "online_images_per_second", "cached_images_per_second")


def _bench(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What the folder's `bench.json` measured, or what is wrong with it."""
    found, problems = read_json(RunFolder(folder).bench_file)
    if found is None or _RATES[0] not in found:
        return None, problems
    path = RunFolder(folder).bench_file
    bad = [name for name in _RATES if name in found and not is_number(found[name], 1e-9)]
    if bad:
        return None, [f"{path} is damaged: {bad[0]} is {shown(found[bad[0]])}, wanted a number"]
    return found, []


# --------------------------------------------------------------------------- studies


def _study(split: str, sources: Sequence[Source], caches: Mapping[Path, Manifest]) -> Study:
    here = [source for source in sources if any(r.test_split == split for r in source.runs)]
    single = [
        run for source in here for run in source.runs
        if run.test_split == split and run.trial is None
    ]  # fmt: skip
    sweeps = _told_apart([_sweep(source) for source in here if source.is_sweep])
    entries = [*entries_of(single), *[one for sweep in sweeps for one in _best_of(sweep)]]
    students = [*single, *[trial.run for sweep in sweeps for trial in sweep.trials]]
    place, manifest = _cache(here, students, caches)
    return Study(
        folders=[source.folder for source in here],
        entries=entries,
        sweeps=sweeps,
        cache_place=place,
        manifest=manifest,
        bench=next((source.bench for source in here if source.bench), None),
        recipes=_recipes(here, students, entries),
    )


def _best_of(sweep: Sweep) -> list[Entry]:
    """The best trial, to be looked at like any other student."""
    best = sweep.best
    if best is None:
        return []
    of = f" of {sweep.among}" if sweep.among else ""
    return [Entry("cache", [best.run], f"trial {best.run.trial}{of}")]


def _told_apart(sweeps: Sequence[Sweep]) -> list[Sweep]:
    """With their folders as names where there are several: recipes may be called the same."""
    if len(sweeps) < 2:
        return list(sweeps)
    return [replace(sweep, among=str(sweep.folder)) for sweep in sweeps]


def _sweep(source: Source) -> Sweep:
    runs = [run for run in source.runs if run.trial is not None]
    recipe = runs[0].recipe
    if RunFolder(source.folder).has_recipe:
        recipe = read_recipe(source.folder)[1]
    space = tables_of(recipe, "sweep").get("space", ())
    varied = parameters_of(runs, space if isinstance(space, Mapping) else ())
    told = _told(source.folder)
    rows = {str(row.get("trial")): row for row in told["rows"]}
    trials = []
    for place, run in enumerate(runs):
        row = rows.get(str(run.trial), {})
        parameters = {name: values[place] for name, values in varied.items()}
        trials.append(Trial(run, parameters, _score(run, recipe, row), _state(run, row)))
    name = str(recipe.get("name", source.folder.name))
    planned = max(_planned(recipe), len(rows))
    seconds = told.get("seconds")
    return Sweep(source.folder, name, trials, seconds if is_number(seconds) else None, planned)


def _told(folder: Path) -> dict[str, Any]:
    """What the sweep said when a worker last ended, as far as it is that."""
    told, _ = read_json(folder / "trials.json")
    return {**(told or {}), "rows": rows_of(told)}


def _planned(recipe: Mapping[str, Any]) -> int:
    """Trials that a sweep was begun with; 0 where its recipe, maybe another version's, is mute."""
    try:
        return config.SweepSection.model_validate(recipe.get("sweep")).num_trials
    except (ValueError, TypeError, OverflowError):
        return 0


def _score(run: Run, recipe: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Top-1 on the validation split: as the sweep has it, else of the evaluation that counts.

    Of a trial that was resumed since, the sweep has what it had reached before.
    """
    if is_number(row.get("value"), 0, 1) and row.get("state") == "finished":
        return float(row["value"])
    curve = [value for _, value in run.validation_accuracy]
    if not curve:
        return None
    by_best = tables_of(recipe, "sweep").get("metric") == "best_validation_accuracy"
    restored = tables_of(run.recipe, "student", "train").get("restore_best", False)
    return max(curve) if by_best or restored else curve[-1]


def _state(run: Run, row: Mapping[str, Any]) -> str | None:
    if (run.folder / "pruned.txt").is_file():
        return EARLY
    return str(row["state"]) if "state" in row else None


def _cache(
    sources: Sequence[Source], runs: Sequence[Run], caches: Mapping[Path, Manifest]
) -> tuple[Path | None, Manifest | None]:
    """The first of the runs' caches that is at hand, on this machine."""
    wanted = {str(run.metrics["cache"]) for run in runs if "cache" in run.metrics}
    named = [source.cache_path for source in sources if source.cache_path]
    for text in named:
        place = place_of(text)
        if is_remote(place):  # a report asks no network
            continue
        try:
            manifest = read_manifest(place)
        except (CacheError, OSError):
            continue
        if manifest.id in wanted or not wanted:
            return Path(place), manifest
    found = ((path, one) for path, one in caches.items() if one.id in wanted and one.complete)
    return next(found, (None, None))


def _recipes(
    sources: Sequence[Source], runs: Sequence[Run], entries: Sequence[Entry]
) -> dict[str, str]:
    """The recipes' texts, each once, by what tells them apart."""
    texts: dict[str, str] = {}
    for source in sources:
        if RunFolder(source.folder).has_recipe:
            texts.setdefault(read_recipe(source.folder)[0], str(source.folder))
    for entry in entries:
        for run in entry.runs:
            texts.setdefault(run.recipe_text, str(run.folder))
    if not texts and runs:
        texts[runs[0].recipe_text] = str(runs[0].folder)
    return {name: text for text, name in texts.items()}
