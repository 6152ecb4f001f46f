"""Parameters of a model in groups of their own weight decay."""

from fnmatch import fnmatch
from typing import Any

from torch import nn

from kdscale.training.feature_student import unwrap_student

_EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")
"""Names of torchvision's parameters that are no weights of a product, as its recipes list them."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which biases, normalisation layers and embeddings are not decayed.

    Those are the groups of `timm.optim.create_optimizer_v2`: parameters of one dimension (Goyal et
    al., "Accurate, Large Minibatch SGD", 2017, section 5.1), biases, and what the model lists in
    `no_weight_decay()`, as position embeddings and class tokens of timm's models.

    Args:
        model: not wrapped by Accelerate.
        weight_decay: of the other parameters.
    """
    student = unwrap_student(model)
    exempt = {
        id(parameter) for name, parameter in student.named_parameters() if _is_listed(student, name)
    }
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = parameter.ndim <= 1 or name.endswith(".bias") or id(parameter) in exempt
            (free if is_free else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _is_listed(model: nn.Module, name: str) -> bool:
    """Return whether a parameter is among those that a model exempts from weight decay by name."""
    listed: Any = getattr(model, "no_weight_decay", None)
    if callable(listed):
        return any(fnmatch(name, pattern) for pattern in listed())
    return name.rpartition(".")[2] in _EMBEDDINGS
