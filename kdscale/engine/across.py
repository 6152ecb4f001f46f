"""Values of all processes, with gradients: a step's whole batch, where each has a part of it.

DistributedDataParallel averages the processes' gradients. So where each computes something from the
whole batch, gradients are added up over processes on their way back: the average is then that of
one process which has the whole batch.
"""

import torch
from torch import Tensor
from torch.distributed import get_rank, get_world_size
from torch.distributed.nn.functional import all_reduce


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, which all call this, with values of one shape."""
    total: Tensor = all_reduce(values)
    return total


def gathered(values_B: Tensor) -> Tensor:
    """The rows of all processes, in their order, [processes · B, ...]; all have as many.

    A sum of rows and zeros, which is exact, so that one collective and its gradient are enough.
    """
    process, count = get_rank(), get_world_size()
    before = values_B.new_zeros(process * len(values_B), *values_B.shape[1:])
    after = values_B.new_zeros((count - process - 1) * len(values_B), *values_B.shape[1:])
    return summed(torch.cat((before, values_B, after)))
