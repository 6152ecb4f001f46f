"""What a student is pulled towards, and how it is stored: the type both flows share.

Shapes: B samples, C classes. Raw logits always, never probabilities: the temperature belongs to the
student.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import CacheError

ENCODINGS: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """A teacher's logits over all classes."""

    logits_BC: Tensor
    """float32 [B, C]"""


@dataclass(frozen=True, slots=True)
class Mix:
    """Whom the samples of a batch are mixed with."""

    index_B: Tensor
    """int64 [B], the partners' positions in the data set."""
    labels_B: Tensor
    """int64 [B], the partners' labels."""
    weight_B: Tensor
    """float32 [B], share of a sample's own label, 0..1."""


def mixed_targets(own: DenseTargets, other: DenseTargets, weight_B: Tensor) -> DenseTargets:
    """What a teacher that saw both images clean would say of their mixture.

    Its probabilities (temperature 1) are the weighted means of both; what is returned are their
    logarithms, [B, C].
    """
    weight_B1 = weight_B.unsqueeze(1)
    own_BC = own.logits_BC.log_softmax(1) + weight_B1.log()
    other_BC = other.logits_BC.log_softmax(1) + (1 - weight_B1).log()
    return DenseTargets(torch.logaddexp(own_BC, other_BC))


def encode(logits_BC: Tensor, encoding: str) -> dict[str, np.ndarray]:
    """What is stored for float32 logits [B, C], by array name.

    Raises:
        CacheError: a value is not finite, or beyond the encoding's range.
    """
    if not torch.isfinite(logits_BC).all():
        raise CacheError(
            "the teacher gave logits that are not finite: check its weights and input, "
            "or set teacher.precision = 'float32'"
        )
    stored = logits_BC.to(torch.float32).cpu().numpy()
    limit = float(np.finfo(ENCODINGS[encoding]).max)
    largest = float(np.abs(stored).max(initial=0.0))
    if largest > limit:
        raise CacheError(
            f"the teacher gave a logit of {largest:.0f}, beyond {encoding}'s {limit:.0f}: "
            "set cache.encoding = 'float32'"
        )
    return {"logits": stored.astype(ENCODINGS[encoding])}


def decode(arrays: Mapping[str, np.ndarray]) -> DenseTargets:
    """The targets from what was stored; the inverse of `encode` up to the encoding's rounding."""
    return DenseTargets(torch.from_numpy(arrays["logits"].astype(np.float32)))


def bytes_per_target(num_classes: int, encoding: str) -> int:
    """Stored bytes of one sample's answer in one view, before compression."""
    return num_classes * ENCODINGS[encoding].itemsize
