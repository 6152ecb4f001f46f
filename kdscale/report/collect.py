"""Reads the folders that a user names, and groups their runs by test split."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kdscale import config
from kdscale.cache.catalog import list_caches
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.stores.store import is_remote, place_of
from kdscale.errors import CacheError, RunError, UnsafePathError
from kdscale.report.entry import Entry
from kdscale.report.fields import dicts, excerpt, is_number, read_json, tables_of
from kdscale.report.model import (
    EARLY,
    Comparison,
    SweepResults,
    SweepTrial,
    entries_of,
    parameters_of,
)
from kdscale.report.run_results import Run, given_teacher, read_recipe, read_run, rows_of
from kdscale.runs.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFolder:
    """A folder that the user named, and the runs in it."""

    folder: Path
    """Folder as the user named it."""
    runs: Sequence[Run]
    """Runs of the folder, trials included."""
    is_sweep: bool = False
    """Whether the folder is a sweep's."""
    cache_path: str | None = None
    """Folder or URL of the cache in the folder's `result.json`; None where it has none."""
    bench: Mapping[str, Any] | None = None
    """Output of `kdscale bench --json` in the folder; None where it holds none."""
    problems: Sequence[str] = field(default=())
    """Messages about files that cannot be read and runs that are left out."""


def collect(folders: Sequence[Path], cache_root: Path) -> list[Comparison]:
    """Read all runs of the folders into one comparison for each test split.

    A run that cannot be read is left out, with a warning.

    Args:
        folders: of single runs, of whole recipes, of sweeps.
        cache_root: folder of caches that are not where a result names them.

    Raises:
        RunError: a folder holds no run, or none of all the runs can be read.
    """
    sources = [_read_folder(folder) for folder in _without_repeats(folders)]
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


def _read_folder(folder: Path) -> ReportFolder:
    files = RunFolder(folder)
    if not folder.is_dir():
        raise RunError(f"no folder {folder}: name one that `kdscale run`, `train` or `sweep` wrote")
    bench, problems = _bench(folder)
    result, damaged = (None, []) if files.is_run else read_json(files.result_file)
    trials, left_out = _readable(
        _runs_below(files.trials) if files.is_sweep else (),
        lambda path: read_run(path, trial=path.name),
    )
    below: Iterable[Path] = _runs_below(folder)
    if files.is_run:  # of an earlier kdscale; students that were trained since lie below it
        below = (folder, *(path for path in below if "-seed" in path.name))
    runs, more = _readable(below, read_run)
    problems = [*problems, *damaged, *left_out, *more]
    if not (files.is_run or any(run.kind == "teacher" for run in runs)):
        runs += _given_teacher(folder, result, [*trials, *runs])
    if not (trials if files.is_sweep else runs) and not problems:
        raise RunError(
            f"no run at {folder}: name a folder that `kdscale run`, `train` or `sweep` wrote"
        )
    path = (result or {}).get("cache_path")
    return ReportFolder(
        folder=folder,
        runs=[*trials, *runs],
        is_sweep=bool(trials),
        cache_path=path if isinstance(path, str) else None,
        bench=bench,
        problems=problems,
    )


_Found = TypeVar("_Found")


def _readable(
    folders: Iterable[Path], read: Callable[[Path], _Found]
) -> tuple[list[_Found], list[str]]:
    """Return what is read of each folder, and messages about folders that are left out."""
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


def _given_teacher(
    folder: Path, result: Mapping[str, Any] | None, runs: Sequence[Run]
) -> list[Run]:
    """Return the teacher that a recipe names weights of, if anything is known of it."""
    if not RunFolder(folder).has_recipe:
        return []
    rows = (row for row in rows_of(result) if row.get("label") == "teacher")
    found = next((one for row in rows for one in dicts(row.get("results"))), None)
    split = runs[0].test_split if runs else None
    teachers, _ = _readable([folder], lambda path: given_teacher(path, found, split))
    return [teacher for teacher in teachers if teacher is not None]


_RATES = ("online_over_cached_time", "online_images_per_second", "cached_images_per_second")


