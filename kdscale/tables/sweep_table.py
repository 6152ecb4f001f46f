"""The output of `kdscale sweep`, `sweep status` and `sweep best` as tables."""

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kdscale.config.variants import text_of
from kdscale.formatting import duration_text, number_of, percent_text
from kdscale.report.table import Table


def sweep_table(found: Mapping[str, Any]) -> str:
    """Return the trials of a sweep, the best first, and their number by state."""
    fields = _short(found["fields"])
    titles = ["trial", "state", "validation %", "test %", "training s", *fields.values()]
    rows = sorted(found["rows"], key=_rank)
    table = Table(titles, [_cells(row, fields) for row in rows]).text()
    last = [*_failures(found), *_best_line(found), *_idle_line(found)]
    return "\n\n".join([_headline(found), table, *last])


_ORDER = ("finished", "pruned", "running", "waiting", "failed")


def _rank(row: Mapping[str, Any]) -> tuple[int, float, str]:
    return _ORDER.index(row["state"]), -(row["value"] or 0.0), row["trial"]


def _short(fields: list[str]) -> dict[str, str]:
    """Return column titles: the last part of a field's name, where that is unique."""
    last = Counter(field.rpartition(".")[2] for field in fields)
    return {
        field: word if last[word := field.rpartition(".")[2]] == 1 else field for field in fields
    }


def _cells(row: Mapping[str, Any], fields: Mapping[str, str]) -> list[str]:
    state = row["state"]
    if state == "running":
        state += f" since {row['since'].replace('T', ' ')}"
    if row["taken_over"]:
        state += f", taken over {row['taken_over']}x"
    given = row["parameters"]
    return [
        row["trial"],
        state,
        percent_text(row["value"]),
        percent_text(row.get("top1_accuracy")),
        f"{row['train_seconds']:.1f}" if "train_seconds" in row else "",
        *[text_of(given[field]) if field in given else "" for field in fields],
    ]


def _headline(found: Mapping[str, Any]) -> str:
    trials = found["trials"]
    counts = [f"{count} {state}" for state, count in trials.items() if count and state != "total"]
    line = (
        f"{found['folder']}: {number_of(trials['total'], 'trial')} of {found['recipe']} "
        f"({', '.join(counts)}), {duration_text(found['seconds'])} in all"
    )
    if "build_seconds" in found:
        line += f"; cache built once, {duration_text(found['build_seconds'])}"
    return line


def _failures(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{row['trial']}: {row['error']}" for row in found["rows"] if row["error"]]
    return ["\n".join(["Failed:", *lines])] if lines else []


def _best_line(found: Mapping[str, Any]) -> list[str]:
    row = found["best"]
    return [] if row is None else [f"Best: trial {row['trial']}, in {row['run']}"]


def _idle_line(found: Mapping[str, Any]) -> list[str]:
    return (
        []
        if found.get("working", True)
        else ["No worker is running: the same command resumes the sweep."]
    )


def best_text(found: Mapping[str, Any]) -> str:
    """Return the best trial, and the command that trains it again."""
    test = found.get("top1_accuracy")
    tested = "" if test is None else f", test top-1 {percent_text(test)} %"
    return "\n".join(
        [
            f"trial {found['trial']}: validation top-1 {percent_text(found['value'])} %{tested}",
            f"weights: {found['weights']}",
            f"recipe:  {found['run']}/recipe.toml",
            f"options: {shlex.join(found['options'])}",
            f"again:   {shlex.join(found['command'])}",
        ]
    )
