"""What an operation is, and the checks of arguments that operations share."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from kdscale.errors import ConfigError


class Operation(Protocol):
    """One step of a pipeline: a frozen dataclass whose fields are its arguments in a recipe."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_draws(self) -> int:
        """How many 64-bit draws a sample needs."""
        ...

    @property
    def choices(self) -> tuple[int, ...] | None:
        """How many values each draw chooses from, for `views.count = "all"`; None: too many."""
        ...

    @property
    def fixes_size(self) -> bool:
        """Whether the views are of one size, whatever the sizes of the images."""
        ...

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """uint8 [B, C, H, W] and int64 bits [num_draws, B] -> uint8 [B, C, H', W']."""
        ...


class Native:
    """Defaults of an operation."""

    __slots__ = ()
    fixes_size: ClassVar[bool] = False

    @property
    def choices(self) -> tuple[int, ...] | None:
        """Too many to enumerate."""
        return None


class RandomApply(Native):
    """What happens to a sample with probability `p`: draw 0 decides."""

    __slots__ = ()
    num_draws: ClassVar[int] = 1
    p: float

    def __post_init__(self) -> None:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        check_probability(name, "p", self.p)

    @property
    def choices(self) -> tuple[int]:
        """Changed or not."""
        return (2 if 0 < self.p < 1 else 1,)


def limits_in(units: int, limits: tuple[float, float]) -> tuple[int, int]:
    """Both limits in `units`, rounded."""
    return round(limits[0] * units), round(limits[1] * units)


def check_probability(operation: str, name: str, value: float) -> None:
    """Stop unless 0 <= value <= 1.

    Raises:
        ConfigError: naming operation and argument.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{operation}: {name} is {value}, wanted a probability 0..1")


def check_range(
    operation: str, name: str, value: float, low: float, high: float, unit: str
) -> None:
    """Stop unless low <= value <= high.

    Raises:
        ConfigError: naming operation, argument and `unit`.
    """
    if not low <= value <= high:
        raise ConfigError(f"{operation}: {name} is {value}, wanted {low}..{high} {unit}")


def check_interval(
    operation: str, name: str, value: Sequence[float], low: float, high: float, unit: str
) -> None:
    """Stop unless `value` is a pair with low <= value[0] <= value[1] <= high.

    Raises:
        ConfigError: naming operation, argument and `unit`.
    """
    if not low <= value[0] <= value[1] <= high:
        raise ConfigError(
            f"{operation}: {name} is {list(value)}, wanted [smallest, largest] within "
            f"{low}..{high} {unit}"
        )


def check_name(operation: str, name: str, value: str, known: Sequence[str]) -> None:
    """Stop unless `value` is one of `known`.

    Raises:
        ConfigError: naming operation and argument.
    """
    if value not in known:
        options = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ConfigError(f"{operation}: {name} is {value!r}, wanted {options}")
