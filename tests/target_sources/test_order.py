"""Shards are built in the order in which a student is shown them."""

from dataclasses import replace

import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.data.views.schedule import ViewSchedule
from kdscale.target_sources.shard_order import building_order, shards_of_epoch


@pytest.fixture
def manifest(tiny_cache):
    """7 views of 128 samples in shards of 32."""
    return replace(read_manifest(tiny_cache), num_views=7)


@pytest.mark.parametrize("shift_every", [None, 32, 64, 20, 1000])
def test_an_epoch_needs_the_shards_of_the_views_it_shows(manifest, shift_every):
    schedule = ViewSchedule(7, 3, shift_every)
    for epoch in range(16):
        shown = schedule.view(epoch, torch.arange(128))
        views = torch.full((128,), shown) if isinstance(shown, int) else shown
        expected = {(int(view), sample // 32) for sample, view in enumerate(views)}
        found = list(shards_of_epoch(schedule, manifest, epoch))
        assert set(found) == expected
        assert [shard for _, shard in found] == sorted(shard for _, shard in found)


@pytest.mark.parametrize("shift_every", [None, 32, 20])
def test_every_shard_is_built_once_and_what_is_used_first_comes_first(manifest, shift_every):
    schedule = ViewSchedule(7, 3, shift_every)
    order = building_order(schedule, manifest)
    assert sorted(order) == [(view, shard) for view in range(7) for shard in range(4)]
    needed = set()
    for epoch in range(7):
        needed |= set(shards_of_epoch(schedule, manifest, epoch))
        assert set(order[: len(needed)]) == needed
