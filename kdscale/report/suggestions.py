"""Results that a report lacks, and the commands that measure them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdscale.formatting import number_of
from kdscale.report.entry import Entry
from kdscale.report.model import Comparison
from kdscale.report.run_results import Run
from kdscale.report.training_cost import cost_of_sweep
from kdscale.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Note:
    """A missing result, and the command that measures it."""

    text: str
    command: str = ""
    """Shell command; empty where no command helps."""


def missing(study: Comparison, *, has_sheet: bool) -> list[Note]:
    """Return the results that the report lacks.

    Args:
        study: the runs and their results.
        has_sheet: whether the report has a preview of views, or can have none.
    """
    return [
        *[Note(f"{problem}.") for problem in study.problems],
        *[Note(f"{problem}.") for run in study.runs for problem in run.problems],
        *_repeated(study),
        *_unfinished(study),
        *_not_evaluated(study),
        *_not_compared(study),
        *_no_baseline(study),
        *_not_estimated(study),
        *_cache_not_found(study, has_sheet),
    ]


def _kdscale(verb: str, *words: object) -> str:
    return shlex.join(["kdscale", verb, *[str(word) for word in words]])


def _unfinished(study: Comparison) -> list[Note]:
    notes = [_go_on(run) for run in study.runs if not run.finished and run.trial is None]
    for sweep in study.sweeps:
        over = sweep.num_trials - len(sweep.finished) - sweep.num_left
        if over:
            text = f"{number_of(over, 'trial')} of {sweep.folder} ended early or failed: the best"
            notes.append(Note(f"{text} is one of the others."))
        if sweep.num_left:
            text = f"{number_of(sweep.num_left, 'trial')} of {sweep.folder} not finished yet."
            recipe = RunFolder(sweep.folder).recipe_file
            notes.append(Note(text, _kdscale("sweep", recipe, "--run", sweep.folder)))
    return notes


def _go_on(run: Run) -> Note:
    text = f"{run.folder} is not finished: {number_of(run.epochs_done, 'epoch')} so far."
    whole = _whole_recipe(run)
    if whole is not None:
        return Note(text, _kdscale("run", RunFolder(whole).recipe_file, "--run", whole))
    recipe = RunFolder(run.folder).recipe_file
    words = ["--model", "teacher"] if run.kind == "teacher" else ["--targets", run.targets]
    seed = ["--seed", run.seed] if run.seed else []
    return Note(text, _kdscale("train", recipe, *words, *seed, "--run", run.folder, "--resume"))


def _whole_recipe(run: Run) -> Path | None:
    """Return the folder of `kdscale run` that a run is in; None where it is in none."""
    above = run.folder.parent
    whole = RunFolder(above)
    return above if whole.has_recipe and not whole.is_sweep else None


def _finished_recipe(run: Run) -> Path | None:
    """Return the same folder if all its runs are finished; else each is evaluated by itself."""
    whole = _whole_recipe(run)
    return whole if whole is not None and RunFolder(whole).is_finished else None


def _not_evaluated(study: Comparison) -> list[Note]:
    lacking = [run for entry in study.entries for run in entry.finished if run.evaluation is None]
    if not lacking:
        return []
    folders = dict.fromkeys(_finished_recipe(run) or run.folder for run in lacking)
    text = (
        f"{number_of(len(lacking), 'run')} not evaluated: size, latency, calibration and "
        "per-class results are not known of all."
    )
    return [Note(text, _kdscale("evaluate", *folders))]


def _repeated(study: Comparison) -> Iterator[Note]:
    """Return seeds that were trained several times with the same settings."""
    for entry in study.entries:
        for seed in entry.seeds:
            folders = [str(run.folder) for run in entry.finished if run.seed == seed]
            if len(folders) > 1:
                yield Note(
                    f"Seed {seed} of {entry.phrase} is in {number_of(len(folders), 'folder')} "
                    f"({', '.join(folders)}): it counts once, with the mean of their results."
                )


def _not_compared(study: Comparison) -> list[Note]:
    notes: list[Note] = []
    for entry in [e for e in study.of_kind("cache") if e.finished and not e.is_trial][:1]:
        place = _place(entry)
        if study.peer(entry, "alone") is None:
            text = "No student was trained alone: the gain from the teacher is not known."
            notes.append(Note(text, _kdscale("run", *place)))
        if study.peer(entry, "online") is None:
            text = "No student was trained with an online teacher, to compare with."
            notes.append(Note(text, _kdscale("run", *place, "--online")))
        if entry.num_seeds < 2:
            text = "One seed: how much of the accuracy is chance is not known."
            notes.append(Note(text, _kdscale("run", *place, "--seeds", 3)))
    return notes


def _no_baseline(study: Comparison) -> list[Note]:
    """Return sweeps whose best trial cannot be compared with a student trained alone."""
    text = "No student was trained alone with the best trial's settings: the gain is not known."
    notes = []
    for sweep in study.sweeps:
        best = next((e for e in study.entries if sweep.best and e.runs[0] is sweep.best.run), None)
        if best is not None and study.peer(best, "alone") is None:
            recipe, run = RunFolder(best.runs[0].folder).recipe_file, sweep.folder / "alone"
            words = ["--targets", "none", "--seed", best.runs[0].seed, "--run", run]
            notes.append(Note(text, _kdscale("train", recipe, *words)))
    return notes


def _not_estimated(study: Comparison) -> list[Note]:
    text = "The cost of the trials with an online teacher is not known."
    return [
        Note(text, f"{_kdscale('bench', RunFolder(sweep.folder).recipe_file, '--json')} > "
             f"{shlex.quote(str(RunFolder(sweep.folder).bench_file))}")
        for sweep in study.sweeps
        if cost_of_sweep(study, sweep).online_seconds is None
    ]  # fmt: skip


def _place(entry: Entry) -> list[object]:
    """Return recipe and folder of `kdscale run` for an entry's runs."""
    run = entry.runs[0]
    whole = _whole_recipe(run)
    if whole is not None:
        return [RunFolder(whole).recipe_file, "--run", whole]
    return [RunFolder(run.folder).recipe_file, "--run", f"{run.folder}-compared"]


def _cache_not_found(study: Comparison, has_sheet: bool) -> list[Note]:
    if study.manifest is None and any(run.metrics.get("cache") for run in study.runs):
        text = (
            "The cache is not where the runs read it: name its folder with --cache-root, for its "
            "content and for a preview of its views."
        )
        return [Note(text)]
    if study.manifest is not None and not study.manifest.complete:
        return [Note(f"{study.cache_place} is not finished: there is no preview of its views.")]
    if study.manifest is not None and not has_sheet:
        source = study.manifest.dataset["source"]
        return [Note(f"No preview of views: name a local copy of {source} with --data.")]
    return []
