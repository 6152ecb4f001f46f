"""A recipe: read, overridden, checked, written."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from kdscale.config.base_section import ConfigSection, unknown
from kdscale.config.data_sections import CacheSection, DataSection, EnsembleSection, ViewsSection
from kdscale.config.loss_sections import LossSection
from kdscale.config.model_sections import ModelSection, TeacherSection
from kdscale.config.recipe_paths import take_paths_from
from kdscale.config.sweep_section import SweepSection
from kdscale.encodings import FeaturesOnly
from kdscale.errors import ConfigError, UnsafePathError
from kdscale.formatting import shortened
from kdscale.regular_files import read_regular


class Recipe(ConfigSection):
    """A named experiment."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,  # with what is added, a file's name still
        description="Name of the recipe, of its caches and of its run folders.",
    )
    description: str = Field("", description="One line for `kdscale recipes`.")
    data: DataSection
    views: ViewsSection = ViewsSection()
    cache: CacheSection = CacheSection()
    teacher: TeacherSection
    student: ModelSection
    loss: LossSection = LossSection()
    ensemble: EnsembleSection = EnsembleSection()
    sweep: SweepSection | None = Field(None, description="Students that `kdscale sweep` trains.")

    @model_validator(mode="after")
    def _features_are_those_of_the_cache(self) -> "Recipe":
        stored = [one.module for one in self.cache.features]
        for one in self.loss.features:
            if one.teacher not in stored:
                raise ValueError(
                    f"loss.features compares with the teacher's {one.teacher!r}, cache.features "
                    f"names {', '.join(map(repr, stored)) or 'none'}: add it there"
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
    def _without_classifier_there_are_no_logits(self) -> "Recipe":
        if self.teacher.headless and self.cache.encoding != FeaturesOnly.name:
            raise ValueError(
                "teacher.options has num_classes = 0, so the teacher gives no logits, and "
                f"cache.encoding = {self.cache.encoding!r} stores them: set cache.encoding = "
                "'none' and "
                'cache.features = ["output"]'
            )
        if self.teacher.headless and self.teacher.train is not None:
            raise ValueError(
                "teacher.options has num_classes = 0, and [teacher.train] trains a classifier: "
                "leave out one of them"
            )
        if self.student.headless and (self.loss.hard_weight or self.loss.soft_weight):
            raise ValueError(
                "student.options has num_classes = 0, so the student gives no logits: set "
                "loss.hard_weight = 0 and loss.soft_weight = 0, and learn from loss.features"
            )
        return self

    @model_validator(mode="after")
    def _without_test_split_nothing_is_evaluated(self) -> "Recipe":
        if self.data.is_tested:
            return self
        needs = {
            "a student with a classifier": not self.student.headless,
            "[teacher.train]": self.teacher.train is not None,
            "data.validation": self.data.validation > 0,
        }
        for what in (name for name, is_set in needs.items() if is_set):
            raise ValueError(
                f"data.test_split is 'none', and {what} needs labelled test images: name their "
                "split, or train a student without a classifier on features alone "
                "(student.options = { num_classes = 0 })"
            )
        return self

    @model_validator(mode="after")
    def _compiled_teacher_gives_logits_alone(self) -> "Recipe":
        if not self.teacher.compile:
            return self
        if self.cache.features or self.cache.encoding == "embedding":
            stored = "features" if self.cache.features else "encoding = 'embedding'"
            raise ValueError(
                f"teacher.compile is true, and cache.{stored} stores outputs of modules inside the "
                "teacher, which a compiled model does not give: set teacher.compile = false"
            )
        return self

    @model_validator(mode="after")
    def _validation_split_decides(self) -> "Recipe":
        for name, section in (("teacher", self.teacher), ("student", self.student)):
            setting = section.train and section.train.needs_validation
            if setting and not self.data.validation:
                raise ValueError(
                    f"{name}.train has {setting}, which a validation split decides, never the "
                    "test split, and data.validation is 0: set the share of the training split to "
                    "hold out, such as data.validation = 0.1"
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
    """Return the names of the recipes that come with kdscale."""
    folder = files("kdscale") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a recipe, by name or path.

    Raises:
        ConfigError: the recipe is unknown; the message suggests the nearest name.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".toml" or os.path.lexists(path):
        return _file_text(path)
    if name_or_path in recipe_names():
        return (files("kdscale") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    raise ConfigError(unknown(f"no recipe {name_or_path!r}", name_or_path, recipe_names()))


def _file_text(path: Path) -> str:
    """Return the text of a recipe's file, without a byte order mark.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return read_regular(path, limit=_LARGEST_FILE).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe file {str(path)!r}: check the path, or see `kdscale recipes`"
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path} is a folder, wanted a recipe: name the file in it, such as "
            f"{path / 'recipe.toml'}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}), wanted a TOML file: save "
            "it as UTF-8"
        ) from None
    except (OSError, UnsafePathError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"recipe {shortened(str(path))} cannot be read: {reason}") from None


_LARGEST_FILE = 4 << 20


def load_recipe(
    name_or_path: str,
    overrides: Sequence[str] = (),
    data: str | None = None,
    log_with: Sequence[str] = (),
) -> Recipe:
    """Read a recipe, apply `section.field=value` overrides and check everything.

    Args:
        name_or_path: a name of `recipe_names()` or a TOML file.
        overrides: arguments of `--set`; values are TOML, bare words count as text.
        data: a local copy of the data set, in place of `data.source`.
        log_with: trackers of all trainings, in place of the recipe's.

    Raises:
        ConfigError: unknown recipe or key, wrong type or range; every problem is listed.
    """
    return parse_recipe(read_table(name_or_path, overrides, data, log_with), name_or_path)


def read_table(
    name_or_path: str,
    overrides: Sequence[str] = (),
    data: str | None = None,
    log_with: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a recipe's table as it is written, with overrides and without defaults.

    Args:
        name_or_path: a name of `recipe_names()` or a TOML file.
        overrides: arguments of `--set`.
        data: a local copy of the data set, in place of `data.source`.
        log_with: trackers of all trainings, in place of the recipe's.

    Raises:
        ConfigError: the recipe is unknown or no TOML, or an override is malformed.
    """
    try:
        table = parse_toml(recipe_text(name_or_path))
    except TomlError as error:
        raise ConfigError(f"{name_or_path} is not valid TOML: {error}") from None
    table.setdefault("name", Path(name_or_path).stem)
    folder = Path(name_or_path).expanduser().parent
    if folder != Path():  # paths stay as they are written
        take_paths_from(table, folder)
    for override in overrides:
        _apply(table, override)
    if data is not None:
        set_local_data(table, data)
    set_trackers(table, log_with)
    _check_depth(table, name_or_path)
    return table


def _check_depth(table: dict[str, Any], origin: str) -> None:
    """Refuse tables that are nested so deeply that later recursion would fail."""
    level: list[Any] = [table]
    for _ in range(_DEEPEST):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return
    raise ConfigError(
        f"{shortened(origin)}: tables or lists are nested more than {_DEEPEST} deep, where no "
        "recipe has more than 10: remove what is nested"
    )


_DEEPEST = 50


_ENDLESS_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++\s*+\.\s*+){200}""")


class TomlError(ValueError):
    """Raised for a text that is not TOML, with a message of one line."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return a TOML document as a table.

    Raises:
        TomlError: the text is no TOML, or Python cannot represent a value.
    """
    if _ENDLESS_KEY.search(text):  # for which tomllib would take minutes
        raise TomlError("a key has more than 200 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TomlError("its lists or tables are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and an integer of more than 4,300 digits
        raise TomlError(shortened(str(error))) from None


def parse_recipe(table: Mapping[str, object], origin: str) -> Recipe:
    """Return the recipe of a table; `origin` names it in messages."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, origin))) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML, which `load_recipe` reads back to an equal one.

    Trackers (`log_with`) are left out: a run is the same with others.
    """
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return every dotted field in which two nested tables differ: (field, ours, theirs)."""
    left, right = dict(flatten(ours)), dict(flatten(theirs))
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables with their dotted names."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_field(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted field of a table, and create missing tables on the way.

    Raises:
        ConfigError: a part of the dotted name is a value, not a table.
    """
    *sections, field = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key}: {section!r} is a value, not a section")
    table[field] = value


def set_local_data(table: dict[str, Any], data: str) -> None:
    """Put a local copy of the data set in a recipe's table, which then has no revision of the hub.

    Raises:
        ConfigError: `data` is a value, not a section.
    """
    set_field(table, "data.source", data)
    table["data"].pop("revision", None)


def set_trackers(table: dict[str, Any], names: Sequence[str]) -> None:
    """Set the trackers of all trainings in a recipe's table, if names are given."""
    for model in ("teacher", "student") if names else ():
        section = table.get(model)
        if isinstance(section, dict) and isinstance(section.get("train"), dict):
            section["train"]["log_with"] = list(names)


def _apply(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {shortened(override)!r}: write section.field=value")
    try:
        value = parse_toml(f"value = {text.strip()}")["value"]
    except TomlError:
        value = text.strip()
    try:
        set_field(table, key.strip(), value)
    except ConfigError as error:
        raise ConfigError(f"--set {shortened(override)!r}: {error}") from None


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
            where = f"{shortened(field or 'recipe')}{shortened(got)}"
            yield f"{origin}: {where}: {message[0].lower()}{shortened(message[1:], 1000)}"


def _fields_at(location: Sequence[str]) -> list[str]:
    """Return the known keys of the table at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if part.isdigit():  # one of a list of tables
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
