"""From the folders that a user names to what a report is about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdscale import config
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.search import list_caches
from kdscale.cache.store import is_remote, place_of
from kdscale.errors import CacheError, RunError
from kdscale.report.compare import EARLY, Entry, Study, Sweep, Trial, entries_of, parameters_of
from kdscale.report.runs import (
    Run,
    given_teacher,
    read_json,
    read_recipe,
    read_result,
    read_run,
)
from kdscale.run_folder import RunFolder


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


def gather(folders: Sequence[Path], cache_root: Path) -> list[Study]:
    """Everything there is to tell of the folders, one study for each test split.

    Args:
        folders: of single runs, of whole recipes, of sweeps.
        cache_root: where caches lie that are not where a result says.

    Raises:
        RunError: a folder holds no run, or none of its files can be read.
    """
    sources = [_source(folder) for folder in _without_repeats(folders)]
    runs = [run for source in sources for run in source.runs]
    splits = list(dict.fromkeys(run.test_split for run in runs))
    known = dict(list_caches(cache_root)) if cache_root.is_dir() else {}
    caches = {path: m for path, m in known.items() if isinstance(m, Manifest)}
    return [_study(split, sources, caches) for split in splits]


def _without_repeats(folders: Sequence[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]


# --------------------------------------------------------------------------- folders


def _source(folder: Path) -> Source:
    if not folder.is_dir():
        raise RunError(f"no folder {folder}: name one that `kdscale run`, `train` or `sweep` wrote")
    bench = _bench(folder)
    if RunFolder(folder).is_run:
        return Source(folder=folder, runs=[read_run(folder)], bench=bench)
    if (folder / "trials").is_dir():
        inside = sorted(_runs_below(folder / "trials"))
        trials = [read_run(path, trial=path.name) for path in inside]
        _refuse_empty(folder, trials)
        others = [read_run(path) for path in sorted(_runs_below(folder))]  # its teacher
        if not others and RunFolder(folder).recipe_file.is_file():
            others = _teacher_elsewhere(folder, None, trials)
        return Source(folder=folder, runs=[*trials, *others], is_sweep=True, bench=bench)
    result, problems = read_result(folder)
    runs = [read_run(path) for path in sorted(_runs_below(folder))]
    if not any(run.kind == "teacher" for run in runs) and RunFolder(folder).recipe_file.is_file():
        runs += _teacher_elsewhere(folder, result, runs)
    _refuse_empty(folder, runs)
    runs[0] = replace(runs[0], problems=[*problems, *runs[0].problems])
    path = (result or {}).get("cache_path")
    return Source(folder=folder, runs=runs, cache_path=path, bench=bench)


def _runs_below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if RunFolder(path).is_run:
            yield path


def _refuse_empty(folder: Path, runs: Sequence[Run]) -> None:
    if not runs:
        raise RunError(
            f"no run at {folder}: name a folder that `kdscale run`, `train` or `sweep` wrote"
        )


def _teacher_elsewhere(
    folder: Path, result: Mapping[str, Any] | None, runs: Sequence[Run]
) -> list[Run]:
    """The teacher that came with weights, or that another folder holds."""
    rows = (result or {}).get("rows", [])
    told = next((row["results"][0] for row in rows if row["label"] == "teacher"), None)
    teacher = given_teacher(folder, told)
    if teacher is None:
        return []
    split = runs[0].test_split if runs else teacher.test_split
    return [replace(teacher, test_split=split)]


def _bench(folder: Path) -> dict[str, Any] | None:
    found, _ = read_json(folder / "bench.json")
    return found if found is not None and "online_over_cached_time" in found else None


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
    if RunFolder(source.folder).recipe_file.is_file():
        recipe = read_recipe(source.folder)[1]
    varied = parameters_of(runs, recipe.get("sweep", {}).get("space", ()))
    told = _told(source.folder)
    rows = {str(row.get("trial")): row for row in told["rows"]}
    trials = []
    for place, run in enumerate(runs):
        row = rows.get(str(run.trial), {})
        parameters = {name: values[place] for name, values in varied.items()}
        trials.append(Trial(run, parameters, _score(run, recipe, row), _state(run, row)))
    name = str(recipe.get("name", source.folder.name))
    planned = max(_planned(recipe), len(rows))
    return Sweep(source.folder, name, trials, told.get("seconds"), planned)


def _told(folder: Path) -> dict[str, Any]:
    """What the sweep said when a worker last ended, as far as it is that."""
    told, _ = read_json(folder / "trials.json")
    rows = (told or {}).get("rows")
    if told is None or not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        return {"rows": []}
    return told


def _planned(recipe: Mapping[str, Any]) -> int:
    """Trials that a sweep was begun with; 0 where its recipe, maybe another version's, is mute."""
    try:
        return config.Sweep.model_validate(recipe.get("sweep")).num_trials
    except ValueError:
        return 0


def _score(run: Run, recipe: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Top-1 on the validation split: as the sweep has it, else of the evaluation that counts.

    Of a trial that was resumed since, the sweep has what it had reached before.
    """
    if isinstance(row.get("value"), int | float) and row.get("state") == "finished":
        return float(row["value"])
    curve = [value for _, value in run.validation_accuracy]
    if not curve:
        return None
    by_best = recipe.get("sweep", {}).get("metric") == "best_validation_accuracy"
    restored = run.recipe.get("student", {}).get("train", {}).get("restore_best", False)
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
        if RunFolder(source.folder).recipe_file.is_file():
            texts.setdefault(read_recipe(source.folder)[0], str(source.folder))
    for entry in entries:
        for run in entry.runs:
            texts.setdefault(run.recipe_text, str(run.folder))
    if not texts and runs:
        texts[runs[0].recipe_text] = str(runs[0].folder)
    return {name: text for text, name in texts.items()}
