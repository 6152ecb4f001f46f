"""What a student is pulled towards, and how it is stored: what both flows share."""

from kdscale.targets.encodings import (
    ENCODINGS,
    Encoding,
    as_held,
    decode,
    decode_held,
    encode,
    encode_features,
)
from kdscale.targets.types import (
    DenseTargets,
    Head,
    Mix,
    Targets,
    TopKTargets,
    all_classes,
    log_sums,
    mixed_targets,
    tail_weights,
)

__all__ = [
    "ENCODINGS",
    "DenseTargets",
    "Encoding",
    "Head",
    "Mix",
    "Targets",
    "TopKTargets",
    "all_classes",
    "as_held",
    "decode",
    "decode_held",
    "encode",
    "encode_features",
    "log_sums",
    "mixed_targets",
    "tail_weights",
]
