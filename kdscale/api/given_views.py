"""Augmentation as Python code names it: operations of kdscale, transforms, functions."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchvision.transforms import v2

from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.mixing import Mixing
from kdscale.data.views.operations.operation import Operation
from kdscale.data.views.operations.operation_registry import NAMES, parse_operation
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
    single = isinstance(views, (str, Mapping)) or callable(views)
    entries: list[Any] = [views] if single else list(views)  # type: ignore[arg-type]
    operations = tuple(_operation(entry) for entry in entries)
    mixes = any(isinstance(operation, Mixing) for operation in operations)
    return Pipeline(operations, seed, MixPairs(num_samples) if mixes else None)


def _operation(entry: Any) -> Operation | Mixing:
    if isinstance(entry, (str, Mapping)):
        return parse_operation(entry, "views")
    if isinstance(entry, (*NAMES, TorchvisionOp)):
        return entry  # type: ignore[return-value]
    kind = type(entry)
    name = getattr(entry, "__qualname__", kind.__qualname__)
    module = getattr(entry, "__module__", kind.__module__)
    arguments = {} if hasattr(entry, "__qualname__") else {"arguments": repr(entry)}
    described = f"{name} {arguments.get('arguments', '')}"
    if inspect.ismethod(entry) or re.search(_NAMELESS, described):
        raise ConfigError(
            f"views: {shortened(repr(entry))} has no name by which the cache could tell it from "
            "another transform: use a function of a module, or kdscale.TorchvisionOp(function, "
            "name=...)"
        )
    return TorchvisionOp(
        entry, name=f"{module}:{name}", arguments=arguments, fixes_size=_fixes_size(entry)
    )


_NAMELESS = r"<lambda>|<locals>|<function |<bound method|\bLambda\(| at 0x[0-9a-f]+"
"""What a representation has where functions are part of it: their content is not."""
_OF_ONE_SIZE = (v2.RandomResizedCrop, v2.CenterCrop, v2.RandomCrop)


def _fixes_size(transform: object) -> bool:
    """Return whether a transform of torchvision gives images of one size, whatever theirs."""
    if isinstance(transform, v2.Compose):
        return any(_fixes_size(one) for one in transform.transforms)
    if isinstance(transform, v2.Resize):
        return isinstance(transform.size, Sequence) and len(transform.size) == 2
    return isinstance(transform, _OF_ONE_SIZE)
