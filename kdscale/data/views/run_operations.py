"""Operations in a row on images, as they are or compiled."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from kdscale.data.views.operations.mixing import Mixing
from kdscale.data.views.operations.operation import Operation


def run_operations(
    operations: tuple[Operation | Mixing, ...], images: Tensor, words: Tensor
) -> Tensor:
    """The operations one after the other, none of which mixes."""
    first = 0
    for operation in operations:
        assert not isinstance(operation, Mixing), "partners' images are at hand in `render` alone"
        images = operation(images, words[first : first + operation.num_draws])
        first += operation.num_draws
    return images


@lru_cache(maxsize=1)
def compiled_run() -> Callable[[tuple[Operation | Mixing, ...], Tensor, Tensor], Tensor]:
    """`run_operations`, compiled for each pipeline and size at its first batch.

    Operations then take the code that asks the device nothing, in integers and exact floats: the
    results are the same, bit for bit.
    """
    compiled: Callable[[tuple[Operation | Mixing, ...], Tensor, Tensor], Tensor]
    compiled = torch.compile(run_operations)
    return compiled
