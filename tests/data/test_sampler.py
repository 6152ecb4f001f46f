"""Which samples a step shows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.validation_split import split_validation
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import DataError
from tests.data import replay

COUNTERS = st.integers(0, 2**63 - 1)


def loader(num_samples, *, samples=None, **options):
    pixels = replay.sample_images(1, 2, 2, range(num_samples))
    labels = torch.arange(num_samples).numpy() % 10
    split = ImageDataset(pixels, labels, tuple("0123456789"), "", "synthetic", "train")
    samples = torch.arange(num_samples) if samples is None else samples
    options = {"seed": 0, "global_batch_size": 12} | options
    images = DeviceImages(split, torch.device("cpu"))
    return BatchLoader(images, samples, Pipeline.parse([]), ViewSchedule(1, 0), **options)


def epoch_of(found, epoch):
    steps = range(epoch * found.steps_per_epoch, (epoch + 1) * found.steps_per_epoch)
    return [found.index(step).tolist() for step in steps]


def joined(lists):
    return [value for values in lists for value in values]


@pytest.mark.parametrize(("count", "seed", "epoch", "order"), replay.known_answers("order"))
def test_order_gives_the_documented_answers(count, seed, epoch, order):
    found = loader(count, seed=seed, global_batch_size=4)
    assert joined(epoch_of(found, epoch)) == order
    assert replay.epoch_order(list(range(count)), seed, epoch) == order


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(8, 60),
    seed=COUNTERS,
    part=st.integers(1, 5),
    processes=st.integers(1, 4),
    step=st.integers(0, 200),
)
def test_independent_reader_finds_every_process_its_samples(
    num_samples, seed, part, processes, step
):
    samples = torch.arange(num_samples) * 3 + 5
    options = {"seed": seed, "global_batch_size": part * processes}
    for process in range(processes):
        found = loader(200, samples=samples, process=(process, processes), **options)
        expected = replay.batch_indices(
            samples.tolist(), process_index=process, num_processes=processes, step=step, **options
        )
        assert found.index(step).tolist() == expected


def test_order_is_a_function_of_seed_and_epoch():
    base = loader(100, seed=1)
    assert epoch_of(loader(100, seed=1), 3) == epoch_of(base, 3)
    assert epoch_of(base, 3) != epoch_of(base, 4)
    assert epoch_of(base, 3) != epoch_of(loader(100, seed=2), 3)


@pytest.mark.parametrize("num_samples", [1, 11, 12, 14, 100])
def test_every_sample_is_used_once_an_epoch(num_samples):
    found = loader(num_samples)
    assert found.steps_per_epoch == -(-num_samples // 12)
    for epoch in range(3):
        steps = epoch_of(found, epoch)
        assert [len(step) for step in steps[:-1]] == [12] * (len(steps) - 1)
        assert sorted(joined(steps)) == list(range(num_samples))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("num_samples", [96, 100, 101, 13])
def test_processes_together_show_the_batch_of_one(num_samples, num_processes):
    """A tail that does not split evenly is cut: at most one sample fewer than processes."""
    alone = loader(num_samples)
    parts = [loader(num_samples, process=(index, num_processes)) for index in range(num_processes)]
    cut = num_samples % num_processes
    for epoch in range(2):
        expected = joined(epoch_of(alone, epoch))[: num_samples - cut]
        shares = [epoch_of(part, epoch) for part in parts]
        together = [joined(step) for step in zip(*shares, strict=True)]
        assert joined(together) == expected
        assert all(len(step) == 12 for step in together[:-1])
        assert {len({len(part) for part in step}) for step in zip(*shares, strict=True)} == {1}


def test_samples_that_are_cut_differ_from_epoch_to_epoch():
    parts = [loader(13, process=(index, 4)) for index in range(4)]
    rendered = [
        {i for part in parts for step in epoch_of(part, epoch) for i in step} for epoch in range(40)
    ]
    assert all(len(epoch) == 12 for epoch in rendered)
    assert len({min(set(range(13)) - epoch) for epoch in rendered}) > 5


def test_resumed_loader_shows_the_same_samples():
    whole = loader(50, seed=3)
    expected = [whole.index(step).tolist() for step in range(20)]
    for start in range(20):
        resumed = loader(50, seed=3)
        assert [resumed.index(step).tolist() for step in range(start, 20)] == expected[start:]


def test_steps_may_be_computed_in_any_order():
    found = loader(50)
    expected = [found.index(step).tolist() for step in range(15)]
    assert [found.index(step).tolist() for step in reversed(range(15))] == expected[::-1]


def test_too_few_samples_and_uneven_batches_are_refused():
    with pytest.raises(DataError, match="3 training samples for 4 processes: too few"):
        loader(3, process=(0, 4))
    with pytest.raises(DataError, match=r"12 does not split over 5 processes: choose a multiple"):
        loader(50, process=(0, 5))


@pytest.mark.parametrize(("count", "share", "expected"), replay.known_answers("validation"))
def test_validation_gives_the_documented_answers(count, share, expected):
    train, held_out = split_validation(count, share)
    assert held_out.tolist() == (expected if isinstance(expected, list) else [expected])
    assert (train.tolist(), held_out.tolist()) == replay.split_validation(count, share)


@given(num_samples=st.integers(1, 400), share=st.floats(0, 1))
def test_validation_split_is_disjoint_and_of_the_right_share(num_samples, share):
    train, held_out = split_validation(num_samples, share)
    assert torch.cat((train, held_out)).sort().values.equal(torch.arange(num_samples))
    assert len(held_out) == round(num_samples * share)
    assert all(part.equal(part.sort().values) for part in (train, held_out))
    again = split_validation(num_samples, share)
    assert train.equal(again[0])
    assert held_out.equal(again[1])
