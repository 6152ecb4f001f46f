"""State that a model learns in its forward passes and that no file contains.

Weights and checkpoints contain what `state_dict` returns. A module may update other tensors, too:
buffers registered with `persistent=False`, or plain attributes. A model that was saved would then
give other logits than the trained one, and a resumed training would go on from another
state.
"""

import copy
import logging

import torch
from torch import Tensor, nn

from kdscale.errors import ModelError

log = logging.getLogger(__name__)


def check_state_is_saved(model: nn.Module, inputs: Tensor, what: str) -> None:
    """Refuse a model whose forward passes in training change tensors that `state_dict` leaves out.

    Two passes of a copy over the same inputs, with the same random numbers, are compared: a cache
    is filled by the first one and then stays. Models without such tensors cost nothing.

    Args:
        model: on the device of the inputs; left as it is.
        inputs: preprocessed images [B, C, H, W].
        what: the model's part, for the message.

    Raises:
        ModelError: naming the tensors.
    """
    if not _unsaved(model):
        return
    try:
        trial = copy.deepcopy(model).train()
    except RuntimeError as error:  # torch copies no tensor that has a history
        log.warning("%s: whether all that it learns is saved cannot be checked (%s)", what, error)
        return
    before = _after_a_pass(trial, inputs)
    after = _after_a_pass(trial, inputs)
    changed = sorted(
        name for name, one in after.items() if name not in before or _differ(one, before[name])
    )
    if changed:
        raise ModelError(
            f"{what}: its forward passes change {', '.join(changed[:3])}, which no file would "
            "contain (state_dict leaves it out): register it with register_buffer(..., "
            "persistent=True), or do not change it in training"
        )


def _after_a_pass(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(0)
        model(inputs)
    return {name: one.detach().clone() for name, one in _unsaved(model).items()}


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of all modules that are in no state dict, by name."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        buffers = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
        for name, value in {**vars(module), **buffers}.items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)
