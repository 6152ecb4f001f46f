"""What a cache keeps of a teacher beside its logits: what enters its head, and features."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from kdscale import config
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


def look(settings: config.CacheSection, teacher: FrozenTeacher, pixels: Tensor) -> StoredOutputs:
    """See on some pixels what a cache would keep of a teacher.

    Args:
        settings: the recipe's section.
        teacher: any; with random weights too.
        pixels: uint8 [B, C, H, W], views of a few images.

    Raises:
        ConfigError: a module is unknown or gives what cannot be stored; or the teacher's last layer
            is not linear, and the encoding needs that.
    """
    taps = tuple(FeatureSpec(one.module, one.pool) for one in settings.features)
    kept = StoredOutputs(taps)
    if taps:
        seen = replace(teacher, taps=taps).answers(pixels).features
        kept = replace(kept, shapes=tuple(tuple(seen[tap.module].shape[1:]) for tap in taps))
    if settings.encoding == "embedding":
        module, head = teacher.find_head(pixels)
        kept = replace(kept, head=head, head_module=module)
    return kept


def configure_teacher(
    teacher: FrozenTeacher, manifest: Manifest, kept: StoredOutputs
) -> FrozenTeacher:
    """The teacher, whose answers hold what a cache keeps: maybe more features than a recipe's."""
    return replace(
        teacher, taps=taps_of(manifest.features), head=kept.head, head_module=kept.head_module
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
