"""Precision of a part of the work, chosen by the recipe and never by the launcher."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which models run at `precision`: float32, bfloat16 or float16."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def tf32() -> Iterator[None]:
    """Let CUDA GPUs round the inputs of float32 products to TF32 within the block.

    Outside of such a block float32 is float32, as `create_accelerator` sets it at the start: TF32,
    of 10 bits, moves logits by 1e-3.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
