"""State of libraries that belongs to the program which calls kdscale, and is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, GradientState


@contextmanager
def own_state() -> Iterator[None]:
    """Run the block with an Accelerate state of its own, among the same processes.

    All `Accelerator`s of a program share precision and accumulation, so that kdscale's, without
    mixed precision, would fail beside a program's own or change it. TF32 flags are restored, too.
    """
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in shared]
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for state in shared:
        state.clear()  # in place: an `Accelerator` refers to it
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
