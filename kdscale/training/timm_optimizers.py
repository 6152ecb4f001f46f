"""Optimizers of timm by name. timm is optional, and imported where it is used."""

import importlib
import inspect
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
DEFAULT_MOMENTUM = 0.9
"""Momentum of a recipe that names none, which optimizers without momentum do not read."""
_OF_ALL = {"params", "lr", "weight_decay"}
"""Arguments of all optimizers, which are no options."""


def timm_optimizer(
    name: str,
    groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """Create `timm/NAME` as `timm.optim.create_optimizer_v2` does.

    Args:
        name: of the optimizer, with the prefix.
        groups: parameters, or groups of them.
        learning_rate: of the first step.
        momentum: of optimizers that have one; others take the default alone.
        nesterov: False; timm's optimizers take it from the options.
        weight_decay: of groups that state none.
        options: further arguments of the optimizer.

    Raises:
        ConfigError: timm is missing or has no such optimizer, it cannot be resumed exactly, or it
            does not take what is given.
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
    given = dict(options)
    given |= {"momentum": momentum} if momentum != DEFAULT_MOMENTUM else {}
    given |= {"nesterov": True} if nesterov else {}
    known = inspect.signature(timm.get_optimizer_class(short, bind_defaults=False)).parameters
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(
            f"optimizer {name!r} does not take {unknown[0]} = {given[unknown[0]]!r}: leave it out. "
            f"It takes {', '.join(one for one in known if one not in _OF_ALL)}"
        )
    if nesterov:
        raise ConfigError(
            f"nesterov = true has no effect on optimizer {name!r}: set optimizer_options = "
            "{ nesterov = true }"
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
