"""Section of a recipe for sweeps."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kdscale.config.base_section import ConfigSection, Positive, unknown

SEED, VIEWS = "seed", "views.count"
_VARIED = ("student", "loss", "ensemble")
"""Tables whose fields do not change the cache."""
_LARGEST_GRID = 10_000


class RangeSection(ConfigSection):
    """A range of numbers with both ends included; whole numbers if both ends are."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    log: bool = Field(False, description="true: draw uniformly from the logarithm.")
    step: int | float | None = Field(
        None,
        gt=0,
        description="Distance between values. Not set: any number, or every whole number between "
        "whole ends.",
    )

    @model_validator(mode="after")
    def _from_low_to_high(self) -> "RangeSection":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high is {self.high}: low must be the smaller")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log goes with a low above 0, and without step")
        return self

    @property
    def is_whole(self) -> bool:
        """Return whether its values are whole numbers."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def values(self) -> list[Any] | None:
        """Return all its values; None if any number between the ends is allowed."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [round(self.low + number * step, 12) for number in range(count)]


Dimension = tuple[Any, ...] | RangeSection
"""Values of a field: a list, or a range of numbers."""


class SweepSection(ConfigSection):
    """Students that a sweep trains from one cache, and the metric that compares them."""

    sampler: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="Choice of the trials. `grid`: every combination. `random`: drawn uniformly. "
        "`tpe`: drawn near the best earlier trials (Bergstra et al. 2011).",
    )
    trials: Positive | None = Field(
        None, description="Number of trials, which may grow later. Not set: the whole grid."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=1 << 32,
        description="Seed of the sampler; the students' own seed is the field `seed` of `space`.",
    )
    metric: Literal["validation_accuracy", "best_validation_accuracy"] = Field(
        "validation_accuracy",
        description="Value to maximise: top-1 accuracy on the validation split, of the last or of"
        " the best evaluation. The test split never chooses.",
    )
    pruner: Literal["none", "median", "successive_halving"] = Field(
        "none",
        description="Rule that ends trials early. `median`: below the median of the others. "
        "`successive_halving`: not among the best quarter at epochs 1, 4, 16, ...",
    )
    prune_after_trials: Positive = Field(
        5,
        description="Number of finished trials before the first one is ended early. Used by "
        "`median` only.",
    )
    prune_after_epochs: Positive = Field(
        1, description="Number of epochs before a trial can be ended early."
    )
    hard_weight: Literal["recipe", "rest"] = Field(
        "recipe",
        description="`rest`: set `loss.hard_weight` to 1 minus `soft_weight` and `feature_weight`.",
    )
    space: dict[str, Any] = Field(
        description="Search space: by dotted field of student, loss and ensemble, `views.count` "
        "or `seed`, a list of values, or a table of `low`, `high` and optionally "
        "`log` or `step`."
    )

    @field_validator("space", mode="before")
    @classmethod
    def _by_dotted_field(cls, space: object) -> object:
        if not isinstance(space, Mapping) or not space:
            raise ValueError('wanted fields: { "loss.temperature" = [1.0, 2.0, 4.0] }')
        flat = dict(_flatten(space))
        for field, values in flat.items():
            _check_field(field)
            _check_values(field, values)
        return flat

    @model_validator(mode="after")
    def _is_countable(self) -> "SweepSection":
        if self.sampler != "grid":
            if self.trials is None:
                raise ValueError(f"trials is not set, and sampler {self.sampler!r} needs it")
            return self
        for field, values in self.dimensions.items():
            if isinstance(values, RangeSection) and values.values() is None:
                raise ValueError(
                    f"space: {field} is a range of any numbers, a grid wants a list or a step: "
                    "give one, or set sampler = 'random' or 'tpe'"
                )
        if (size := self.grid_size()) > _LARGEST_GRID or size < (self.trials or 1):
            raise ValueError(
                f"the grid has {size:,} combinations, wanted {self.trials or 1} (trials) to "
                f"{_LARGEST_GRID:,}: change space or trials, or set sampler = 'random' or 'tpe'"
            )
        return self

    @model_validator(mode="after")
    def _rest_is_left_to_the_labels(self) -> "SweepSection":
        if self.hard_weight == "rest" and any(
            field in self.space for field in ("loss.hard_weight", "loss")
        ):
            raise ValueError(
                "hard_weight is 'rest', what the other weights leave of 1, and space names "
                "loss.hard_weight too: leave one of them out"
            )
        return self

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """Return the values of each field."""
        return {
            field: tuple(values) if isinstance(values, list) else RangeSection(**values)
            for field, values in self.space.items()
        }

    @property
    def num_trials(self) -> int:
        """Return the number of students."""
        return self.trials or self.grid_size()

    def grid_size(self) -> int:
        """Return the number of combinations."""
        return math.prod(len(_listed(values)) for values in self.dimensions.values())

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, with the last field changing fastest."""
        fields = self.dimensions
        rows = product(*(_listed(values) for values in fields.values()))
        return [dict(zip(fields, row, strict=True)) for row in rows]

    def largest_views(self) -> int | None:
        """Return the largest number of views of a trial; None if it does not vary."""
        values = self.dimensions.get(VIEWS)
        if values is None:
            return None
        return int(values.high) if isinstance(values, RangeSection) else max(values)


def _listed(values: Dimension) -> list[Any]:
    return (values.values() or []) if isinstance(values, RangeSection) else list(values)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted fields: `loss.temperature = [...]` is two tables in TOML, a range is one."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_field(field: str) -> None:
    table = field.partition(".")[0]
    if field in (SEED, VIEWS) or table in _VARIED:
        return
    if table in ("data", "teacher", "views", "cache"):
        raise ValueError(
            f"{field} changes the teacher's outputs, so each value would need a cache of its own, "
            f"and a sweep has one: vary {', '.join(_VARIED)}, {VIEWS} or {SEED}, and start a sweep "
            "for each cache"
        )
    known = [*_VARIED, VIEWS, SEED]
    raise ValueError(unknown(f"{field!r} is no field that a sweep varies", table, known))


def _check_values(field: str, values: object) -> None:
    if isinstance(values, Mapping):
        try:
            values = RangeSection.model_validate(dict(values)).model_dump()
        except ValidationError as error:
            raise ValueError(f"{field}: {_first(error)}") from None
        ends = [values["low"], values["high"]]
    elif isinstance(values, list) and values:
        ends = values
        if any(one in values[:number] for number, one in enumerate(values)):
            raise ValueError(f"{field} = {values!r} names a value twice")
    else:
        raise ValueError(f"{field} = {values!r}: wanted a list of values, or {{ low, high }}")
    smallest = {SEED: 0, VIEWS: 1}.get(field)
    if smallest is not None and not all(
        type(one) is int and smallest <= one < 1 << 63 for one in ends
    ):
        raise ValueError(f"{field}: wanted whole numbers, {smallest} or more and below 2**63")


def _first(error: ValidationError) -> str:
    """Return the first error of a range in one line."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return unknown(f"unknown key {name!r}", name, list(RangeSection.model_fields))
    if problem["type"] == "missing":
        return f"{problem['loc'][-1]} is missing: wanted low and high"
    if problem["loc"]:
        name = str(problem["loc"][0])
        wanted = {"log": "true or false", "step": "a number above 0"}.get(name, "a number")
        return f"{name} is {problem['input']!r}: wanted {wanted}"
    return problem["msg"].removeprefix("Value error, ")
