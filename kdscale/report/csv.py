"""The report's numbers as CSV: a line a run, for spreadsheets and scripts."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from kdscale.report.model import Study
from kdscale.report.runs import Run

_METRICS = (
    "model",
    "top1_accuracy",
    "top5_accuracy",
    "macro_precision",
    "macro_recall",
    "calibration_error",
    "agreement",
    "non_finite_samples",
    "tied_samples",
    "best_validation_accuracy",
    "num_parameters",
    "weight_bytes",
    "train_seconds",
    "build_seconds",
    "epochs",
    "steps",
    "num_processes",
    "device",
)


def render_csv(studies: Sequence[Study]) -> str:
    """All runs; shares in 0..1, times in seconds, a trial's parameters under their names."""
    rows = [row for study in studies for row in _rows(study)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in names])
    writer.writerows([_cell(row.get(name, "")) for name in names] for row in rows)
    return text.getvalue()


_FORMULA = ("=", "+", "-", "@")
"""How a cell begins that a spreadsheet calculates."""
_ONE_LINE = str.maketrans("\t\r\n", "   ")


def _cell(value: object) -> object:
    """A value as a spreadsheet shows it: text that it would run as a formula begins with '."""
    if not isinstance(value, str):
        return value
    text = value.translate(_ONE_LINE)
    is_formula = text.lstrip().startswith(_FORMULA) and not _is_number(text)
    return f"'{text}" if is_formula else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(study: Study) -> list[dict[str, Any]]:
    rows = [
        _row(study, run, entry.setting, {})
        for entry in study.entries
        if not entry.is_trial
        for run in entry.runs
    ]
    for sweep in study.sweeps:
        rows += [_row(study, trial.run, "", trial.parameters) for trial in sweep.trials]
    return rows


def _row(study: Study, run: Run, setting: str, parameters: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "folder": str(run.folder),
        "recipe": run.recipe.get("name", ""),
        "kind": run.kind,
        "setting": setting,
        "seed": run.seed,
        "trial": run.trial or "",
        "finished": run.finished,
    }
    row["test_split"] = run.test_split
    row |= {name: run.metrics.get(name, "") for name in _METRICS}
    for batch in (1, 64):
        latency = run.evaluation.latency.get(batch) if run.evaluation else None
        row[f"latency_median_seconds_batch{batch}"] = latency.median_seconds if latency else ""
        row[f"latency_p95_seconds_batch{batch}"] = latency.p95_seconds if latency else ""
        activations = run.evaluation.activation_bytes.get(batch, "") if run.evaluation else ""
        row[f"peak_activation_bytes_batch{batch}"] = activations
    varied = {name: value for name, value in parameters.items() if name != "seed"}
    return row | {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in varied.items()
    }
