"""Optimizers by name, and learning rates as a pure function of the step and of plateaus met."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Return an optimizer by name: adam, adamw or sgd (`momentum` and `nesterov` are sgd's).

    `fused` updates all parameters in one kernel, and reads no loss scale back from a GPU. On a CPU
    it rounds otherwise (Adam by 6e-8 in 20 steps) and saves nothing, so it is for GPUs.
    """
    common: dict[str, Any] = {"weight_decay": weight_decay, "fused": fused or None}
    if name == "sgd":
        sgd = torch.optim.SGD(
            parameters, learning_rate, momentum=momentum, nesterov=nesterov, **common
        )
        if fused and momentum:
            # Else torch stores memory that nobody has written where the first update is left out
            # for gradients that are not finite, as usual in float16.
            for group in sgd.param_groups:
                for parameter in group["params"]:
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    adam: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return adam[name](parameters, learning_rate, **common)


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
            after = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
            return _half_cosine(self.peak, 0.0, after)
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
