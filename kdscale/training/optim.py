"""Optimizers by name, learning rates, and the optimizer step: backward, clip, update.

Nothing here waits for the device: a fused optimizer of CUDA leaves out an update by itself where
gradients are not finite. Other optimizers read whether they are from the device, once a step in
float16.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdscale.errors import ConfigError, DivergedError
from kdscale.formatting import reason_of
from kdscale.precision import tf32
from kdscale.training.timm_optimizers import DEFAULT_MOMENTUM, PREFIX, timm_optimizer

TORCH_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
_OF_RECIPE = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}
"""Arguments of all optimizers that are fields of a recipe, and these fields."""

_SMALLEST_SCALE = 2.0**-10
"""Loss scale at which gradients of 6e7 would still be finite: below it, they never will be."""


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = DEFAULT_MOMENTUM,
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
        momentum: read by sgd, and by optimizers of timm that have one; others of timm refuse any
            but the default.
        nesterov: read by sgd; refused by optimizers of timm.
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
                nesterov=nesterov, weight_decay=weight_decay, options=options,
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


class OptimizerStep:
    """Takes optimizer steps; in float16 with a loss scale, so that small gradients are not lost.

    Gradients of a scaled loss that are not finite are dropped: the step counts, weights stay as
    they are, and the scale is halved (Micikevicius et al., "Mixed Precision Training", 2018).

    Args:
        optimizer: of the model's parameters. Not wrapped by Accelerate, whose optimizer and
            `backward` cost 0.3 ms a step, a quarter of a small student's, and add nothing here.
        schedule: learning rate of a step.
        device: device of the parameters.
        precision: precision of the forward pass.
        gradient_clip: largest norm of all gradients; None = any.
        allow_tf32: whether float32 products of the backward pass may be rounded to TF32.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        device: torch.device,
        *,
        precision: str = "float32",
        gradient_clip: float | None = None,
        allow_tf32: bool = False,
    ) -> None:
        self.optimizer, self.schedule, self.gradient_clip = optimizer, schedule, gradient_clip
        self.learning_rate = 0.0
        """Learning rate of the newest step."""
        self.gradient_norm: Tensor | None = None
        """Norm of all gradients before they were clipped; None where they are not clipped."""
        self._scaler: torch.amp.GradScaler | None = None
        if precision == "float16":
            self._scaler = torch.amp.GradScaler(device.type)
        self._tf32 = tf32 if allow_tf32 else nullcontext
        self._attempts, self._skipped_before = 0, 0
        self._updates = torch.zeros((), dtype=torch.int64, device=device)
        if self._scaler is not None:
            optimizer.register_step_pre_hook(self._count_update)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the parameters."""
        with self._tf32():
            (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def apply(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        """Change the parameters by their gradients, and clear these.

        Args:
            parameters: all parameters of the model.
            rate: the learning rate.
        """
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"] if "lr_scale" in group else rate
        if self._scaler is not None and self.gradient_clip is not None:
            self._scaler.unscale_(self.optimizer)
        if self.gradient_clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            self.gradient_norm = norm.detach()
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._attempts += 1
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _count_update(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        """Count an update on the device; a fused optimizer is called although it leaves one out."""
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        self._updates += 1 if found_inf is None else (found_inf == 0).long()

    # ------------------------------------------------------------------ loss scale

    @property
    def skipped_steps(self) -> int:
        """Steps whose gradients were not finite; waits for the device."""
        return self._skipped_before + self._attempts - int(self._updates)

    def scale_state(self) -> dict[str, float]:
        """Return the loss scale and what it depends on; empty without one. Waits for the device."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {
            "scale": state["scale"],
            "steps_at_scale": state["_growth_tracker"],
            "skipped_steps": self.skipped_steps,
        }

    def describe_scale(self) -> dict[str, float]:
        """Return the loss scale's fields of log and result; empty without one."""
        state = self.scale_state()
        return {
            field: state[name]
            for field, name in (("loss_scale", "scale"), ("skipped_steps", "skipped_steps"))
            if name in state
        }

    def restore_scale(self, state: dict[str, float]) -> None:
        """Go on with the loss scale of `scale_state`."""
        if self._scaler is None or not state:
            return
        self._scaler.load_state_dict(
            self._scaler.state_dict()
            | {"scale": state["scale"], "_growth_tracker": int(state["steps_at_scale"])}
        )
        self._skipped_before, self._attempts = int(state["skipped_steps"]), 0
        self._updates.zero_()

    def check_scale(self, step: int) -> None:
        """Stop where gradients are not finite at any loss scale; waits for the device.

        Raises:
            DivergedError: they have not been for dozens of steps.
        """
        scale = self.scale_state().get("scale", 1.0)
        if scale < _SMALLEST_SCALE:
            raise DivergedError(
                f"gradients in float16 are not finite at step {step}, however small the loss scale "
                f"({scale:g}): lower the learning rate, clip gradients (gradient_clip), or use "
                "precision = 'bfloat16' or 'float32'"
            )
