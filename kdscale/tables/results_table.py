"""Teacher and students side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdscale.formatting import markdown_table, number_of, spread
from kdscale.report.run_results import TITLES, Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of model in a comparison, with the results of its seeds."""

    label: Kind
    results: list[dict[str, Any]]


def results_table(rows: Sequence[Row]) -> str:
    """The comparison of a recipe's models."""
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
    table = markdown_table(header, [_row(row) for row in rows])
    notes = dict.fromkeys(note for row in rows for note in (*_beginnings(row), *_unclear(row)))
    return "\n\n".join([table, *notes])


def _beginnings(row: Row) -> Iterator[str]:
    """What the models of a row began from, where their recipe names pretrained weights."""
    for result in row.results:
        if begun := result.get("pretrained"):
            title, source = TITLES[row.label].capitalize(), begun["source"]
            if begun["sha256"] is None:
                yield f"{title}: trained from scratch, since {source} was not to be had."
            else:
                yield f"{title}: began from {source} (SHA-256 of its tensors {begun['sha256']})."


def _unclear(row: Row) -> Iterator[str]:
    """Samples of which a row's models say nothing."""
    most = max((result.get("non_finite_samples", 0) for result in row.results), default=0)
    if most:
        title, images = TITLES[row.label].capitalize(), number_of(most, "test image")
        yield f"{title}: {images} with NaN or infinite logits, counted as wrong."


def _row(row: Row) -> list[str]:
    results = row.results
    shares = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
    return [
        TITLES[row.label],
        str(len(results)),
        *[spread([100 * r[name] for r in results], 2) for name in shares],
        f"{results[0]['num_parameters']:,}",
        _seconds(results, "train_seconds"),
        f"{results[0]['build_seconds']:.1f}" if "build_seconds" in results[0] else "",
    ]


def _seconds(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [r[key] for r in results if key in r]
    return spread(values, 1) if values else ""
