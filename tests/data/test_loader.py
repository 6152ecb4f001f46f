"""What a step shows of its samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.image_hashes import RowCheck, pixel_keys
from kdscale.data.loader import Batch, BatchLoader, DeviceImages
from kdscale.data.pixel_sources import as_tensor
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import DataError
from tests.data import replay

PIPELINE = Pipeline.parse([{"name": "random_crop", "padding": 1}, "random_horizontal_flip"])


@pytest.fixture
def split():
    pixels = replay.sample_images(3, 6, 5, range(50))
    labels = np.arange(50) * 7 % 50  # a permutation: a label tells its sample
    pixels.setflags(write=False)
    labels.setflags(write=False)
    return ImageDataset(pixels, labels, tuple(map(str, range(50))), "", "synthetic", "train")


def loader(split, num_views=4, memory_bytes=None, **options):
    return BatchLoader(
        DeviceImages(split, torch.device("cpu"), memory_bytes),
        torch.arange(5, 47),
        PIPELINE,
        ViewSchedule(num_views, 0),
        **{"seed": 0, "global_batch_size": 8} | options,
    )


def test_batch_joins_pixels_labels_and_view_by_index(split):
    found = loader(split)
    for step in range(4 * found.steps_per_epoch):
        batch = found.batch(step)
        index = batch.index.numpy()
        assert batch.view == replay.view_of_epoch(step // found.steps_per_epoch, 4, 0)
        assert batch.index.equal(found.index(step))
        np.testing.assert_array_equal(batch.labels, index * 7 % 50)
        images = torch.from_numpy(replay.sample_images(3, 6, 5, index))
        assert batch.pixels.equal(PIPELINE(images, batch.view, batch.index))


def test_processes_together_show_the_pixels_of_one(split):
    alone = loader(split)
    parts = [loader(split, process=(index, 2)) for index in range(2)]
    for step in (0, 3, alone.steps_per_epoch - 1, alone.steps_per_epoch):
        batches = [part.batch(step) for part in parts]
        expected = alone.batch(step)
        assert torch.cat([batch.pixels for batch in batches]).equal(expected.pixels)
        assert torch.cat([batch.labels for batch in batches]).equal(expected.labels)


def test_resumed_step_shows_the_same_pixels(split):
    whole = loader(split)
    for step in range(13):
        whole.batch(step)
    batch, resumed = whole.batch(13), loader(split).batch(13)
    assert batch.pixels.equal(resumed.pixels)
    assert (batch.view, batch.index.tolist()) == (resumed.view, resumed.index.tolist())


def test_every_view_of_every_sample_is_used_once_a_cycle(split):
    found = loader(split, num_views=3)
    for cycle in range(2):
        first = cycle * 3 * found.steps_per_epoch
        batches = [found.batch(first + step) for step in range(3 * found.steps_per_epoch)]
        rendered = [(batch.view, i) for batch in batches for i in batch.index.tolist()]
        assert sorted(rendered) == [(view, i) for view in range(3) for i in range(5, 47)]


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_batch_splits_into_nearly_equal_pieces(split, parts):
    batch = loader(split).batch(0)
    pieces = list(batch.split(parts))
    sizes = [len(piece.index) for piece in pieces]
    assert len(pieces) == parts
    assert max(sizes) - min(sizes) <= 1
    assert all(isinstance(piece, Batch) and piece.view == batch.view for piece in pieces)
    for name in ("pixels", "labels", "index"):
        assert torch.cat([getattr(piece, name) for piece in pieces]).equal(getattr(batch, name))


def test_images_share_the_memory_of_a_read_only_array(split):
    assert as_tensor(split.pixels).data_ptr() == split.pixels.ctypes.data
    original = split.pixels.copy()
    pixels, labels = DeviceImages(split, torch.device("cpu")).gather(torch.tensor([3, 0]))
    pixels.zero_()
    assert labels.tolist() == [21, 0]
    np.testing.assert_array_equal(split.pixels, original)


@pytest.mark.parametrize("options", [{}, {"process": (1, 2)}])
def test_images_that_do_not_fit_give_the_same_batches(split, options):
    resident, streamed = loader(split, **options), loader(split, memory_bytes=1, **options)
    steps = [*range(2 * resident.steps_per_epoch), 3, 17]  # over an epoch's end, and anywhere
    for step in steps:
        batch, expected = streamed.batch(step), resident.batch(step)
        assert batch.pixels.equal(expected.pixels)
        assert batch.labels.equal(expected.labels)
        assert batch.index.equal(expected.index)
    whole = DeviceImages(split, torch.device("cpu"), 1).gather_each(torch.arange(50), 7)
    assert torch.cat([pixels for pixels, _ in whole]).equal(torch.from_numpy(split.pixels.copy()))


def test_images_that_do_not_fit_are_gathered_two_batches_ahead(split, monkeypatch):
    gathered, select = [], torch.index_select

    def noted(source, dimension, index, **more):
        gathered.append(index.tolist())
        return select(source, dimension, index, **more)

    monkeypatch.setattr(torch, "index_select", noted)
    found = loader(split, memory_bytes=1)
    pixels = found.images._pixels
    found.batch(0)
    pixels._threads.shutdown(wait=True)
    assert sorted(gathered) == sorted(found.index(step).tolist() for step in range(3))


def test_damaged_image_that_does_not_fit_is_named(split, tmp_path):
    keys = pixel_keys(split.pixels).copy()
    keys[11] += 1
    images = replace(split, row_check=RowCheck(keys, tmp_path))
    found = DeviceImages(images, torch.device("cpu"), 1)
    assert found.gather(torch.arange(10))[0].shape[0] == 10
    with pytest.raises(DataError, match=r"damaged: 1 of the samples .* \(numbers 11\)"):
        found.gather(torch.arange(8, 14))
