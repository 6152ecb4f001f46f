"""Order in which to build shards for a student that waits: as its epochs use them."""

from collections.abc import Iterator

import torch

from kdscale.cache.manifest import Manifest
from kdscale.data.views.schedule import ViewSchedule


def shards_of_epoch(
    schedule: ViewSchedule, manifest: Manifest, epoch: int
) -> Iterator[tuple[int, int]]:
    """Yield (view, shard) of all targets of an epoch, shard by shard."""
    for shard in range(manifest.num_shards):
        start, stop = manifest.shard_range(shard)
        every = schedule.shift_every or manifest.num_samples
        blocks = torch.arange(start // every, (stop - 1) // every + 1) * every  # of one view each
        view = schedule.view(epoch, blocks)
        views = [view] if isinstance(view, int) else torch.unique(view).tolist()
        yield from ((int(one), shard) for one in views)


def building_order(schedule: ViewSchedule, manifest: Manifest) -> list[tuple[int, int]]:
    """Return all (view, shard) of a cache in the order in which a student uses them."""
    epochs = range(schedule.num_views)
    used = (one for epoch in epochs for one in shards_of_epoch(schedule, manifest, epoch))
    return list(dict.fromkeys(used))
