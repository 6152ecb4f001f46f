"""Bounds on the memory and time of creating a model that a file names.

A file's options may name a million layers, or one of a trillion weights. Neither Python nor torch
stops before the machine's memory is used up, so each operation of the creation is first run on the
meta device, which computes shapes and allocates nothing.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kdscale.formatting import bytes_text

LARGEST_NUMBER = 1_000_000
"""Largest whole number among a model's options; those of image classifiers are far smaller."""
_MOST_OPERATIONS = 1_000_000
"""Operations of a creation. Models of 1,000 tensors need about 10,000; MaxViT-XL of 512 x 512
pixels fills its tables of positions number by number and counts 252,243."""
_OPERATIONS_PER_TENSOR = 20
"""Operations that a new tensor, other than a number, counts as: its layer takes memory, too."""
_UNNAMED_BYTES = 16 << 30
"""Bytes of a model without a file of weights."""
_EXTRA_BYTES = 512 << 20
"""Bytes beside those of the file: a head that is removed, such as VGG's, tables of positions."""
_TIMES_FILE = 4
"""Bytes of a model as a multiple of its file's: float32 from float16, with a copy of each."""


class TooLargeError(Exception):
    """A creation that needs more than it may."""


def bytes_for(weights_bytes: int | None) -> int:
    """Return the bytes that a creation may allocate.

    Args:
        weights_bytes: size of the file of weights that the model takes next; None = it takes none.
    """
    return _UNNAMED_BYTES if weights_bytes is None else _EXTRA_BYTES + _TIMES_FILE * weights_bytes


def largest_number(value: object) -> int:
    """Return the largest whole number in a value of JSON, without sign; 0 if there is none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max(map(largest_number, value), default=0)
    return abs(value) if isinstance(value, int) else 0


class BoundedCreation(TorchDispatchMode):
    """Context in which operations that need too much memory are refused before they run.

    Args:
        most_bytes: bytes of all tensors that are created from numbers, and of each that is computed
            from others.

    `exceeded` describes what was refused; None if nothing was.

    Raises:
        TooLargeError: in place of the operation.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.exceeded: str | None = None
        self._most_bytes = most_bytes
        self._created_bytes = self._operations = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._operations += 1
        if not operation._schema.is_mutable:  # those write into memory that is there
            self._check(operation, args, kwargs)
        if self._operations > _MOST_OPERATIONS:
            self._refuse(f"more than {_MOST_OPERATIONS:,} operations")
        return operation(*args, **kwargs)

    def _check(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> None:
        outputs = _on_meta(operation, args, kwargs)
        self._operations += len(outputs)
        size = sum(one.numel() * one.element_size() for one in outputs)
        if not any(isinstance(one, Tensor) for one in tree_leaves((args, kwargs))):
            self._created_bytes = size = self._created_bytes + size
            self._operations += _OPERATIONS_PER_TENSOR * any(one.dim() for one in outputs)
        if size > self._most_bytes:
            self._refuse(bytes_text(size))

    def _refuse(self, what: str) -> NoReturn:
        self.exceeded = what
        raise TooLargeError(what)


def _on_meta(operation: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return an operation's outputs on the meta device; none where their size depends on values.

    Such outputs are no larger than the inputs.
    """
    names = {argument.name for argument in operation._schema.arguments}
    changed = {"device": torch.device("meta"), "pin_memory": None, "generator": None}
    kwargs = {**kwargs, **{name: value for name, value in changed.items() if name in names}}
    args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
    try:
        outputs = operation(*args, **kwargs)
    except (NotImplementedError, RuntimeError):
        return []
    return [one for one in tree_leaves(outputs) if isinstance(one, Tensor)]


def _to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
