"""Tables that people read: Markdown, aligned so that it reads well in a terminal too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

_TITLES = {
    "teacher": "teacher",
    "alone": "student alone",
    "cache": "student, cached teacher",
    "online": "student, online teacher",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of model in a comparison, with the results of its seeds."""

    label: str
    """A key of `_TITLES`."""
    results: list[dict[str, Any]]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, the rest to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = [f"{'-' * w}" if c == 0 else f"{'-' * (w - 1)}:" for c, w in enumerate(widths)]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            _aligned(cell, w, c) for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


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
    return markdown_table(header, [_row(row) for row in rows])


def _row(row: Row) -> list[str]:
    results = row.results
    shares = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
    return [
        _TITLES[row.label],
        str(len(results)),
        *[spread([100 * r[name] for r in results], 2) for name in shares],
        f"{results[0]['num_parameters']:,}",
        _seconds(results, "train_seconds"),
        f"{results[0]['build_seconds']:.1f}" if "build_seconds" in results[0] else "",
    ]


def _seconds(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [r[key] for r in results if key in r]
    return spread(values, 1) if values else ""


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation over more than one value: `71.89 ± 0.21`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def metrics_table(results: Sequence[Mapping[str, Any]]) -> str:
    """What `kdscale evaluate` found."""
    header = ["run", "model", "top-1 %", "top-5 %", "precision %", "recall %", "parameters"]
    shares = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
    rows = [
        [r["run"], r["model"], *[f"{100 * r[s]:.2f}" for s in shares], f"{r['num_parameters']:,}"]
        for r in results
    ]
    return markdown_table(header, rows)


_STEPS = {
    "plain": "bare PyTorch loop, labels",
    "supervised": "kdscale, labels",
    "staged": "kdscale, targets in memory",
    "cached": "kdscale, targets from the cache",
    "online": "kdscale, teacher at every step",
}
_RATIOS = {
    "supervised_over_plain_time": "kdscale's loop / bare loop",
    "cached_over_staged_time": "reading targets: cached / in memory",
    "cached_over_supervised_time": "cached / supervised",
    "online_over_cached_time": "online / cached",
    "build_over_bare_teacher_time": "build / bare teacher loop",
}


def bench_table(found: Mapping[str, Any]) -> str:
    """What `kdscale bench` found."""
    rates = [
        [label, f"{found[f'{name}_images_per_second']:,.0f}"] for name, label in _STEPS.items()
    ]
    ratios = [
        [label, f"{found[name]:.3f}", "{:.3f} .. {:.3f}".format(*found[f"{name}_spread"])]
        for name, label in _RATIOS.items()
    ]
    return "\n\n".join(
        [
            markdown_table(["training step", "images/s"], rates),
            markdown_table(["ratio of times", "median", "smallest .. largest round"], ratios),
        ]
    )
