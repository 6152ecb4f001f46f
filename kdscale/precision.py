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
def tf32(allowed: bool) -> Iterator[None]:
    """Let CUDA GPUs round the inputs of float32 products to TF32 within the block, or not.

    Outside of such a block float32 is float32: TF32, of 10 bits, moves logits by 1e-3.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _set_tf32(allowed, allowed)
    try:
        yield
    finally:
        _set_tf32(*before)


def _set_tf32(products: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
