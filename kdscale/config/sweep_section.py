"""The table of a recipe that says which students are tried."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kdscale.config.base_section import ConfigSection, Positive, unknown

SEED, VIEWS = "seed", "views.count"
_VARIED = ("student", "loss", "ensemble")
"""Tables whose fields leave the cache as it is."""
_LARGEST_GRID = 10_000


class RangeSection(ConfigSection):
    """Numbers between two ends, both included; whole numbers where both ends are."""

    low: int | float = Field(description="the smallest")
    high: int | float = Field(description="the largest")
    log: bool = Field(False, description="draw evenly from the logarithm")
    step: int | float | None = Field(None, gt=0, description="between values; any when not set")

    @model_validator(mode="after")
    def _from_low_to_high(self) -> "RangeSection":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high is {self.high}: low must be the smaller")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log goes with a low above 0, and without step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def values(self) -> list[Any] | None:
        """All of them; None where any number will do."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [round(self.low + number * step, 12) for number in range(count)]


Dimension = tuple[Any, ...] | RangeSection
"""What a field may be: one of some values, or a number within a range."""


class SweepSection(ConfigSection):
    """Which students are tried from one cache, and by what they are compared."""

    sampler: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="grid: every combination; random: drawn; tpe: drawn where earlier trials did "
        "well (Bergstra et al. 2011)",
    )
    trials: Positive | None = Field(
        None, description="students in all; may grow later. All of a grid when not set"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="of what is drawn, not of the students")
    metric: Literal["validation_accuracy", "best_validation_accuracy"] = Field(
        "validation_accuracy",
        description="top-1 on the validation split, of the last evaluation or the best one; the "
        "test split never chooses",
    )
    pruner: Literal["none", "median", "successive_halving"] = Field(
        "none",
        description="which trials end early: none; median: those below the median of the others; "
        "successive_halving: all but the best quarter at epochs 1, 4, 16, ...",
    )
    prune_after_trials: Positive = Field(
        5, description="median only: trials that must have finished before one is ended"
    )
    prune_after_epochs: Positive = Field(1, description="epochs that each trial has in any case")
    hard_weight: Literal["recipe", "rest"] = Field(
        "recipe",
        description="rest: loss.hard_weight is what soft_weight and feature_weight leave of 1",
    )
    space: dict[str, Any] = Field(
        description="by dotted field, what `--set` may set of student, loss and ensemble, and "
        "views.count and seed (the student's): a list of values, or a table of low, high and, if "
        "wanted, log or step"
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
        """What each field may be."""
        return {
            field: tuple(values) if isinstance(values, list) else RangeSection(**values)
            for field, values in self.space.items()
        }

    @property
    def num_trials(self) -> int:
        """How many students there are to be."""
        return self.trials or self.grid_size()

    def grid_size(self) -> int:
        """Number of combinations."""
        return math.prod(len(_listed(values)) for values in self.dimensions.values())

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last field changing fastest."""
        fields = self.dimensions
        rows = product(*(_listed(values) for values in fields.values()))
        return [dict(zip(fields, row, strict=True)) for row in rows]

    def largest_views(self) -> int | None:
        """Views that the trials need; None where their number does not vary."""
        values = self.dimensions.get(VIEWS)
        if values is None:
            return None
        return int(values.high) if isinstance(values, RangeSection) else max(values)


def _listed(values: Dimension) -> list[Any]:
    return (values.values() or []) if isinstance(values, RangeSection) else list(values)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`loss.temperature = [...]` is two tables in TOML; a range is a table that has an end."""
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
            f"{field} decides what the teacher is asked, so each value would need a cache of its "
            f"own, and a sweep has one: vary {', '.join(_VARIED)}, {VIEWS} or {SEED}, and start a "
            "sweep for each cache"
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
    """The first thing wrong with a range, in a line."""
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
