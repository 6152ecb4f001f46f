"""Tables that people read: Markdown, aligned so that it reads well in a terminal too."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdscale import config
from kdscale.report.runs import TITLES, Kind
from kdscale.wording import bytes_text, duration_text, markdown_table, number_of, spread


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
    notes = dict.fromkeys(note for row in rows for note in _beginnings(row))
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


_READING = (
    "Targets: {held_bytes:,} bytes of memory, an epoch in {num_windows} window(s); waited "
    "{waited_share:.2%} of the steps' time for them; {read_amplification:.2f} bytes read for each "
    "byte needed."
)


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
    parts = [
        markdown_table(["training step", "images/s"], rates),
        markdown_table(["ratio of times", "median", "smallest .. largest round"], ratios),
    ]
    if "reading" in found:
        parts.append(_READING.format(**found["reading"]))
    return "\n\n".join(parts)


_STUDENTS = {
    "supervised": "a student alone",
    "cached": "a student from the cache",
    "online": "a student with the teacher at every step",
}


def plan_table(found: Mapping[str, Any]) -> str:
    """What `kdscale cache plan` found."""
    views = number_of(found["num_views"], "view")
    untrained = "" if found["teacher_is_trained"] else ", which is not trained yet"
    title = (
        f"{found['recipe']}: {views} of {found['num_samples']:,} samples, "
        f"{found['num_classes']} classes, teacher {found['teacher']}{untrained}"
    )
    return "\n\n".join(
        [title, _encodings_table(found), _place_line(found), _times_table(found), _verdict(found)]
    )


def _encodings_table(found: Mapping[str, Any]) -> str:
    about = "cache" if found["teacher_is_trained"] else "cache, before compression"
    rows = [
        [name, str(size["bytes_per_target"]), bytes_text(size["bytes"]),
         f"<- {found['reason']}" if name == found["encoding"] else ""]
        for name, size in found["encodings"].items()
    ]  # fmt: skip
    return markdown_table(["encoding", "bytes an answer", about, ""], rows)


def _place_line(found: Mapping[str, Any]) -> str:
    share, path = found["share_built"], found["path"]
    if share == 1:
        return f"{path} fits and holds all of it: nothing is to be built."
    needed, free = bytes_text(found["needed_bytes"]), found["free_bytes"]
    line = f"{path}: {found['files']:,} files; at most {needed} to write"
    if free is None:  # a remote store does not say
        line += "."
    else:
        line += f", {bytes_text(free)} are free."
    if free is not None and found["needed_bytes"] > free:
        line += " IT DOES NOT FIT: choose another --cache-root or cache.encoding, or fewer views."
    return line + (f" {100 * share:.0f} % of it is there already." if share else "")


def _times_table(found: Mapping[str, Any]) -> str:
    build = [["the build, once for all students", duration_text(found["build_seconds"])]]
    epochs = number_of(found["epochs"], "epoch")
    if found["may_end_early"]:
        epochs = f"up to {epochs}"
    students = [
        [f"{name}, {epochs}", duration_text(seconds)]
        for kind, name in _STUDENTS.items()
        if (seconds := found[f"{kind}_student_seconds"]) is not None
    ]
    processes = found["num_processes"]
    where = f"{processes} such processes" if processes > 1 else "this machine"
    return markdown_table(["what", f"time, {where}"], build + students)


def _verdict(found: Mapping[str, Any]) -> str:
    students, epochs = found["break_even_students"], found["break_even_epochs"]
    if found["online_student_seconds"] is None:
        return "views.mode = 'fixed' has no online run that the cache could save."
    if students is None:
        return "The cache does not pay: a student with the teacher at every step takes no longer."
    if not found["build_seconds"]:
        return "The cache is paid for: every student saves the difference."
    saved = number_of(epochs, "epoch")
    if students == 1:
        return f"The cache has paid for itself with the first student, after {saved}."
    return (
        f"The cache has paid for itself with student {students}, or after {saved} of one student."
    )


def recipe_reference() -> str:
    """Every field of a recipe: type, default, meaning; `docs/recipes.md` is this text."""
    sections: dict[str, type[config.Section]] = {
        "top": config.Recipe,
        "data": config.Data,
        "views": config.Views,
        "cache": config.Cache,
        "one of cache.features": config.Feature,
        "teacher": config.Teacher,
        "student": config.Model,
        "teacher.input, student.input": config.Input,
        "teacher.train, student.train": config.TeacherTrain,
        "loss": config.Loss,
        "[loss.features]": config.FeatureLoss,
        "ensemble": config.Ensemble,
        "sweep": config.Sweep,
        "one of sweep.space": config.Range,
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
    if origin is list and arguments[0] is config.Feature:
        return "list of names or tables"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, config.Section):
        return "Section"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]
