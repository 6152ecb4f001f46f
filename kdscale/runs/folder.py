"""A run's folder: the names of its files, and one reader for each that returns checked values.

Files that kdscale writes hold a checksum, see `documents`; `recipe.toml` has it in its last line.
Files of kdscale 0.1 have none: their fields are checked all the same. No torch is imported here, so
that reports can use it.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdscale.atomic_write import write_durably
from kdscale.documents import (
    DAMAGE,
    checksum_of,
    parse_as,
    read_object,
    without_nan,
    write_object,
    write_object_by_lines,
)
from kdscale.errors import KdscaleError, RunError
from kdscale.regular_files import path_inside, read_document
from kdscale.run_identity import (
    RECIPE_FILE,
    RECIPE_SUM,
    RUN_FILE,
    RUN_ID,
    START,
    WEIGHTS_FILES,
    check_run,
    check_start,
    recipe_sum,
    stated_run,
)
from kdscale.runs.run_spec import RunInputs, RunSpec, TrackerState, Weights, check_result

_RECIPE, _RUN, _CONTENT, _RESULT = RECIPE_FILE, RUN_FILE, "content.json", "result.json"
_METRICS, _CHECKPOINTS, _PRETRAINED = "metrics.jsonl", "checkpoints", "pretrained.json"
_TRACKERS, _TENSORBOARD = "trackers.json", "tensorboard"
_WEIGHTS: dict[Weights, str] = dict(zip(("last", "best", "ema"), WEIGHTS_FILES, strict=True))
_EVALUATIONS: dict[Weights, str] = {
    "last": "evaluation.json",
    "best": "evaluation-best.json",
    "ema": "evaluation-ema.json",
}
_PATHS_FROM = "# Relative paths begin at "
"""Start of the first line of a recipe that has relative paths, before the folder as JSON."""
FILES_OF_A_START = frozenset({_RUN, _RECIPE, _CONTENT, _PRETRAINED})
"""Names of the files that are written before the first step, and again by the next start."""

T = TypeVar("T")


class _Below:
    """A path in a run's folder, by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "RunFolder", _: object = None) -> Path:
        return folder.path / self._name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, of a whole recipe's runs, or of a sweep's."""

    path: Path

    # ------------------------------------------------------------------ names

    recipe_file = _Below(_RECIPE)
    """The resolved recipe."""
    run_file = _Below(_RUN)
    """The file of the run's `RunSpec`; only the folder of one run has it."""
    inputs_file = _Below(_CONTENT)
    """The file of the run's `RunInputs`."""
    pretrained_file = _Below(_PRETRAINED)
    """The description of the pretrained weights that the training starts from."""
    bench_file = _Below("bench.json")
    """The measurements of `kdscale bench`, for the report of a recipe or sweep."""
    trials = _Below("trials")
    """The folder of a sweep's runs, one a trial."""
    sweep_file = _Below("sweep.json")
    """The settings of a sweep; only the folder of a sweep has it."""
    summary_file = _Below("trials.json")
    """The trials of a sweep with their results, for readers without its database."""
    pruned_file = _Below("pruned.txt")
    """The reason why a sweep ended the run early; other runs do not have it."""
    table_file = _Below("report.md")
    """The table of results of a recipe or sweep, as Markdown."""
    page_file = _Below("report.html")
    """The report of a recipe or sweep, as HTML."""
    result_file = _Below(_RESULT)
    """The result; a run whose folder has it is finished."""
    metrics_file = _Below(_METRICS)
    """The log of the training, see `runs.log`."""

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files.

        Raises:
            UnsafePathError: it is a link.
        """
        return path_inside(self.path, _TENSORBOARD)

    checkpoints = _Below(_CHECKPOINTS)
    """The folder of checkpoints."""

    def weights_file(self, which: Weights = "last") -> Path:
        """Weights of the trained model."""
        return self.path / _WEIGHTS[which]

    def evaluation_file(self, which: Weights = "last") -> Path:
        """The evaluation of these weights."""
        return self.path / _EVALUATIONS[which]

    given_teacher_file = _Below("teacher-evaluation.json")
    """The evaluation of a teacher that a recipe names weights of."""

    @property
    def is_run(self) -> bool:
        """Whether the folder is one run's."""
        return self.run_file.is_file()

    @property
    def has_recipe(self) -> bool:
        """Whether the folder holds a recipe: of one run, of a recipe's runs, or of a sweep."""
        return self.recipe_file.is_file()

    @property
    def is_sweep(self) -> bool:
        """Whether the folder holds the trials of a sweep."""
        return self.trials.is_dir()

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a result."""
        return self.result_file.is_file()

    def check_files(self) -> None:
        """Refuse links, special files and folders in the places of the run's files.

        Raises:
            UnsafePathError: naming one that is a link or a special file.
            RunError: naming a folder.
        """
        names = (_RECIPE, _RUN, _CONTENT, _RESULT, _METRICS, *_WEIGHTS.values())
        for name in (*names, *_EVALUATIONS.values()):
            if path_inside(self.path, name).is_dir():
                raise RunError(
                    f"{self.path / name} is a folder, wanted a file that kdscale writes: remove "
                    "it, or name another --run"
                )
        path_inside(self.path, _CHECKPOINTS)

    # ------------------------------------------------------------------ readers

    def read_job(self) -> RunSpec:
        """Return what the run trains.

        Raises:
            RunError: `run.json` is missing or damaged.
        """
        return self._read(_RUN, lambda table: parse_as(RunSpec, table), "name another --run")

    def read_content(self) -> RunInputs | None:
        """Return the inputs of the run; None if it has no `content.json`.

        Raises:
            RunError: `content.json` is damaged.
        """
        if not (self.path / _CONTENT).exists():
            return None
        advice = "remove it; the inputs of the run are then not known"
        return self._read(_CONTENT, lambda table: parse_as(RunInputs, table), advice)

    def read_trackers(self) -> dict[str, TrackerState]:
        """Return what trackers have of the run, by name of the tracker; {} if it had none.

        Raises:
            RunError: `trackers.json` is damaged.
        """
        if not (self.path / _TRACKERS).exists():
            return {}
        advice = "remove it; trackers then begin new runs"
        return self._read(_TRACKERS, _parse_trackers, advice)

    def read_result(self) -> dict[str, Any]:
        """Return the run's result.

        Raises:
            RunError: there is no run, or an unfinished one, or `result.json` is damaged.
        """
        if not self.is_finished:
            path_inside(self.path, _RESULT)
            raise RunError(
                f"{self.path} holds an unfinished run: go on with it first"
                if self.recipe_file.is_file()
                else f"no run at {self.path}: name a folder that `kdscale train` or `kdscale run` "
                "wrote"
            )
        return self._read(_RESULT, check_result, "remove it, and run with --resume")

    def read_recipe_tables(self) -> tuple[str, dict[str, Any]]:
        """Return the recipe as TOML and as tables, whatever version of kdscale wrote them.

        Raises:
            RunError: it is missing, no TOML, damaged or was changed.
        """
        try:
            text, digest = _without_sum(read_document(self.recipe_file, root=self.path))
            if digest is not None:
                check_start(self.recipe_file, digest)
            if text.startswith(_PATHS_FROM):
                text = text.partition("\n")[2]
            return text, tomllib.loads(text)
        except KdscaleError:
            raise
        except DAMAGE as error:
            raise self._damaged(_RECIPE, error, "put it back, or leave this run out") from None

    def read_paths_from(self) -> Path | None:
        """Return the folder that relative paths of the recipe begin at; None where none is stated.

        Raises:
            RunError: the recipe is missing, no TOML, damaged or was changed.
        """
        self.read_recipe_tables()
        line = read_document(self.recipe_file, root=self.path).decode().partition("\n")[0]
        try:
            return Path(json.loads(line.removeprefix(_PATHS_FROM)))
        except (ValueError, TypeError):  # of another kdscale, or all paths are absolute
            return None

    def _read(self, name: str, parse: Callable[[dict[str, Any]], T], advice: str) -> T:
        try:
            return parse(read_run_file(self.path / name))
        except KdscaleError:
            raise
        except DAMAGE as error:
            raise self._damaged(name, error, advice) from None

    def _damaged(self, name: str, error: Exception, advice: str) -> RunError:
        if isinstance(error, FileNotFoundError):
            return RunError(f"{self.path / name} is missing: {advice}")
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return RunError(f"{self.path / name} is damaged ({reason}): {advice}")

    # ------------------------------------------------------------------ writers

    def write_job(self, job: RunSpec) -> None:
        """Write `run.json`."""
        write_object(self.path / _RUN, asdict(job))

    def write_content(self, content: RunInputs) -> None:
        """Write `content.json`."""
        write_object(self.path / _CONTENT, asdict(content))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`: the run is finished."""
        write_object(self.path / _RESULT, {**without_nan(result), **stated_run(self.path)})

    def write_trackers(self, states: Mapping[str, TrackerState]) -> None:
        """Write `trackers.json`."""
        table = {name: asdict(state) for name, state in states.items()}
        write_object(self.path / _TRACKERS, {**table, **stated_run(self.path)})

    def write_recipe(self, text: str, *, paths_from: Path | None = None) -> None:
        """Write `recipe.toml` and, in its last line, a comment with the checksum of the text.

        Args:
            text: the recipe.
            paths_from: folder that its relative paths begin at, stated in the first line; None = it
                has none.
        """
        if paths_from is not None:
            text = f"{_PATHS_FROM}{json.dumps(str(paths_from))}\n{text}"
        digest = _sha256(text)
        write_durably(self.path / _RECIPE, f"{text}{RECIPE_SUM}{digest}\n".encode())

    def write_pretrained(self, description: Mapping[str, Any]) -> None:
        """Write `pretrained.json`."""
        write_object(self.path / _PRETRAINED, description)

    def complete_start(self) -> None:
        """Add the checksums of the other files of the start to `run.json`: its run has an identity.

        Raises:
            RunError: one of the files is damaged.
        """
        others = (name for name in (_CONTENT, _PRETRAINED) if (self.path / name).is_file())
        sums = {name: self._read(name, checksum_of, "start again") for name in others}
        job = {**asdict(self.read_job()), START: {_RECIPE: recipe_sum(self.path), **sums}}
        write_object(self.path / _RUN, job)

    def forget_content(self) -> None:
        """Remove `content.json`, of a start that got no further."""
        path_inside(self.path, _CONTENT).unlink(missing_ok=True)


