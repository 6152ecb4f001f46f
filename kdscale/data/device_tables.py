"""Tables as tensors: made once for each device, so that no batch copies one from the host."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Exclude a function from compilation: neither decimal numbers nor caches can be compiled.

    `torch.compiler.disable` would import the compiler here, for every command: 150 MB and a second.
    """
    excluded = _disable_dynamo(function)

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return excluded(*args, **kwargs)
        return function(*args, **kwargs)

    return called


def _cached(function: Callable[Arguments, Result], most_tables: int) -> Callable[Arguments, Result]:
    @lru_cache(maxsize=most_tables)
    @wraps(function)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return uncompiled(computed)


def device_table(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compute tensors once for each device and other arguments, for use in training as well."""
    return _cached(function, 16)


def on(device: torch.device, table: tuple[int, ...]) -> Tensor:
    """A table as int64 on a device."""
    return _on(device, table)


def _tensor(device: torch.device, table: tuple[int, ...]) -> Tensor:
    return torch.tensor(table, dtype=torch.int64, device=device)


_on = _cached(_tensor, 256)
