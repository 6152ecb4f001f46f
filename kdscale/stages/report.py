"""Tables that people read: Markdown, aligned so that it reads well in a terminal too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdscale import config

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


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> str:
    """A Markdown table whose columns line up.

    Args:
        header: titles of the columns.
        rows: one cell a column.
        numbers: all columns but the first hold numbers and line up on the right.
    """
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    right = [numbers and column > 0 for column in range(len(header))]
    rule = ["-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)]
    lines.insert(1, rule)
    return "\n".join(_table_line(line, widths, right) for line in lines)


def _table_line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    aligned = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(aligned)} |"


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
    "views": "making the views alone",
}
_RATIOS = {
    "supervised_over_plain_time": "kdscale's loop / bare loop",
    "cached_over_staged_time": "reading targets: cached / in memory",
    "cached_over_supervised_time": "cached / supervised",
    "online_over_cached_time": "online / cached",
    "views_over_supervised_time": "making the views / supervised",
    "build_over_bare_teacher_time": "build / bare teacher loop",
}


def bench_table(found: Mapping[str, Any]) -> str:
    """What `kdscale bench` found."""
    rates = [
        [label, f"{found[f'{name}_images_per_second']:,.0f}"]
        for name, label in _STEPS.items()
        if f"{name}_images_per_second" in found  # not in what older versions measured
    ]
    ratios = [
        [label, f"{found[name]:.3f}", "{:.3f} .. {:.3f}".format(*found[f"{name}_spread"])]
        for name, label in _RATIOS.items()
        if name in found
    ]
    return "\n\n".join(
        [
            markdown_table(["training step", "images/s"], rates),
            markdown_table(["ratio of times", "median", "smallest .. largest round"], ratios),
        ]
    )


def recipe_reference() -> str:
    """Every field of a recipe: type, default, meaning; `docs/recipes.md` is this text."""
    sections: dict[str, type[config.Section]] = {
        "top": config.Recipe,
        "data": config.Data,
        "views": config.Views,
        "cache": config.Cache,
        "teacher": config.Teacher,
        "student": config.Model,
        "teacher.input, student.input": config.Input,
        "teacher.train, student.train": config.TeacherTrain,
        "loss": config.Loss,
        "ensemble": config.Ensemble,
    }
    parts = ["# Recipes, field by field", "", *_RECIPE_WORDS]
    for title, section in sections.items():
        heading = "At the top" if title == "top" else f"[{title}]"
        parts += ["", f"## {heading}", "", _fields_table(section)]
    return "\n".join(parts) + "\n"


_RECIPE_WORDS = [
    "Printed by `kdscale recipes --reference`. An unknown key is an error;",
    "`--set section.field=value` changes any field, and every run keeps its resolved recipe.",
]


def _fields_table(section: type[config.Section]) -> str:
    rows = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            continue
        optional = field.is_required() or field.get_default() is None
        default = "" if optional else f"`{json.dumps(field.get_default())}`"
        rows.append([f"`{name}`", _type_name(field.annotation), default, field.description or ""])
    rows = [row for row in rows if "Section" not in row[1]]
    header = ["field", "type", "default", "meaning"]
    return markdown_table(header, rows, numbers=False)


def _type_name(annotation: Any) -> str:
    """`int`, `list of text`, `"adam" or "sgd"`, ...: as a recipe's writer sees it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, config.Section):
        return "Section"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]
