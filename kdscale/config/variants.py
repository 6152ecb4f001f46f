"""Recipes of a sweep's trials: the sweep's recipe with some fields replaced."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from kdscale.config.loss_sections import LossSection
from kdscale.config.recipe import Recipe, parse_recipe, set_field
from kdscale.config.sweep_section import SEED, VIEWS, Dimension, RangeSection, SweepSection
from kdscale.errors import ConfigError
from kdscale.formatting import shortened


@dataclass(frozen=True, slots=True)
class Variants:
    """A recipe that has a sweep, and the recipes of its trials."""

    table: Mapping[str, Any]
    """Recipe as written, without defaults, since some depend on the fields that vary."""
    origin: str
    """Name of the recipe in messages."""

    @property
    def recipe(self) -> Recipe:
        """Return the recipe itself."""
        return parse_recipe(self.table, self.origin)

    @property
    def sweep(self) -> SweepSection:
        """Return the recipe's `[sweep]`.

        Raises:
            ConfigError: the recipe has none, or no validation split.
        """
        recipe = self.recipe
        if recipe.sweep is None:
            raise ConfigError(
                f"{self.origin} has no [sweep.space]: name what varies, for example "
                "--set sweep.space.loss.temperature=[1.0,2.0,4.0]"
            )
        if not recipe.data.validation:
            raise ConfigError(
                "data.validation is 0, and a sweep chooses by the validation split, since a test "
                "split that chooses no longer tests: hold out a share, for example "
                "--set data.validation=0.1"
            )
        if recipe.views.count == "all" and VIEWS in recipe.sweep.space:
            raise ConfigError(
                'views.count is "all", which numbers views otherwise than a count does: set it to '
                "a number, or take it out of sweep.space"
            )
        return recipe.sweep

    def trial(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a trial, without `[sweep]`.

        Raises:
            ConfigError: the recipe refuses values, which the message names.
        """
        table = deepcopy(dict(self.table))
        rest = table.pop("sweep", {}).get("hard_weight") == "rest"
        origin = f"{self.origin} with {in_words(values)}"
        for field, value in values.items():
            if field != SEED:
                set_field(table, field, deepcopy(value))
        if rest:
            _leave_the_rest(table.setdefault("loss", {}), origin)
        return parse_recipe(table, origin)

    def check_among(self, values: Mapping[str, Any]) -> None:
        """Check values that come from a database against the search space.

        Raises:
            ConfigError: a field or its value is not in the recipe's `sweep.space`.
        """
        dimensions = self.sweep.dimensions
        for field, value in values.items():
            if field not in dimensions or not _is_among(value, dimensions[field]):
                raise ConfigError(
                    f"{self.origin}: a trial has {shortened(field)} = {shortened(repr(value))}, "
                    "which is not in sweep.space: its database was changed, or is of another sweep"
                )

    def widest(self) -> Recipe:
        """Return the recipe whose cache serves all trials: the one with the most views."""
        table, views = deepcopy(dict(self.table)), self.sweep.largest_views()
        table.pop("sweep")
        if views is not None:
            set_field(table, VIEWS, views)
        return parse_recipe(table, self.origin)

    def samples(self) -> list[dict[str, Any]]:
        """Return a few trials that cover each listed value, and both ends of each range."""
        choices = {
            field: (values.low, values.high) if isinstance(values, RangeSection) else values
            for field, values in self.sweep.dimensions.items()
        }
        most = max(map(len, choices.values()))
        return [
            {field: values[number % len(values)] for field, values in choices.items()}
            for number in range(most)
        ]


def _is_among(value: object, dimension: Dimension) -> bool:
    """Return whether a value is among those of a field."""
    if not isinstance(dimension, RangeSection):
        return value in dimension
    slack = 1e-6 * max(abs(dimension.low), abs(dimension.high))  # of rounding on the way
    return (
        isinstance(value, int | float) and dimension.low - slack <= value <= dimension.high + slack
    )


def _leave_the_rest(loss: dict[str, Any], origin: str) -> None:
    """Set the weight of labels to 1 minus those of soft targets and features."""
    given = {
        name: loss.get(name, LossSection.model_fields[name].default)
        for name in ("soft_weight", "feature_weight")
    }
    if not all(isinstance(one, int | float) for one in given.values()):
        return  # to be refused by its field
    rest = round(1 - sum(given.values()), 12)  # 1 - 0.9 is 0.09999999999999998
    if rest < 0:
        raise ConfigError(
            f"{origin}: soft_weight {given['soft_weight']:g} and feature_weight "
            f"{given['feature_weight']:g} leave nothing of 1, and sweep.hard_weight is 'rest': "
            "make them smaller, or set sweep.hard_weight = 'recipe'"
        )
    loss["hard_weight"] = rest


def in_words(values: Mapping[str, Any]) -> str:
    """Return values as arguments of `--set`: `loss.temperature=2.0 student.model=mnist-mlp`."""
    return " ".join(f"{field}={text_of(value)}" for field, value in values.items())


def text_of(value: Any) -> str:
    """Return a value as a user would write it after `--set`."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
