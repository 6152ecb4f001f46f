"""Models without their classifier: the output is what entered it, an embedding [B, D]."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdscale.errors import ModelError

NUM_CLASSES = "num_classes"
"""Option of any model; its one value is 0: the model without its classifier."""


def requested_classes(num_classes: int, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the classes that a model is created for, and its options without `num_classes = 0`.

    Args:
        num_classes: of the data set.
        options: as a recipe or a file has them.
    """
    others = dict(options)
    if options.get(NUM_CLASSES) == 0:
        return others.pop(NUM_CLASSES), others
    return num_classes, others


def without_classifier(model: nn.Module, name: str) -> nn.Module:
    """Replace the last linear layer of a classifier by the identity, in place.

    Args:
        model: a classifier whose last layer, in the order of definition, is its head.
        name: the model, for messages.

    Raises:
        ModelError: it has no linear layer.
    """
    linear = [path for path, one in model.named_modules() if isinstance(one, nn.Linear)]
    if not linear:
        raise ModelError(
            f"model {name} does not end in a linear layer, so num_classes = 0 cannot remove its "
            "classifier: name another model, or a module.path:factory that returns it without"
        )
    parent, _, attribute = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return model


def embedding_of(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    """Return the embedding of an output of transformers; a forward hook, so all names stay.

    The pooled output where the model has one, flat; else the mean over the tokens of the last
    hidden state, or over the positions of its map.
    """
    pooled = getattr(output, "pooler_output", None)
    if isinstance(pooled, Tensor):
        return pooled.flatten(1)
    hidden: Tensor = output.last_hidden_state
    return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)
