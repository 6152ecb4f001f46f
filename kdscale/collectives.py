"""Values of all processes, with gradients: a step's whole batch, where each has a part of it.

DistributedDataParallel averages the processes' gradients. So where each computes something from the
whole batch, gradients are added up over processes on their way back: the average is then that of
one process which has the whole batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import all_reduce, get_rank, get_world_size


class _Sum(Function):
    """Each process's part has a share in what all make of the sum: their gradients' sum."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0])


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes, which all call this, with values of one shape."""
    total: Tensor = _Sum.apply(values)
    return total


def all_gather_rows(values_B: Tensor) -> Tensor:
    """The rows of all processes, in their order, [processes · B, ...]; all have as many.

    A sum of rows and zeros, which is exact, so that one collective and its gradient are enough.
    """
    process, count = get_rank(), get_world_size()
    before = values_B.new_zeros(process * len(values_B), *values_B.shape[1:])
    after = values_B.new_zeros((count - process - 1) * len(values_B), *values_B.shape[1:])
    return all_reduce_sum(torch.cat((before, values_B, after)))
