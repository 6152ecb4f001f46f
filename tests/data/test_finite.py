"""`views.count = "all"`: every view of a finite pipeline, once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError

FLIP = "random_horizontal_flip"


def finite(*operations, seed=0):
    return Pipeline.parse(operations, seed, enumerated=True)


def crop(padding):
    return {"name": "random_crop", "padding": padding}


def distinct_images(count, size=9):
    """No two crops or mirror images of these are alike."""
    generator = torch.Generator().manual_seed(1)
    shape = (count, 1, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("operations", "count"),
    [
        ([crop(4), FLIP], 162),
        ([FLIP, crop(1)], 18),
        ([crop(1), crop(2)], 225),
        ([FLIP], 2),
        ([{"name": FLIP, "p": 1.0}], 1),
        ([{"name": FLIP, "p": 0.0}, crop(1)], 9),
        ([], 1),
    ],
)
def test_all_views_are_counted(operations, count):
    assert finite(*operations).count_all() == count


@pytest.mark.parametrize(
    "operations", [[crop(4), FLIP], [{"name": FLIP, "p": 0.1}, crop(1)], [crop(2)], [FLIP]]
)
@pytest.mark.parametrize("seed", [0, 7])
def test_every_view_is_another_picture_and_none_is_missing(operations, seed):
    views, images = finite(*operations, seed=seed), distinct_images(5)
    count, index = views.count_all(), torch.arange(5)
    rendered = torch.stack([views(images, view, index) for view in range(count)])
    for sample in range(5):
        assert len(rendered[:, sample].flatten(1).unique(dim=0)) == count
        drawn = Pipeline.parse(operations, 3)(
            images[sample : sample + 1].expand(500, -1, -1, -1), 0, torch.arange(500)
        )
        possible = {bytes(view.numpy()) for view in rendered[:, sample]}
        assert {bytes(view.numpy()) for view in drawn} <= possible


def test_an_epoch_shows_different_outcomes_of_different_samples():
    """All samples of an epoch flipped alike would be another augmentation."""
    views = finite(FLIP)
    images = distinct_images(1).expand(2000, -1, -1, -1)
    rendered = views(images, 0, torch.arange(2000))
    flipped = (rendered == images.flip(-1)).flatten(1).all(1)
    assert abs(flipped.double().mean() - 0.5) < 0.05


@settings(max_examples=30, deadline=None)
@given(
    padding=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
    view=st.integers(0, 97),
    batch=st.integers(1, 9),
)
def test_enumerated_view_does_not_depend_on_the_batch(padding, seed, view, batch):
    views, images = finite(crop(padding), FLIP, seed=seed), distinct_images(9)
    whole = views(images, view, torch.arange(9))
    parts = [views(images[i], view, i) for i in torch.arange(9).split(batch)]
    assert torch.cat(parts).equal(whole)
    numbers = torch.full((9,), view)
    assert views(images, numbers, torch.arange(9)).equal(whole)


def test_description_tells_an_enumeration_from_draws():
    views = finite(crop(1), FLIP)
    assert views.describe()["enumerated"] is True
    assert Pipeline.from_description(views.describe()) == views
    assert "enumerated" not in Pipeline.parse([FLIP]).describe()


def test_description_of_a_newer_version_is_refused():
    described = {**finite(FLIP).describe(), "from_the_future": 3}
    with pytest.raises(ConfigError, match="described by from_the_future, which this kdscale"):
        Pipeline.from_description(described)


@pytest.mark.parametrize(
    ("operations", "name"),
    [([FLIP, "mixup"], "mixup"), ([crop(1024), crop(1024)], "random_crop")],
)
def test_what_is_not_finite_is_refused(operations, name):
    with pytest.raises(ConfigError, match=rf"'all': {name} has too many outcomes"):
        Pipeline.parse(operations, pairing=MixPairs(10), enumerated=True)
