"""Tables as tensors: made once for each device, so that no batch copies one from the host."""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def device_table(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compute tensors once for each device and other arguments, for use in training as well."""
    return _cached(function, 16)


def _cached(function: Callable[Arguments, Result], most_tables: int) -> Callable[Arguments, Result]:
    return lru_cache(maxsize=most_tables)(torch.inference_mode(False)(function))  # type: ignore[return-value]


def _on(device: torch.device, table: tuple[int, ...]) -> Tensor:
    return torch.tensor(table, dtype=torch.int64, device=device)


on = _cached(_on, 256)
"""A table as int64 on a device."""
