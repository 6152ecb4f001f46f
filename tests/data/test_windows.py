"""Windows: samples near each other in an epoch, where not all fit memory; how random that is."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.validation_split import split_validation
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import DataError
from tests.data import replay

COUNTERS = st.integers(0, 2**63 - 1)
CPU = torch.device("cpu")


def loader(windows, *, samples=None, mixing=None, **options):
    count = windows.num_samples
    pixels = replay.sample_images(1, 2, 2, range(count))
    split = ImageDataset(
        pixels, torch.zeros(count).long().numpy(), ("0",), "", "synthetic", "train"
    )
    pipeline = Pipeline.parse(["mixup"] if mixing else [], pairing=mixing)
    samples = torch.arange(count) if samples is None else samples
    options = {"seed": windows.seed, "global_batch_size": 4} | options
    return BatchLoader(
        DeviceImages(split, CPU), samples, pipeline, ViewSchedule(3, 0), windows=windows, **options
    )


def order(found, epoch):
    steps = range(epoch * found.steps_per_epoch, (epoch + 1) * found.steps_per_epoch)
    return torch.cat([found.index(step) for step in steps])


def order_of(windows, epoch):
    """As a loader has it, without one: quick enough for large sets."""
    index = replay.permutation(windows.num_samples, replay.chain(1), windows.seed, epoch)
    index = torch.from_numpy(index)
    return index[windows.number(epoch, index).argsort(stable=True)]


# --------------------------------------------------------------------------- the order


@pytest.mark.parametrize(
    ("count", "unit", "units", "seed", "epoch", "expected"), replay.known_answers("windows")
)
def test_windows_give_the_documented_answers(count, unit, units, seed, epoch, expected):
    found = loader(Windows(count, unit, units, seed), global_batch_size=1)
    assert order(found, epoch).tolist() == expected
    assert replay.windowed_order(count, unit, units, seed, epoch) == expected


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(8, 60),
    unit=st.integers(4, 20),
    units=st.integers(2, 5),
    seed=COUNTERS,
    epoch=st.integers(0, 40),
)
def test_independent_reader_finds_the_windows(num_samples, unit, units, seed, epoch):
    windows = Windows(num_samples, unit, units, seed)
    expected = replay.windowed_order(num_samples, unit, units, seed, epoch)
    assert order(loader(windows, global_batch_size=1), epoch).tolist() == expected
    numbers = windows.number(epoch, torch.tensor(expected))
    assert numbers.unique().tolist() == list(range(len(windows)))
    assert numbers.bincount().max() <= windows.most_samples
    assert numbers.bincount().min() >= windows.fewest_samples(torch.arange(num_samples))


def test_one_window_is_the_order_without():
    found = loader(Windows(50, 7, 8, 3))
    whole = [replay.epoch_order(range(50), 3, epoch) for epoch in range(3)]
    assert [order(found, epoch).tolist() for epoch in range(3)] == whole


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_processes_together_show_the_batch_of_one(num_processes):
    windows = Windows(101, 8, 3, 5)
    options = {"global_batch_size": 12}
    alone = loader(windows, global_batch_size=12)
    parts = [
        loader(windows, process=(index, num_processes), **options) for index in range(num_processes)
    ]
    for step in range(alone.steps_per_epoch - 1):
        together = torch.cat([part.index(step) for part in parts])
        assert together.equal(alone.index(step))


@pytest.mark.parametrize("within", [None, 6, 12])
@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_every_sample_is_used_once_and_partners_in_a_window_side_by_side(within, validation):
    pairing = MixPairs(100, validation, within)
    windows = Windows(100, 12, 3, 0)
    samples = split_validation(100, validation)[0]
    found = loader(windows, samples=samples, mixing=pairing)
    for epoch in range(4):
        index = order(found, epoch)
        assert index.sort().values.equal(samples)
        number = windows.number(epoch, index)
        assert number.equal(number.sort().values)
        partner = found.pipeline.partner(found.schedule.view(epoch, index), index)
        together = windows.number(epoch, partner) == number
        assert bool(together.all()) == (within is not None)
        place = torch.empty(100, dtype=torch.int64)
        place[index] = torch.arange(len(index))
        apart = (place[index] - place[partner]).abs()
        assert (apart[together] <= 1).all()


def test_batch_larger_than_a_window_is_refused():
    windows = Windows(100, 10, 2, 0)
    with pytest.raises(DataError, match=r"20 training samples, fewer than a batch of 24: set a l"):
        loader(windows, global_batch_size=24)
    held_out = split_validation(100, 0.5)[0]
    with pytest.raises(DataError, match="fewer than a batch of 20"):
        loader(windows, samples=held_out, global_batch_size=20)


# --------------------------------------------------------------------------- how random it is


def lag_correlation(values):
    """Correlation of a sample with the next one."""
    centred = values.double() - values.double().mean()
    return float((centred[1:] * centred[:-1]).mean() / centred.square().mean())


@pytest.mark.parametrize("units", [5, 20, 50])
def test_labels_of_a_sorted_set_correlate_no_more_than_documented(units):
    """10 labels of 2000 samples each, one after the other, in 200 units."""
    num_samples, num_units, epochs = 20000, 200, 20
    labels = torch.arange(num_samples) // 2000
    windows = Windows(num_samples, num_samples // num_units, units, 0)
    found = [lag_correlation(labels[order_of(windows, epoch)]) for epoch in range(epochs)]
    documented = (1 - units / num_units) / units
    assert sum(found) / epochs == pytest.approx(documented, rel=0.25, abs=0.002)
    whole = [lag_correlation(labels[torch.randperm(num_samples)]) for _ in range(epochs)]
    assert abs(sum(whole) / epochs) < 0.006
    assert lag_correlation(labels) > 0.99  # the order that they have to begin with


def test_labels_in_no_order_do_not_correlate():
    labels = torch.randint(0, 10, (20000,), generator=torch.Generator().manual_seed(0))
    windows = Windows(20000, 100, 5, 0)
    found = [lag_correlation(labels[order_of(windows, epoch)]) for epoch in range(20)]
    assert abs(sum(found) / 20) < 0.006


def batch_numbers(order, size):
    """The batch of each sample."""
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order)) // size
    return found


def shared_again(orders, size):
    """How often two samples that shared a batch share one in the next epoch."""
    again = total = 0
    for one, other in pairwise(orders):
        following = batch_numbers(other, size)
        batches = following[one[: len(one) // size * size].view(-1, size)].sort(dim=1).values
        for column in range(1, size):  # equal values stand together
            again += int((batches[:, column:] == batches[:, :-column]).sum())
        total += len(batches) * size * (size - 1) // 2
    return again / total


@pytest.mark.parametrize(("units", "num_units"), [(20, 100), (10, 100)])
def test_samples_share_a_batch_again_as_seldom_as_documented(units, num_units):
    num_samples, size = 20000, 50
    windows = Windows(num_samples, num_samples // num_units, units, 0)
    ours = shared_again([order_of(windows, epoch) for epoch in range(9)], size)
    whole = (size - 1) / (num_samples - 1)
    documented = 1 + len(windows) / units
    assert ours / whole == pytest.approx(documented, rel=0.15)


def test_units_meet_in_about_one_epoch_of_as_many_as_there_are_windows():
    windows = Windows(1000, 10, 10, 0)
    units = torch.arange(0, 1000, 10)
    numbers = torch.stack([windows.number(epoch, units) for epoch in range(300)])
    together = (numbers[:, :, None] == numbers[:, None, :]).double().mean(0)
    apart = together[~torch.eye(100, dtype=torch.bool)]
    assert apart.mean() == pytest.approx(9 / 99)
    assert apart.max() < 0.2
    first = (numbers == 0).double().sum(0)  # and each comes first as often as the others
    assert ((first - 30) ** 2 / 27).sum() < 159.0  # chi-square, 99 degrees, 0.9999 quantile
