"""A recipe: read, overridden, checked, written."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from kdscale.config.loss import Loss
from kdscale.config.models import Model, Teacher
from kdscale.config.section import Section, unknown
from kdscale.config.sections import Cache, Data, Ensemble, Views
from kdscale.config.sweep import Sweep
from kdscale.errors import ConfigError


class Recipe(Section):
    """A named experiment."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names caches and run folders"
    )
    description: str = Field("", description="one line for `kdscale recipes`")
    data: Data
    views: Views = Views()
    cache: Cache = Cache()
    teacher: Teacher
    student: Model
    loss: Loss = Loss()
    ensemble: Ensemble = Ensemble()
    sweep: Sweep | None = Field(None, description="which students `kdscale sweep` tries")

    @model_validator(mode="after")
    def _features_are_those_of_the_cache(self) -> "Recipe":
        kept = [one.module for one in self.cache.features]
        for one in self.loss.features:
            if one.teacher not in kept:
                raise ValueError(
                    f"loss.features compares with the teacher's {one.teacher!r}, cache.features "
                    f"names {', '.join(map(repr, kept)) or 'none'}: add it there"
                )
        if self.loss.features and self.ensemble.caches:
            raise ValueError(
                "ensemble.caches names further teachers, of whose features there is no mean: leave "
                "out loss.features"
            )
        if self.loss.features and self.views.mode == "fixed":
            raise ValueError(
                "views.mode is 'fixed', where the teacher's features are of other pictures than "
                "the student's: leave out loss.features"
            )
        return self

    @model_validator(mode="after")
    def _validation_split_decides(self) -> "Recipe":
        for name, section in (("teacher", self.teacher), ("student", self.student)):
            asked = section.train and section.train.asks_for_validation
            if asked and not self.data.validation:
                raise ValueError(
                    f"{name}.train has {asked}, which a validation split decides, never the test "
                    "split, and data.validation is 0: set the share of the training split to hold "
                    "out, such as data.validation = 0.1"
                )
        return self

    @model_validator(mode="after")
    def _mean_is_one_of_what_is_compared(self) -> "Recipe":
        raw = self.loss.kind == "mse" and not self.loss.standardize and self.loss.soft_weight > 0
        if raw and self.ensemble.caches and self.ensemble.mean == "probabilities":
            raise ValueError(
                "loss.kind 'mse' compares logits as they are, ensemble.mean is 'probabilities', of "
                "which logits follow only up to a constant: set ensemble.mean = 'logits', or "
                "loss.standardize = true"
            )
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with kdscale."""
    folder = files("kdscale") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_text(name_or_path: str) -> str:
    """The TOML text of a recipe, by name or path.

    Raises:
        ConfigError: there is no such recipe; the nearest name is suggested.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(
                f"no recipe file {name_or_path!r}: check the path, or see `kdscale recipes`"
            )
        return path.read_text(encoding="utf-8")
    if name_or_path in recipe_names():
        return (files("kdscale") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    raise ConfigError(unknown(f"no recipe {name_or_path!r}", name_or_path, recipe_names()))


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), data: str | None = None
) -> Recipe:
    """Read a recipe, apply `section.field=value` overrides and check everything.

    Args:
        name_or_path: a name of `recipe_names()` or a TOML file.
        overrides: as after `--set`; values are TOML, bare words count as text.
        data: a local copy of the data set, in place of `data.source`.

    Raises:
        ConfigError: unknown recipe or key, wrong type or range; every problem is listed.
    """
    return parse_recipe(read_table(name_or_path, overrides, data), name_or_path)


def read_table(
    name_or_path: str, overrides: Sequence[str] = (), data: str | None = None
) -> dict[str, Any]:
    """A recipe's table as it is written, with overrides applied: what is not set is not in it.

    Raises:
        ConfigError: unknown recipe, no TOML, or an override that is none.
    """
    try:
        table = tomllib.loads(recipe_text(name_or_path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name_or_path} is not valid TOML: {error}") from None
    table.setdefault("name", Path(name_or_path).stem)
    for override in overrides:
        _apply(table, override)
    if data is not None:
        set_field(table, "data.source", data)
    return table


def parse_recipe(table: Mapping[str, object], origin: str) -> Recipe:
    """A recipe from a table; `origin` names it in messages."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, origin))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` reads it back to an equal one."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Every dotted field in which two nested tables differ: (field, ours, theirs)."""
    left, right = dict(_flatten(ours)), dict(_flatten(theirs))
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_field(table: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted field of a table, and tables on the way where there are none.

    Raises:
        ConfigError: there is a value on the way.
    """
    *sections, field = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key}: {section!r} is a value, not a section")
    table[field] = value


def _apply(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: write section.field=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    try:
        set_field(table, key.strip(), value)
    except ConfigError as error:
        raise ConfigError(f"--set {override!r}: {error}") from None


def _problems(error: ValidationError, origin: str) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        field = ".".join(location)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            yield unknown(f"{origin}: unknown key {field!r}", location[-1], known)
        elif problem["type"] == "missing":
            yield f"{origin}: {field!r} is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], Mapping) else f" is {problem['input']!r}"
            yield f"{origin}: {field or 'recipe'}{got}: {message[0].lower()}{message[1:]}"


def _fields_at(location: Sequence[str]) -> list[str]:
    """Known keys of the table at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if part.isdigit():  # one of a list of tables
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
