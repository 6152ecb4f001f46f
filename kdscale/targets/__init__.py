"""Targets as tensors, and how they are encoded."""

from kdscale.targets.codecs import Codec, as_tensor, create_codec, encode_features
from kdscale.targets.types import (
    DenseTargets,
    Head,
    Mix,
    Targets,
    TopKTargets,
    all_classes,
    log_sums,
    mixed_targets,
    needs_all_classes,
    tail_weights,
)

__all__ = [
    "Codec",
    "DenseTargets",
    "Head",
    "Mix",
    "Targets",
    "TopKTargets",
    "all_classes",
    "as_tensor",
    "create_codec",
    "encode_features",
    "log_sums",
    "mixed_targets",
    "needs_all_classes",
    "tail_weights",
]
