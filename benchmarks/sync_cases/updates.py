"""The optimizer step after a backward pass, whose gradients are taken as given: it needs a GPU.

And the moving average of the weights after it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from torch import nn

from kdscale.training.averaged_weights import AveragedWeights
from kdscale.training.optim import OptimizerStep, Schedule, create_optimizer
from sync_cases.counting import CUDA, Case

_SHAPES = [(64, 3, 3, 3), (64,), (64,), (10, 64), (10,)]


def cases() -> Iterator[Case]:
    """Optimizer steps of each optimizer, in float32 and, with a loss scale, in float16."""
    yield Case("moving average of the weights", _averaging)
    for name in ("sgd", "adam", "adamw"):
        yield Case(f"update, {name}", partial(_updating, name))
        yield Case(f"update, {name}, clipped", partial(_updating, name, clip=1.0))
        yield Case(f"update, {name}, float16", partial(_updating, name, precision="float16"))
        yield Case(
            f"update, {name}, float16, clipped",
            partial(_updating, name, precision="float16", clip=1.0),
        )


def _updating(
    name: str, *, precision: str = "float32", clip: float | None = None
) -> Callable[[], object]:
    parameters = [nn.Parameter(torch.empty(shape, device=CUDA)) for shape in _SHAPES]
    optimizer = create_optimizer(name, parameters, learning_rate=0.1, fused=True)
    schedule = Schedule("cosine", 0.1, 100)
    with patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False):
        step = OptimizerStep(optimizer, schedule, CUDA, precision=precision, gradient_clip=clip)
    gradients = [torch.empty_like(parameter) for parameter in parameters]

    def update() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if step._scaler is not None:
            step._scaler.scale(torch.empty((), device=CUDA))
        with patch("torch._fused_sgd_"):  # no fake tensors know it: one kernel, without a result
            step.apply(parameters, schedule(1))

    return update


def _averaging() -> Callable[[], object]:
    model, other = (
        nn.Sequential(nn.Conv2d(3, 64, 3, device=CUDA), nn.BatchNorm2d(64, device=CUDA))
        for _ in range(2)
    )
    with patch("copy.deepcopy", return_value=other):  # fake tensors cannot be copied
        average = AveragedWeights(model, 0.999)
    return partial(average.update, model, 7)
