"""Which model a file of tensors is of, by their names and shapes."""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kdscale.models.libraries import LISTS
from kdscale.models.registry import create_model, known_models
from kdscale.models.weights import head_classes

_ANY_CLASSES = 1000


def recognize_model(tensors: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Return a model of torchvision or kdscale, and its number of classes; None if there is none.

    Names and shapes of all tensors agree, except for the number of outputs.
    """
    given = _shapes(tensors)
    for name, channels in _candidates():
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                model = create_model(name, num_classes=_ANY_CLASSES, in_channels=channels)
            except Exception:  # noqa: S112  (it cannot be created without memory)
                continue
        own = _shapes(model.state_dict())
        if own.keys() != given.keys():
            continue
        differing = [(given[key], own[key]) for key in own if given[key] != own[key]]
        if not differing:
            return name, _ANY_CLASSES
        if (classes := head_classes(differing)) is not None:
            return name, classes[0]
    return None


def _candidates() -> Iterator[tuple[str, int]]:
    """Yield names and channels, those of the most usual models first."""
    names = [f"torchvision/{name}" for name in LISTS["torchvision/"]()]
    for name in sorted(names, key=lambda name: not name.startswith("torchvision/resnet")):
        yield name, 3
    for name in known_models():
        yield from ((name, 3), (name, 1))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
