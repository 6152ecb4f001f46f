"""Weights files of transformers, whose tensors have other names on disk than in memory.

Version 5 renamed modules of many models and left the names that `save_pretrained` writes, so that
old files stay readable: only the library can map them.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def in_library_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors under the names of a model of transformers.

    Args:
        model: of any library; tensors of other libraries stay as named.
        tensors: of the file.

    Returns:
        What the file holds, so that the caller finds what is missing, left over or of another
        shape.
    """
    own = model.state_dict()
    transformers: Any = sys.modules.get("transformers")  # whoever made such a model imported it
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return dict(tensors)
    of_numbers = all(tensor.is_floating_point() for tensor in tensors.values())
    if own.keys() <= tensors.keys() or not of_numbers:  # the library would convert the latter
        return dict(tensors)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the caller reports what does not fit
    try:
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(tensors),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    found = {
        name: value
        for name, value in loaded.state_dict().items()
        if name not in info["missing_keys"]
    }
    found |= {name: torch.empty(got) for name, got, _ in info["mismatched_keys"]}
    return found | {name: tensors[name] for name in info["unexpected_keys"] if name in tensors}
