"""Targets as tensors, and how they are encoded."""

from kdscale.targets.codecs import Codec, as_tensor, create_codec, encode_features
from kdscale.targets.types import (
    DenseTargets,
    FeatureTargets,
    Head,
    Mix,
    Targets,
    TopKTargets,
    all_classes,
    log_sums,
    mixed_targets,
    needs_all_classes,
    needs_logits,
    tail_weights,
)

__all__ = [
    "Codec",
    "DenseTargets",
    "FeatureTargets",
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
    "needs_logits",
    "tail_weights",
]
