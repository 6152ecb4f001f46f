"""Models compiled by `torch.compile`, without a change of their names, for one size of batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdscale.distributed import is_out_of_memory
from kdscale.errors import ModelError

CompileMode = Literal[True, "reduce-overhead"]
"""True (torch's default mode), or the mode of `torch.compile` that records CUDA graphs."""

_RECORDING_CALLS = 3
"""Calls until CUDA graphs are recorded: one compiles, one warms up, one records."""


class CompiledModel:
    """A model whose forward and backward passes are compiled for batches of one size.

    The model itself stays as it is: whatever saves, evaluates or counts it sees its own names.
    Batches of other sizes, such as the last one of an epoch, run through the model uncompiled. So
    each size always runs through the same kernels, and a resumed run computes what an uninterrupted
    one does, which shapes that torch generalises along the way would not give.

    Args:
        model: an `nn.Module`; with several processes, as Accelerate prepared it.
        mode: True, or a mode of `torch.compile`.
        batch_size: images of the batches to compile for.
        what: the model's part and field, for messages: "student.train".
    """

    def __init__(self, model: nn.Module, mode: CompileMode, *, batch_size: int, what: str) -> None:
        self.model, self.batch_size, self.what = model, batch_size, what
        named = None if mode is True else mode
        self._compiled: Callable[[Tensor], Any] = torch.compile(model, mode=named, dynamic=False)
        self._compiling_calls = 1 if mode is True else _RECORDING_CALLS
        self.calls = 0
        """Batches that went through the compiled model."""

    @property
    def is_ready(self) -> bool:
        """Whether the next batch costs no compiling any more."""
        return self.calls >= self._compiling_calls

    def __call__(self, inputs: Tensor) -> Any:
        """Return what the model gives for a batch.

        Raises:
            ModelError: the model cannot be compiled here.
        """
        if len(inputs) != self.batch_size:
            return self.model(inputs)
        with compile_errors(self.what):
            found = self._compiled(inputs)
        self.calls += 1
        return found


@contextmanager
def compile_errors(what: str) -> Iterator[None]:
    """Turn errors of the compiler within the block into a ModelError that names the remedy."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error) or not _of_compiler(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{what}.compile: torch cannot compile the model here ({reason}): it needs a C++ "
            "compiler such as g++ on a CPU, Triton on a GPU, and a model that it can trace; "
            f"install what is missing, or set {what}.compile = false"
        ) from error


def _of_compiler(error: Exception) -> bool:
    """Return whether an error is one of torch.compile, whose import takes seconds."""
    modules = [kind.__module__ for kind in type(error).__mro__]
    return any(one.startswith(("torch._dynamo", "torch._inductor", "triton")) for one in modules)
