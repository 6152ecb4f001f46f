"""Settings that losses were published with: stated once, for recipes and for the functions.

Imports nothing, so that a recipe is read without torch. The papers are named in the docstrings of
the functions in `kdscale/losses/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PublishedLoss:
    """Settings of one loss between logits."""

    temperature: float = 1.0
    """Temperature that softens logits."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Weights of the parts of the loss, by name."""
    warmup_epochs: int = 0
    """Epochs over which the weight of the loss rises linearly."""
    softened: bool = True
    """Whether the loss takes a temperature; logits are compared as they are if not."""


KD = PublishedLoss(4.0)
MSE = PublishedLoss(softened=False)
DKD = PublishedLoss(4.0, {"target_weight": 1.0, "non_target_weight": 8.0}, warmup_epochs=20)
NKD = PublishedLoss(1.0, {"non_target_weight": 1.5})
DIST = PublishedLoss(1.0, {"inter_weight": 1.0, "intra_weight": 1.0})
WTTM = PublishedLoss(4.0)

LOGIT_LOSSES = {"kd": KD, "mse": MSE, "dkd": DKD, "nkd": NKD, "dist": DIST, "wttm": WTTM}
"""Losses between logits by `loss.kind`."""

HINT = {"kernel_size": 1}
RKD = {"distance_weight": 25.0, "angle_weight": 50.0}

FEATURE_LOSSES: Mapping[str, Mapping[str, float]] = {
    "cosine": {},
    "hint": HINT,
    "attention": {},
    "rkd": RKD,
}
"""Options of losses between features by their kind."""

STANDARDIZED_TEMPERATURE = 2.0
"""Temperature with `loss.standardize`: published for kd and dkd alike."""
