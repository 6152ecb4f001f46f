"""The results of a report as CSV: a row for each run, for spreadsheets and scripts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kdscale.report.model import Comparison
from kdscale.report.run_results import Run
from kdscale.report.table import Table

_METRICS = (
    "model", "top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall",
    "calibration_error", "agreement", "non_finite_samples", "tied_samples",
    "knn_top1_accuracy", "probe_top1_accuracy", "best_validation_accuracy", "num_parameters",
    "flops", "weight_bytes", "train_seconds", "build_seconds", "epochs", "steps",
    "num_processes", "device",
)  # fmt: skip


def render_csv(studies: Sequence[Comparison]) -> str:
    """Return all runs; shares in 0..1, times in seconds, a trial's parameters by field name."""
    rows = [row for study in studies for row in _rows(study)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(names, [[_text(row.get(name)) for name in names] for row in rows]).csv()


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _rows(study: Comparison) -> list[dict[str, Any]]:
    rows = [
        _row(run, entry.setting, {})
        for entry in study.entries
        if not entry.is_trial
        for run in entry.runs
    ]
    for sweep in study.sweeps:
        rows += [_row(trial.run, "", trial.parameters) for trial in sweep.trials]
    return rows


def _row(run: Run, setting: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "folder": str(run.folder),
        "recipe": run.recipe.get("name", ""),
        "kind": run.kind,
        "setting": setting,
        "seed": run.seed,
        "trial": run.trial or "",
        "finished": run.finished,
        "test_split": run.test_split,
        **{name: run.metrics.get(name, "") for name in _METRICS},
    }
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