def _bench(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the content of the folder's `bench.json`, or what is wrong with it."""
    found, problems = read_json(RunFolder(folder).bench_file)
    if found is None or _RATES[0] not in found:
        return None, problems
    path = RunFolder(folder).bench_file
    bad = [name for name in _RATES if name in found and not is_number(found[name], 1e-9)]
    if bad:
        return None, [f"{path} is damaged: {bad[0]} is {excerpt(found[bad[0]])}, wanted a number"]
    return found, []


# --------------------------------------------------------------------------- studies


def _study(
    split: str, sources: Sequence[ReportFolder], caches: Mapping[Path, Manifest]
) -> Comparison:
    here = [source for source in sources if any(r.test_split == split for r in source.runs)]
    single = [
        run for source in here for run in source.runs
        if run.test_split == split and run.trial is None
    ]  # fmt: skip
    sweeps = _distinguished([_sweep(source) for source in here if source.is_sweep])
    entries = [*entries_of(single), *[one for sweep in sweeps for one in _best_of(sweep)]]
    students = [*single, *[trial.run for sweep in sweeps for trial in sweep.trials]]
    place, manifest = _cache(here, students, caches)
    return Comparison(
        folders=[source.folder for source in here],
        entries=entries,
        sweeps=sweeps,
        cache_place=place,
        manifest=manifest,
        bench=next((source.bench for source in here if source.bench), None),
        recipes=_recipes(here, students, entries),
    )


def _best_of(sweep: SweepResults) -> list[Entry]:
    """Return the best trial as an entry, to compare it like any other student."""
    best = sweep.best
    if best is None:
        return []
    of = f" of {sweep.among}" if sweep.among else ""
    return [Entry("cache", [best.run], f"trial {best.run.trial}{of}")]


def _distinguished(sweeps: Sequence[SweepResults]) -> list[SweepResults]:
    """Name sweeps by their folders where there are several: recipes may have one name."""
    if len(sweeps) < 2:
        return list(sweeps)
    return [replace(sweep, among=str(sweep.folder)) for sweep in sweeps]


def _sweep(source: ReportFolder) -> SweepResults:
    runs = [run for run in source.runs if run.trial is not None]
    recipe = runs[0].recipe
    if RunFolder(source.folder).has_recipe:
        recipe = read_recipe(source.folder)[1]
    space = tables_of(recipe, "sweep").get("space", ())
    varied = parameters_of(runs, space if isinstance(space, Mapping) else ())
    status = _status(source.folder)
    rows = {str(row.get("trial")): row for row in status["rows"]}
    trials = []
    for place, run in enumerate(runs):
        row = rows.get(str(run.trial), {})
        parameters = {name: values[place] for name, values in varied.items()}
        trials.append(SweepTrial(run, parameters, _score(run, recipe, row), _state(run, row)))
    name = str(recipe.get("name", source.folder.name))
    planned = max(_planned(recipe), len(rows))
    seconds = status.get("seconds")
    return SweepResults(
        source.folder, name, trials, seconds if is_number(seconds) else None, planned
    )


def _status(folder: Path) -> dict[str, Any]:
    """Return the sweep's `trials.json`, as far as it is valid."""
    status, _ = read_json(RunFolder(folder).summary_file)
    return {**(status or {}), "rows": rows_of(status)}


def _planned(recipe: Mapping[str, Any]) -> int:
    """Return the number of trials in a sweep's recipe; 0 where it names none or is not valid."""
    try:
        return config.SweepSection.model_validate(recipe.get("sweep")).num_trials
    except (ValueError, TypeError, OverflowError):
        return 0


def _score(run: Run, recipe: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Return the validation top-1 of the sweep's table, else that of the log.

    The table's value of an unfinished trial is out of date once the trial was resumed.
    """
    if is_number(row.get("value"), 0, 1) and row.get("state") == "finished":
        return float(row["value"])
    curve = [value for _, value in run.curves.get("validation", ())]
    if not curve:
        return None
    by_best = tables_of(recipe, "sweep").get("metric") == "best_validation_accuracy"
    restored = tables_of(run.recipe, "student", "train").get("restore_best", False)
    return max(curve) if by_best or restored else curve[-1]


def _state(run: Run, row: Mapping[str, Any]) -> str | None:
    if RunFolder(run.folder).pruned_file.is_file():
        return EARLY
    return str(row["state"]) if "state" in row else None


def _cache(
    sources: Sequence[ReportFolder], runs: Sequence[Run], caches: Mapping[Path, Manifest]
) -> tuple[Path | None, Manifest | None]:
    """Return the first of the runs' caches that is on this machine."""
    wanted = {str(run.metrics["cache"]) for run in runs if "cache" in run.metrics}
    named = [source.cache_path for source in sources if source.cache_path]
    for text in named:
        place = place_of(text)
        if is_remote(place):  # a report uses no network
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
    sources: Sequence[ReportFolder], runs: Sequence[Run], entries: Sequence[Entry]
) -> dict[str, str]:
    """Return the recipes as TOML, each once, by folder."""
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
