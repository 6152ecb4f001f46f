"""Plan how targets of caches are read into a given amount of memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from kdscale.cache.manifest import Manifest
from kdscale.data.windows import Windows
from kdscale.errors import ConfigError
from kdscale.formatting import number_of
from kdscale.target_sources.prefetch import row_bytes
from kdscale.target_sources.read_stats import memory_text

log = logging.getLogger(__name__)

SHARDS_IN_HAND = 3  # while one is read: its bytes, the arrays, and a copy of part of them


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Targets that are in memory at the same time."""

    ahead: bool = True
    """Whether the next epoch's targets are prefetched into memory of their own."""
    windows: Windows | None = None
    """Windows of an epoch, two of which are in memory; None: all targets of an epoch are."""
    epochs: int | None = None
    """Number of epochs, after which nothing is prefetched; None: no end."""


EVERYTHING = MemoryPlan()
"""All targets of an epoch, and of the next one."""


def plan_memory(
    memory_bytes: int | None,
    manifests: Sequence[Manifest],
    *,
    num_views: int,
    together: int | None = None,
    seed: int = 0,
    features: Sequence[str] = (),
    epochs: int | None = None,
) -> MemoryPlan:
    """Plan which targets are in memory at the same time.

    Args:
        memory_bytes: largest size of the targets of all caches; None: any.
        manifests: manifests of caches of the same samples, read for the same batches.
        num_views: number of views in use.
        together: consecutive samples that share a window; None: those that the views may mix.
        seed: seed of the order of training, which windows follow.
        features: modules of the teacher whose features are in memory too.
        epochs: number of epochs, after which nothing is prefetched; None: no end.

    Raises:
        ConfigError: the smallest windows do not fit.
    """
    if memory_bytes is None:
        return MemoryPlan(epochs=epochs)
    if together is None:
        together = manifests[0].views.get("pairing", {}).get("within")
    num_samples = manifests[0].num_samples
    row = sum(row_bytes(one, features) for one in manifests)
    in_hand = SHARDS_IN_HAND * sum(
        min(one.shard_samples, num_samples) * row_bytes(one, features) for one in manifests
    )
    epoch, room = num_samples * row, memory_bytes - in_hand
    if room >= epoch:
        ahead = num_views > 1 and room >= 2 * epoch
        if num_views > 1 and not ahead:
            log.info(
                "targets: those of an epoch, %s, fit in memory, but those of the next epoch are "
                "not prefetched: cache.targets_memory of %s would allow that",
                memory_text(epoch), memory_text(2 * epoch + in_hand),
            )  # fmt: skip
        return MemoryPlan(ahead, epochs=epochs)
    shards = lcm(*(one.shard_samples for one in manifests))
    unit = min(num_samples, lcm(shards, together or 1))
    if room < 2 * unit * row:
        raise ConfigError(
            f"cache.targets_memory is {memory_text(memory_bytes)}, but two windows of "
            f"{number_of(unit, 'sample')}, and what reading them takes, are "
            f"{memory_text(2 * unit * row + in_hand)}: set that at least, or a cache.encoding that "
            "takes less, or " + _smaller_windows(manifests, unit, shards)
        )
    windows = Windows(num_samples, unit, room // (2 * unit * row), seed)
    log.info(
        "targets: those of an epoch, %s, exceed cache.targets_memory, so they are read in %s "
        "of at most %s, each shuffled by itself",
        memory_text(epoch), number_of(len(windows), "window"),
        number_of(windows.most_samples, "sample"),
    )  # fmt: skip
    return MemoryPlan(windows=windows, epochs=epochs)


def _smaller_windows(manifests: Sequence[Manifest], unit: int, shards: int) -> str:
    """Describe how to get windows that take less memory."""
    if any(one.chunk_samples is not None for one in manifests):
        return (
            "copy a cache whose objects are large into a folder, with `kdscale cache pull`: they "
            "are smaller there"
        )
    if unit > shards:
        return f"views.pair_within = {shards}, which are whole shards"
    return "build with a smaller cache.shard_samples"
