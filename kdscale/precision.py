"""Precision of a part of the work, chosen by the recipe and never by the launcher."""

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which models run at `precision`: float32, bfloat16 or float16."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
