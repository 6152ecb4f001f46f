"""What a report lacks, and the commands that find it out."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdscale.formatting import number_of
from kdscale.report.cost import cost_of_sweep
from kdscale.report.entry import Entry
from kdscale.report.model import Study
from kdscale.report.runs import Run
from kdscale.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is not known, and the command that finds it out."""

    text: str
    command: str = ""


def missing(study: Study, *, has_sheet: bool) -> list[Note]:
    """What a report would show if more were known.

    Args:
        study: what is known.
        has_sheet: whether views are shown, or not asked for.
    """
    return [
        *[Note(f"{problem}.") for problem in study.problems],
        *[Note(f"{problem}.") for run in study.runs for problem in run.problems],
        *_repeated(study),
        *_unfinished(study),
        *_not_evaluated(study),
        *_not_compared(study),
        *_not_reckoned(study),
        *_not_at_hand(study, has_sheet),
    ]


def _kdscale(verb: str, *words: object) -> str:
    return shlex.join(["kdscale", verb, *[str(word) for word in words]])


def _unfinished(study: Study) -> list[Note]:
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
    """The folder of `kdscale run` that a run lies in."""
    above = run.folder.parent
    whole = RunFolder(above)
    return above if whole.has_recipe and not whole.is_sweep else None


def _finished_recipe(run: Run) -> Path | None:
    """The same where all of it is done: else its runs are to be evaluated one by one."""
    whole = _whole_recipe(run)
    return whole if whole is not None and RunFolder(whole).is_finished else None


def _not_evaluated(study: Study) -> list[Note]:
    lacking = [run for entry in study.entries for run in entry.finished if run.evaluation is None]
    if not lacking:
        return []
    folders = dict.fromkeys(_finished_recipe(run) or run.folder for run in lacking)
    text = (
        f"{number_of(len(lacking), 'run')} not evaluated: bytes and latency, calibration and "
        "classes are not known of all."
    )
    return [Note(text, _kdscale("evaluate", *folders))]


def _repeated(study: Study) -> Iterator[Note]:
    """Seeds that were trained several times with the same settings."""
    for entry in study.entries:
        for seed in entry.seeds:
            folders = [str(run.folder) for run in entry.finished if run.seed == seed]
            if len(folders) > 1:
                yield Note(
                    f"Seed {seed} of {entry.phrase} is in {number_of(len(folders), 'folder')} "
                    f"({', '.join(folders)}): it counts once, with the mean of their figures."
                )


def _not_compared(study: Study) -> list[Note]:
    notes: list[Note] = []
    for entry in [e for e in study.of_kind("cache") if e.finished and not e.is_trial][:1]:
        place = _place(entry)
        if study.peer(entry, "alone") is None:
            text = "No student was trained alone: what the teacher adds is not known."
            notes.append(Note(text, _kdscale("run", *place)))
        if study.peer(entry, "online") is None:
            text = "No student was trained with the teacher at every step, to compare with."
            notes.append(Note(text, _kdscale("run", *place, "--online")))
        if entry.num_seeds < 2:
            text = "One seed: how much of the accuracy is chance is not known."
            notes.append(Note(text, _kdscale("run", *place, "--seeds", 3)))
    return notes


def _not_reckoned(study: Study) -> list[Note]:
    text = "What the trials would have cost with the teacher at every step is not known."
    return [
        Note(text, f"{_kdscale('bench', RunFolder(sweep.folder).recipe_file, '--json')} > "
             f"{shlex.quote(str(RunFolder(sweep.folder).bench_file))}")
        for sweep in study.sweeps
        if cost_of_sweep(study, sweep).online_seconds is None
    ]  # fmt: skip


def _place(entry: Entry) -> list[object]:
    """Recipe and folder of the whole recipe that an entry's runs are of, or could be."""
    run = entry.runs[0]
    whole = _whole_recipe(run)
    if whole is not None:
        return [RunFolder(whole).recipe_file, "--run", whole]
    return [RunFolder(run.folder).recipe_file, "--run", f"{run.folder}-compared"]


def _not_at_hand(study: Study, has_sheet: bool) -> list[Note]:
    if study.manifest is None and any(run.metrics.get("cache") for run in study.runs):
        text = (
            "The cache is not where the runs found it: name its folder with --cache-root, for what "
            "it holds and for a sheet of its views."
        )
        return [Note(text)]
    if study.manifest is not None and not study.manifest.complete:
        return [Note(f"{study.cache_place} is not finished: there is no sheet of its views.")]
    if study.manifest is not None and not has_sheet:
        source = study.manifest.dataset["source"]
        return [Note(f"No sheet of views: name a local copy of {source} with --data.")]
    return []
