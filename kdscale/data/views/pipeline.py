"""A pipeline of operations: images and (view, index) in, the view's pixels out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdscale.data.views.generator import GENERATOR_VERSION, bits_KB, permutation
from kdscale.data.views.operations.base import Operation
from kdscale.data.views.operations.catalog import OPERATIONS
from kdscale.errors import ConfigError

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What turns sample `index` into its view number `view`, under one seed."""

    operations: tuple[Operation, ...]
    seed: int = 0

    @classmethod
    def parse(cls, operations: Sequence[str | Mapping[str, object]], seed: int = 0) -> "Pipeline":
        """A pipeline from names and tables: `["random_horizontal_flip", {"name": ..., ...}]`.

        Raises:
            ConfigError: unknown operation or argument (nearest name given), wrong type or range.
        """
        return cls(tuple(_parse_operation(entry) for entry in operations), seed)

    def describe(self) -> dict[str, object]:
        """The canonical description: everything the pixels depend on besides the images."""
        names = {operation: name for name, operation in OPERATIONS.items()}
        return {
            "generator": GENERATOR_VERSION,
            "seed": self.seed,
            "operations": [{"name": names[type(o)], **asdict(o)} for o in self.operations],
        }

    def __call__(self, images: Tensor, view: int | Tensor, index: Tensor) -> Tensor:
        """The view's pixels.

        Args:
            images: uint8 [B, C, H, W], as decoded.
            view: view number, one for the batch or int64 [B].
            index: int64 [B], position of each image in its data set.

        Returns:
            uint8 [B, C, H, W], on the device of `images`.
        """
        if not self.operations or not len(images):
            return images
        index = index.to(images.device)
        if isinstance(view, Tensor):
            view = view.to(images.device)
        bits = bits_KB(self.seed, self._draws(), view, index)
        start = 0
        for operation in self.operations:
            images = operation(images, bits[start : start + operation.num_draws])
            start += operation.num_draws
        return images

    def _draws(self) -> list[tuple[int, int]]:
        return [
            (position, draw)
            for position, operation in enumerate(self.operations)
            for draw in range(operation.num_draws)
        ]


@lru_cache(maxsize=1024)  # asked at every step
def view_of_epoch(epoch: int, num_views: int, seed: int) -> int:
    """Which view every sample shows in an epoch: each cycle of `num_views` epochs shows each once.

    The order within a cycle is a function of (seed, cycle), so coverage is equal, no view waits for
    a fixed turn, and an epoch resumed in its middle shows the view it began with.
    """
    cycle, position = divmod(epoch, num_views)
    return int(permutation(num_views, seed, cycle)[position])


def _parse_operation(entry: object) -> Operation:
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, Mapping) or not isinstance(name := table.get("name"), str):
        raise ConfigError(f"views.operations: {entry!r} has no name: write {{ name = ..., ... }}")
    if name not in OPERATIONS:
        raise ConfigError(_unknown(f"views.operations: no operation {name!r}", name, OPERATIONS))
    operation = OPERATIONS[name]
    known = {field.name: field for field in fields(operation)}
    arguments = {key: value for key, value in table.items() if key != "name"}
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(_unknown(f"{name}: no argument {key!r}", key, known))
        arguments[key] = _checked(name, key, value, known[key].type)
    missing = [k for k, f in known.items() if f.default is MISSING and k not in arguments]
    if missing:
        raise ConfigError(
            f"{name}: {missing[0]} is missing: write {{ name = {name!r}, {missing[0]} = ... }}"
        )
    return operation(**arguments)


def _checked(name: str, key: str, value: object, wanted: Any) -> object:
    """The value as the argument's type: a list where a tuple is wanted, an integer for a float."""
    try:
        return TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError):
        raise ConfigError(f"{name}: {key} is {value!r}, wanted {_type_name(wanted)}") from None


def _type_name(wanted: Any) -> str:
    if wanted in _TYPE_NAMES:
        return _TYPE_NAMES[wanted]
    if get_origin(wanted) is Literal:
        return " or ".join(repr(value) for value in get_args(wanted))
    if get_origin(wanted) is tuple:
        inner = [_type_name(argument) for argument in get_args(wanted)]
        return f"a list of {len(inner)} values ({', '.join(inner)})"
    kinds = [kind for kind in get_args(wanted) if kind is not type(None)]
    return " or ".join(_type_name(kind) for kind in kinds)


def _unknown(message: str, name: str, known: Mapping[str, object]) -> str:
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
    return f"{message}: {hint}"
