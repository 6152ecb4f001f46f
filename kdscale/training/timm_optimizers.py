"""Optimizers of timm by name. timm is optional, and imported where it is used."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from kdscale.errors import ConfigError
from kdscale.models.custom import did_you_mean
from kdscale.models.libraries import INSTALL_MODELS

PREFIX = "timm/"
_REFUSED = {
    "adahessian": "it needs second derivatives, which training steps do not compute",
    "kron": "it draws random numbers of its own, which no checkpoint contains",
    "bnb": "its 8-bit state was never resumed from a checkpoint of kdscale",
    "fused": "it needs NVIDIA's apex, and was never resumed from a checkpoint of kdscale",
}
"""Reasons why optimizers are refused, by the beginning of their names."""


def timm_optimizer(
    name: str,
    groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """Create `timm/NAME` as `timm.optim.create_optimizer_v2` does.

    Args:
        name: of the optimizer, with the prefix.
        groups: parameters, or groups of them.
        learning_rate: of the first step.
        momentum: of optimizers that have one.
        weight_decay: of groups that state none.
        options: further arguments of the optimizer.

    Raises:
        ConfigError: timm is missing or has no such optimizer, or it cannot be resumed exactly.
        TypeError, ValueError, AssertionError: the options do not fit it, or this machine does not.
    """
    timm = timm_optim(f"optimizer {name!r}")
    short, known = name.removeprefix(PREFIX), timm.list_optimizers()
    if short not in known:
        raise ConfigError(f"timm has no optimizer {short!r}{did_you_mean(short, known)}")
    for beginning, reason in _REFUSED.items():
        if short.startswith(beginning):
            raise ConfigError(
                f"optimizer {name!r} cannot be used: {reason}. Take another one, such as "
                "'timm/lamb', 'timm/lion' or 'timm/adan'"
            )
    optimizer: torch.optim.Optimizer = timm.create_optimizer_v2(
        groups, opt=short, lr=learning_rate, weight_decay=weight_decay, momentum=momentum, **options
    )
    return optimizer


def timm_optim(what: str) -> Any:
    """Import `timm.optim`; `what` needs it.

    Raises:
        ConfigError: it is missing.
    """
    try:
        return importlib.import_module("timm.optim")
    except ImportError as error:
        raise ConfigError(f"{what} needs timm ({error}): {INSTALL_MODELS}") from error
