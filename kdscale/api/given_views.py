"""Augmentation as Python code names it: operations of kdscale, transforms, functions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.mixing import Mixing
from kdscale.data.views.operations.operation import Operation
from kdscale.data.views.operations.operation_registry import parse_operation
from kdscale.data.views.operations.torchvision_op import TorchvisionOp
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from kdscale.formatting import shortened

View = str | Mapping[str, Any] | Callable[..., Any]
"""An operation by its name, or a table of its name and arguments, or a transform of one image."""
Views = View | Sequence[View] | Pipeline


def pipeline_of(views: Views, *, num_samples: int, seed: int) -> Pipeline:
    """Return the pipeline of some views.

    Args:
        views: operations of kdscale by name or as tables (`{"name": "random_crop", "padding": 4}`),
            or transforms of one uint8 image [C, H, W], such as those of torchvision; in order. A
            transform of your own draws from torch's, NumPy's or Python's generators alone.
        num_samples: of the data set.
        seed: of every draw.

    Raises:
        ConfigError: an unknown operation, or a transform whose name does not describe it.
    """
    if isinstance(views, Pipeline):
        return views
    entries = [views] if isinstance(views, (str, Mapping)) or callable(views) else list(views)
    operations = tuple(_operation(entry) for entry in entries)
    mixes = any(isinstance(operation, Mixing) for operation in operations)
    return Pipeline(operations, seed, MixPairs(num_samples) if mixes else None)


def _operation(entry: View) -> Operation | Mixing:
    if isinstance(entry, (str, Mapping)):
        return parse_operation(entry, "views")
    kind = type(entry)
    name = getattr(entry, "__qualname__", kind.__qualname__)
    module = getattr(entry, "__module__", kind.__module__)
    arguments = {} if hasattr(entry, "__qualname__") else {"arguments": repr(entry)}
    described = arguments.get("arguments", "")
    if "<lambda>" in name or "<locals>" in name or re.search(r" at 0x[0-9a-f]+", described):
        raise ConfigError(
            f"views: {shortened(repr(entry))} has no name by which the cache could tell it from "
            "another transform: use a function of a module, or TorchvisionOp(function, name=...)"
        )
    return TorchvisionOp(entry, name=f"{module}:{name}", arguments=arguments)
