"""Which view of a sample an epoch shows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.views.schedule import ViewSchedule
from tests.data import replay

SEEDS = st.sampled_from([0, 1, 2**63 - 1]) | st.integers(0, 2**63 - 1)
INDEX = torch.arange(200)


@settings(max_examples=40, deadline=None)
@given(
    num_views=st.integers(1, 12),
    seed=SEEDS,
    cycle=st.integers(0, 300),
    shift_every=st.integers(1, 250),
)
def test_every_sample_shows_every_view_once_in_a_cycle(num_views, seed, cycle, shift_every):
    schedule = ViewSchedule(num_views, seed, shift_every)
    epochs = range(cycle * num_views, (cycle + 1) * num_views)
    rendered = torch.stack([schedule.view(epoch, INDEX) for epoch in epochs])
    assert (rendered.sort(0).values == torch.arange(num_views).view(-1, 1)).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 5000), shift_every=st.integers(1, 250))
def test_shifted_schedule_is_that_of_the_independent_reader(seed, epoch, shift_every):
    found = ViewSchedule(7, seed, shift_every).view(epoch, INDEX)
    wanted = [replay.shifted_view(epoch, index, 7, seed, shift_every) for index in INDEX.tolist()]
    assert found.tolist() == wanted


def test_a_block_shows_one_view_and_blocks_show_different_ones():
    schedule = ViewSchedule(10, 4, shift_every=20)
    blocks = schedule.view(3, INDEX).view(10, 20)
    assert (blocks == blocks[:, :1]).all()
    assert len(blocks[:, 0].unique()) > 3


def test_view_does_not_depend_on_who_asks_with_it():
    schedule = ViewSchedule(10, 4, shift_every=7)
    whole = schedule.view(12, INDEX)
    for part in INDEX[torch.randperm(200)].split(13):
        assert schedule.view(12, part).equal(whole[part])


def test_views_of_an_epoch_are_used_alike():
    schedule = ViewSchedule(10, 0, shift_every=1)
    counts = torch.bincount(schedule.view(0, torch.arange(20_000)), minlength=10).double()
    assert ((counts - 2000) ** 2 / 2000).sum() < 33.7  # chi-square, 9 degrees, 0.9999 quantile
