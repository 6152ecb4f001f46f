"""Parameters of a model in groups of their own weight decay."""

from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

from torch import nn

from kdscale.errors import ConfigError
from kdscale.training.feature_student import unwrap_student
from kdscale.training.timm_optimizers import timm_optim

_EMBEDDINGS = ("class_token", "*pos_embedding", "*relative_position_bias_table")
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
    listed = _listed(student)
    exempt = {
        id(parameter)
        for name, parameter in student.named_parameters()
        if any(fnmatch(name, pattern) for pattern in listed)
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


def layer_decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float, *, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by a factor from each layer to the one before it.

    They are those of `timm.optim.param_groups_layer_decay` (Bao et al., "BEiT", 2022), with the
    factor in `lr_scale`. Adapters of feature losses learn at the full rate.

    Args:
        model: not wrapped by Accelerate.
        weight_decay: of parameters that are decayed.
        layer_decay: the factor, 0..1.
        decay_norm_and_bias: whether biases, normalisation layers and embeddings are decayed.

    Raises:
        ConfigError: timm is missing, or the model does not name its layers.
    """
    student = unwrap_student(model)
    if not callable(getattr(student, "group_matcher", None)):
        raise ConfigError(
            "layer_decay needs a model that names its layers in group_matcher(), as timm's do, and "
            f"{type(student).__name__} does not: leave layer_decay out, or take a model timm/NAME"
        )
    listed = () if decay_norm_and_bias else _listed(student)
    groups: list[dict[str, Any]] = timm_optim("layer_decay").param_groups_layer_decay(
        student,
        weight_decay=weight_decay,
        no_weight_decay_list=listed,
        weight_decay_exclude_1d=not decay_norm_and_bias,
        layer_decay=layer_decay,
    )
    adapters = getattr(model, "adapters", None) if student is not model else None
    if adapters is None or not any(True for _ in adapters.parameters()):
        return groups
    of_adapters: list[dict[str, Any]] = (
        [{"params": list(adapters.parameters()), "weight_decay": weight_decay}]
        if decay_norm_and_bias
        else decay_groups(adapters, weight_decay)
    )
    return [*groups, *({**one, "lr_scale": 1.0} for one in of_adapters)]


def _listed(model: nn.Module) -> Collection[str]:
    """Return names, or patterns of names, of parameters that a model exempts from weight decay."""
    of_model: Any = getattr(model, "no_weight_decay", None)
    return of_model() if callable(of_model) else _EMBEDDINGS
