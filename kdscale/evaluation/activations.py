"""The most memory that a forward pass holds at one time, counted tensor by tensor."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def peak_activation_bytes(model: nn.Module, inputs: Tensor, forward: Callable[[], Any]) -> int:
    """The largest sum of bytes of activations that are alive at one time in a forward pass.

    Counted are the memory of the inputs, which a caller holds throughout, and of every tensor that
    an operation of the pass makes, from then on until nothing refers to it: views and in-place
    operations add nothing. Not counted are parameters, buffers and what is computed from them alone
    (the copies in another precision that autocast makes), what a kernel needs for itself (cuDNN's
    workspaces), and the allocator's rounding. So the number is a property of the model, the same on
    any device where that runs the same operations.

    Args:
        model: in evaluation mode.
        inputs: what it is called with.
        forward: calls it; without autograd, which would keep activations.
    """
    weights = [*model.parameters(), *model.buffers()]
    with torch.no_grad(), _LiveBytes(weights, inputs) as live:
        forward()
    peak: int = live.peak
    return peak


class _LiveBytes(TorchDispatchMode):
    """Hears of every operation below autograd, and of the end of each tensor's memory."""

    def __init__(self, weights: list[Tensor], inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights, self._counted = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for weight in weights:
            self._weights[weight.untyped_storage()] = True
        self._now = self.peak = 0
        self._count(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        made_of = [one.untyped_storage() for one in _tensors((args, kwargs))]
        only_weights = bool(made_of) and all(one in self._weights for one in made_of)
        for tensor in _tensors(output):
            if only_weights:
                self._weights[tensor.untyped_storage()] = True
            else:
                self._count(tensor)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._weights or storage in self._counted:
            return
        size = storage.nbytes()
        self._counted[storage] = True
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self._now -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(values) if isinstance(one, Tensor))
