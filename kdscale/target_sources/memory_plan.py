"""How the targets of caches are brought into a given amount of memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from kdscale.cache.manifest import Manifest
from kdscale.data.windows import Windows
from kdscale.errors import ConfigError
from kdscale.formatting import number_of
from kdscale.target_sources.buffer import row_bytes
from kdscale.target_sources.read_stats import memory_text

log = logging.getLogger(__name__)

SHARDS_IN_HAND = 3  # while one is read: its bytes, what they decode to, and a copy of part of it


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What is held at once."""

    ahead: bool = True
    """Whether there is place for what the next epoch shows, beside what this one does."""
    windows: Windows | None = None
    """In which an epoch is held, with the next window; None: whole."""


EVERYTHING = MemoryPlan()


def plan_memory(
    memory_bytes: int,
    manifests: Sequence[Manifest],
    *,
    num_views: int,
    together: int | None = None,
    seed: int = 0,
    features: Sequence[str] = (),
) -> MemoryPlan:
    """What of an epoch's targets fits into memory.

    Args:
        memory_bytes: for all of the caches.
        manifests: manifests of caches of the same samples, which are read for the same batches.
        num_views: that epochs show.
        together: consecutive samples that must not be parted.
        seed: of the order of training.
        features: modules of the teacher whose features are held too.

    Raises:
        ConfigError: not even the smallest windows fit.
    """
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
                "targets: what an epoch shows, %s, is held whole, but the next epoch's is not read "
                "meanwhile: cache.targets_memory of %s would allow that",
                memory_text(epoch), memory_text(2 * epoch + in_hand),
            )  # fmt: skip
        return MemoryPlan(ahead)
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
        "targets: what an epoch shows, %s, does not fit cache.targets_memory, so it is read in %s "
        "of at most %s, each shuffled by itself",
        memory_text(epoch), number_of(len(windows), "window"),
        number_of(windows.most_samples, "sample"),
    )  # fmt: skip
    return MemoryPlan(windows=windows)


def _smaller_windows(manifests: Sequence[Manifest], unit: int, shards: int) -> str:
    """What to do for windows that take less memory."""
    if any(one.chunk_samples is not None for one in manifests):
        return (
            "copy a cache whose objects are large into a folder, with `kdscale cache pull`: they "
            "are smaller there"
        )
    if unit > shards:
        return f"views.pair_within = {shards}, which are whole shards"
    return "build with a smaller cache.shard_samples"
