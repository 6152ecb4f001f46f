"""Optimizers by name, and learning rates as a pure function of the step and of plateaus met."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from kdscale.errors import ConfigError
from kdscale.formatting import reason_of
from kdscale.training.timm_optimizers import PREFIX, timm_optimizer

TORCH_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
_OF_RECIPE = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}
"""Arguments of all optimizers that are fields of a recipe, and these fields."""


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    fused: bool = False,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer by name: adam, adamw or sgd of torch, or `timm/NAME`.

    Args:
        name: of the optimizer.
        parameters: parameters, or groups of them.
        learning_rate: of the first step.
        momentum: read by sgd, and by optimizers of timm that have one.
        nesterov: read by sgd.
        weight_decay: of parameters whose group states none.
        fused: updates all parameters in one kernel, and reads no loss scale back from a GPU. On a
            CPU it rounds otherwise (Adam by 6e-8 in 20 steps) and saves nothing, so it is for GPUs.
            Read by torch's optimizers.
        options: further arguments of the optimizer.

    Raises:
        ConfigError: there is no such optimizer here, or it does not take the options.
    """
    options = dict(options or {})
    for option in options:
        if option in (*_OF_RECIPE, "fused", "params"):
            instead = f"set {_OF_RECIPE[option]}" if option in _OF_RECIPE else "leave it out"
            raise ConfigError(f"optimizer_options has {option!r}: {instead}")
    try:
        if name.startswith(PREFIX):
            return timm_optimizer(
                name, parameters, learning_rate=learning_rate, momentum=momentum,
                weight_decay=weight_decay, options=options,
            )  # fmt: skip
        common: dict[str, Any] = {"weight_decay": weight_decay, "fused": fused or None}
        if name == "sgd":
            common |= {"momentum": momentum, "nesterov": nesterov}
        common |= options
        create: Callable[..., torch.optim.Optimizer] = TORCH_OPTIMIZERS[name]
        created = create(parameters, lr=learning_rate, **common)
    except ConfigError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer {name!r} cannot be created with optimizer_options = {options}: "
            f"{reason_of(error)}"
        ) from error
    if name == "sgd" and fused and momentum:
        # Else torch stores memory that nobody has written where the first update is left out
        # for gradients that are not finite, as usual in float16.
        for group in created.param_groups:
            for parameter in group["params"]:
                created.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return created


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate at a step; nothing to save, so nothing to restore, but how often it fell.

    `one_cycle` rises from 1/25 of the peak and ends at 1/10,000 of the start, both by half a cosine
    (Smith & Topin, "Super-Convergence", 2018; torch's OneCycleLR without its momentum, and
    with the peak one step later).
    """

    kind: Literal["constant", "steps", "plateau", "cosine", "one_cycle"]
    peak: float
    num_steps: int
    warmup_steps: int = 0
    cooldown_steps: int = 0
    """Last steps of `cosine`, at the lowest rate."""
    lowest: float = 0.0
    """Rate at which `cosine` ends."""
    milestones: Sequence[int] = ()
    gamma: float = 0.1

    def __call__(self, step: int, plateaus: int = 0) -> float:
        """Return the learning rate of optimizer step `step`.

        Args:
            step: counted from 0.
            plateaus: how often the validation loss has stalled; read by `plateau` alone.
        """
        if self.kind == "one_cycle":
            return self._one_cycle(step)
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            if self.cooldown_steps and step >= self.num_steps - self.cooldown_steps:
                return self.lowest
            falling = self.num_steps - self.warmup_steps - self.cooldown_steps
            return _half_cosine(
                self.peak, self.lowest, (step - self.warmup_steps) / max(1, falling)
            )
        if self.kind == "steps":
            return self.peak * self.gamma ** sum(step >= m for m in self.milestones)
        if self.kind == "plateau":
            return self.peak * self.gamma**plateaus
        return self.peak

    def _one_cycle(self, step: int) -> float:
        rise = self.warmup_steps or round(0.3 * self.num_steps)
        start = self.peak / 25
        if step < rise:
            return _half_cosine(start, self.peak, step / rise)
        return _half_cosine(
            self.peak, start / 1e4, (step - rise) / max(1, self.num_steps - 1 - rise)
        )


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
