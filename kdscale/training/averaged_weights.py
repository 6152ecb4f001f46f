"""An exponential moving average of a model's weights, evaluated beside the weights themselves."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kdscale.errors import ModelError
from kdscale.formatting import reason_of
from kdscale.training.feature_student import unwrap_student

PREFIX = "ema_"
"""Of metrics of the averaged weights."""


class AveragedWeights:
    """Weights and floating-point buffers, averaged after each optimizer step.

    The average is that of timm's `ModelEmaV3` with warm-up: after n steps, its decay is the smaller
    one of `decay` and 1 - n^(-2/3), so that short trainings are not averaged with random weights.
    The decay follows from the step alone, and nothing is read from the device.

    Args:
        model: on its device, not wrapped by Accelerate; of a student with feature losses, the
            student alone is averaged.
        decay: share of the average that a step leaves, 0..1.

    Raises:
        ModelError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        try:
            self.model = copy.deepcopy(unwrap_student(model)).eval().requires_grad_(False)
        except (RuntimeError, TypeError) as error:  # torch copies no tensor that has a history
            raise ModelError(
                f"ema_decay needs a copy of the model, which cannot be made ({reason_of(error)}): "
                "leave ema_decay out"
            ) from error
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights into the average; `step` optimizer steps are done."""
        decay = min(self.decay, 1 - step ** (-2 / 3))
        averages, values = [], []
        pairs = zip(_tensors(self.model), _tensors(unwrap_student(model)), strict=True)
        for average, value in pairs:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        get_ema_multi_avg_fn(decay)(averages, values, 1)

    def beside(self, model: nn.Module) -> nn.Module:
        """Return a module of a model and its average, whose state is that of both."""
        return nn.ModuleDict({"model": model, "average": self.model})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
