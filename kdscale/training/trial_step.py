"""A trial step before the first one: whether the model can be trained at all."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdscale.distributed import is_out_of_memory
from kdscale.errors import KdscaleError, ModelError
from kdscale.formatting import number_of
from kdscale.precision import autocast

log = logging.getLogger(__name__)


def unused_parameters(
    model: nn.Module, inputs: Tensor, *, num_classes: int | None, precision: str, what: str
) -> list[str]:
    """Return parameters without a gradient in a trial step, which changes nothing.

    Args:
        model: as it is trained, on the device of the inputs; with the features of its losses.
        inputs: two preprocessed images [2, C, H, W].
        num_classes: classes of the data set; None: the model gives an embedding, no logits.
        precision: of the forward pass.
        what: the model's part, for messages: "teacher" or "student".

    Returns:
        Names of the trainable parameters that no loss reaches, for which processes that share
        gradients have to be prepared.

    Raises:
        ModelError: the model cannot be trained, or does not give logits in training mode.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not trained:
        raise ModelError(
            f"{what} has no parameter to train (it has none, or all have requires_grad = False): "
            "choose another model, or let its factory leave its parameters trainable"
        )
    with _left_alone(model, inputs.device):
        try:
            with autocast(precision, inputs.device):
                outputs = model(inputs)
            _loss(outputs, len(inputs), num_classes, what).backward()
        except KdscaleError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{what} fails in training mode on images of {list(inputs.shape[1:])} ({error}): "
                "turn off what it does in training alone (auxiliary outputs), set its input's "
                "size, or take another model"
            ) from error
        return [name for name, one in trained.items() if one.grad is None]


def mention_unused(names: Sequence[str], what: str) -> None:
    """Log which parameters training leaves as they are."""
    log.info(
        "%s: %s get no gradient and stay as they are (%s%s)", what,
        number_of(len(names), "parameter tensor"), ", ".join(names[:3]),
        ", …" if len(names) > 3 else "",
    )  # fmt: skip


def _loss(outputs: object, num_images: int, num_classes: int | None, what: str) -> Tensor:
    """Return a scalar that depends on every output with a gradient."""
    logits, features = outputs, ()
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], tuple):
        logits, features = outputs  # a student with the features of its losses
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{what} gives a {type(logits).__name__} in training mode, wanted logits alone: turn "
            "its auxiliary outputs off in its options, or let forward return the logits"
        )
    shape = (num_images, logits.shape[-1] if num_classes is None else num_classes)
    if tuple(logits.shape) != shape or not logits.is_floating_point():
        raise ModelError(
            f"{what} gives a {logits.dtype} tensor of shape {list(logits.shape)} in training mode, "
            f"wanted {'an embedding' if num_classes is None else 'logits'} of shape {list(shape)}"
        )
    reached = [one for one in (logits, *features) if one.requires_grad]
    if not reached:
        raise ModelError(
            f"{what} gives logits without a gradient in training mode: its forward pass must not "
            "use torch.no_grad, detach or a frozen TorchScript module"
        )
    return torch.stack([one.float().sum() for one in reached]).sum()


@contextmanager
def _left_alone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Train a model within the block; after it, buffers, modes and generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.train()
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)
        for module, mode in modes:
            module.training = mode
        model.zero_grad(set_to_none=True)
