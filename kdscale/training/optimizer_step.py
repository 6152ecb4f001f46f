"""One optimizer step: backward pass, loss scale, clipped gradients, learning rate, update.

Nothing here waits for the device: a fused optimizer of CUDA leaves out an update by itself where
gradients are not finite. Other optimizers read whether they are from the device, once a step in
float16.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.errors import DivergedError
from kdscale.precision import tf32
from kdscale.training.optim import Schedule

_SMALLEST_SCALE = 2.0**-10
"""Loss scale at which gradients of 6e7 would still be finite: below it, they never will be."""


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
        self.allow_tf32 = allow_tf32
        self.learning_rate = 0.0
        """Learning rate of the newest step."""
        self.gradient_norm: Tensor | None = None
        """Norm of all gradients before they were clipped; None where they are not clipped."""
        self._scaler: torch.amp.GradScaler | None = None
        if precision == "float16":
            self._scaler = torch.amp.GradScaler(device.type)
        self._attempts, self._skipped_before = 0, 0
        self._updates = torch.zeros((), dtype=torch.int64, device=device)
        if self._scaler is not None:
            optimizer.register_step_pre_hook(self._count_update)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the parameters."""
        with tf32(self.allow_tf32):
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