def _parse_trackers(table: dict[str, Any]) -> dict[str, TrackerState]:
    return {name: parse_as(TrackerState, state) for name, state in table.items()}


def _without_sum(data: bytes) -> tuple[str, str | None]:
    """Return the text above the line that holds its checksum, and that; all without such a line.

    Raises:
        ValueError: it is no UTF-8, or not what was written.
    """
    text = data.decode()
    above, line, digest = text.rpartition(RECIPE_SUM)
    if not line:
        above, newline, last = text.rstrip("\n").rpartition("\n")
        if _sha256(above + newline) in last:
            raise ValueError(f"its last line does not begin with {RECIPE_SUM!r}: remove that line")
        return text, None
    if digest.strip() != _sha256(above):
        raise ValueError(
            "it does not match the checksum in its last line; if you changed it, remove that line"
        )
    return above, digest.strip()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_evaluation(path: Path, found: Mapping[str, Any]) -> None:
    """Write the results of an evaluation, one field a line."""
    write_object_by_lines(path, {**without_nan(found), **stated_run(path.parent)})


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run's folder, without what binds it to the run.

    Raises:
        RunError: the file is of another run.
        UnsafePathError, OSError, ValueError: see `documents.read_object`.
    """
    table = read_object(path, root=path.parent)
    if path.name == _RUN:
        table.pop(START, None)
    elif path.name in FILES_OF_A_START:
        check_start(path, checksum_of(table))
    else:
        check_run(path, table.pop(RUN_ID, None))
    return table
