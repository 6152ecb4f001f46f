"""Comparison of teacher and students after `kdscale run`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdscale.formatting import number_of, spread
from kdscale.report.run_results import TITLES, Kind
from kdscale.report.table import Table


@dataclass(frozen=True, slots=True)
class ResultsRow:
    """One kind of model in a comparison, with the results of its seeds."""

    label: Kind
    """Role of the models and source of their targets."""
    results: list[dict[str, Any]]
    """One `result.json` for each seed."""


def results_table(rows: Sequence[ResultsRow]) -> str:
    """Return the comparison of a recipe's models, with notes below."""
    header = [
        "model",
        "seeds",
        "top-1 %",
        "top-5 %",
        "precision %",
        "recall %",
        "parameters",
        "training s",
        "build s",
    ]
    table = Table(header, [_row(row) for row in rows]).text()
    notes = dict.fromkeys(
        note
        for row in rows
        for note in (*_initial_weights(row), *_moving_average(row), *_non_finite(row))
    )
    return "\n\n".join([table, *notes])


def _initial_weights(row: ResultsRow) -> Iterator[str]:
    """Return initial weights, where the recipe names pretrained ones."""
    for result in row.results:
        if begun := result.get("pretrained"):
            title, source = TITLES[row.label].capitalize(), begun["source"]
            if begun["sha256"] is None:
                yield f"{title}: trained from scratch, since {source} was not available."
            else:
                digest = f"SHA-256 of its tensors {begun['sha256']}"
                yield f"{title}: initialized from {source} ({digest})."


def _moving_average(row: ResultsRow) -> Iterator[str]:
    """Return top-1 of the moving average of the weights, where the recipe has `ema_decay`."""
    found = [r["ema_top1_accuracy"] for r in row.results if "ema_top1_accuracy" in r]
    if found:
        title, top1 = TITLES[row.label].capitalize(), spread([100 * one for one in found], 2)
        yield f"{title}: top-1 % of the moving average of its weights (ema_decay): {top1}."


def _non_finite(row: ResultsRow) -> Iterator[str]:
    """Return a note on samples without finite logits."""
    most = max((result.get("non_finite_samples", 0) for result in row.results), default=0)
    if most:
        title, images = TITLES[row.label].capitalize(), number_of(most, "test image")
        yield f"{title}: {images} with NaN or infinite logits, counted as wrong."


def _row(row: ResultsRow) -> list[str]:
    results = row.results
    shares = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
    return [
        TITLES[row.label],
        str(len(results)),
        *[_percent(results, name) for name in shares],
        f"{results[0]['num_parameters']:,}",
        _seconds(results, "train_seconds"),
        f"{results[0]['build_seconds']:.1f}" if "build_seconds" in results[0] else "",
    ]


def _percent(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [100 * r[key] for r in results if key in r]
    return spread(values, 2) if values else ""


def _seconds(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [r[key] for r in results if key in r]
    return spread(values, 1) if values else ""
