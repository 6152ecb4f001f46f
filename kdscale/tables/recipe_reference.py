"""`docs/recipes.md`: every field of a recipe."""

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdscale import config
from kdscale.models.registry import FORMS, known_models
from kdscale.report.table import Table


def recipe_reference() -> str:
    """Return type, default and meaning of every field of a recipe: `docs/recipes.md`."""
    sections: dict[str, type[config.ConfigSection]] = {
        "top": config.Recipe,
        "data": config.DataSection,
        "views": config.ViewsSection,
        "cache": config.CacheSection,
        "one of cache.features": config.FeatureSection,
        "teacher": config.TeacherSection,
        "student": config.ModelSection,
        "teacher.input, student.input": config.InputSection,
        "teacher.train, student.train": config.TeacherTrainSection,
        "loss": config.LossSection,
        "[loss.features]": config.FeatureLossSection,
        "ensemble": config.EnsembleSection,
        "sweep": config.SweepSection,
        "one of sweep.space": config.RangeSection,
    }
    parts = ["# Recipes, field by field", "", *_RECIPE_WORDS]
    for title, section in sections.items():
        heading = "At the top" if title == "top" else f"[{title}]"
        parts += ["", f"## {heading}", "", _fields_table(section), *_BELOW.get(title, [])]
    return "\n".join(parts) + "\n"


_RECIPE_WORDS = [
    "Printed by `kdscale recipes --reference`. An unknown key is an error;",
    "`--set section.field=value` changes any field, and every run stores its resolved recipe.",
    "Relative paths are those beside the recipe's file, where something lies there, else those of",
    "the current folder; of `--set` and `--data`, those of the current folder.",
    "`~` is the home folder.",
]


_BELOW = {
    "teacher": ["", f"Models: {FORMS}, or", f"{', '.join(known_models())}."],
    "teacher.input, student.input": [
        "",
        "Not set: the input that the weights state; for a student without weights, the teacher's",
        "input, including its size.",
    ],
}


def _fields_table(section: type[config.ConfigSection]) -> str:
    rows = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(
            field.annotation, config.ConfigSection
        ):
            continue
        optional = field.is_required() or field.get_default() is None
        default = "" if optional else f"`{json.dumps(field.get_default())}`"
        rows.append([f"`{name}`", _type_name(field.annotation), default, field.description or ""])
    rows = [row for row in rows if "Section" not in row[1]]
    header = ["field", "type", "default", "meaning"]
    return Table(header, rows, numbers=False).text()


def _type_name(annotation: Any) -> str:
    """Return a type as users know it: `list of text`, `"adam" or "sgd"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    if origin is list and arguments[0] is config.FeatureSection:
        return "list of names or tables"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, config.ConfigSection):
        return "Section"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]
