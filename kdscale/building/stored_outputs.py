"""What a cache keeps of a teacher beside its logits: what enters its head, and features."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from kdscale.cache.manifest import Manifest
from kdscale.formatting import number_of
from kdscale.models.feature_extraction import FeatureSpec
from kdscale.targets import Head
from kdscale.teacher.frozen_teacher import FrozenTeacher

log = logging.getLogger(__name__)

_LARGE_SHARD = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class StoredOutputs:
    """What a recipe's cache keeps beside the teacher's logits, as a look at the teacher shows."""

    taps: tuple[FeatureSpec, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of one sample's features, of each of `taps`."""
    head: Head | None = None
    head_module: str | None = None

    @property
    def once(self) -> dict[str, np.ndarray]:
        """What is stored once, by array name."""
        return {} if self.head is None else self.head.arrays()

    def described(self) -> list[dict[str, Any]]:
        """The features, as a manifest has them."""
        pairs = zip(self.taps, self.shapes, strict=True)
        return [
            {"module": tap.module, "pool": tap.pool, "shape": list(shape)} for tap, shape in pairs
        ]


def find_stored_outputs(
    teacher: FrozenTeacher, pixels: Tensor, features: Sequence[FeatureSpec], *, embedding: bool
) -> StoredOutputs:
    """Run a teacher on some pixels, and return the outputs that a cache stores beside its logits.

    Args:
        teacher: any teacher, also one with random weights.
        pixels: uint8 [B, C, H, W], views of a few images.
        features: modules whose outputs are stored.
        embedding: whether the input of the last layer is stored in place of the logits.

    Raises:
        ConfigError: a module is unknown, or its output cannot be stored; or the teacher's last
            layer is not linear, and the encoding needs that.
    """
    taps = tuple(features)
    outputs = StoredOutputs(taps)
    if taps:
        found = replace(teacher, taps=taps).outputs(pixels).features
        outputs = replace(outputs, shapes=tuple(tuple(found[tap.module].shape[1:]) for tap in taps))
    if embedding:
        module, head = teacher.find_head(pixels)
        outputs = replace(outputs, head=head, head_module=module)
    return outputs


def configure_teacher(
    teacher: FrozenTeacher, manifest: Manifest, outputs: StoredOutputs
) -> FrozenTeacher:
    """Return the teacher with the outputs that the cache stores, maybe more than the recipe's."""
    return replace(
        teacher, taps=taps_of(manifest.features), head=outputs.head, head_module=outputs.head_module
    )


def taps_of(features: Sequence[Mapping[str, Any]]) -> tuple[FeatureSpec, ...]:
    """The modules of a manifest's features."""
    return tuple(FeatureSpec(one["module"], one["pool"]) for one in features)


def mention_large_shards(manifest: Manifest) -> None:
    """Say so where a builder holds much: features may be large."""
    size = manifest.shard_samples * manifest.bytes_per_sample
    if size > _LARGE_SHARD:
        log.warning(
            "a shard of %s takes %.1f GB, and a builder holds up to four of them: set a smaller "
            "cache.shard_samples, or `pool` for the features",
            number_of(manifest.shard_samples, "sample"), size / 1e9,
        )  # fmt: skip
