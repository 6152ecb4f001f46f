"""Transforms of others, replayed exactly, one sample at a time."""

import json
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kdscale.data.views.operations.torchvision_op import TorchvisionOp, library_versions
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from tests.data import replay

FLIP = "random_horizontal_flip"
TRANSFORMS = [
    {"name": "v2.RandomPerspective", "distortion_scale": 0.6, "interpolation": "bilinear"},
    {"name": "v2.ElasticTransform", "alpha": 30.0, "sigma": 2.0},
    {"name": "v2.AugMix"},
    {
        "name": "v2.RandomChoice",
        "transforms": [{"name": "v2.AutoAugment"}, {"name": "v2.RandAugment"}],
    },
    {"name": "v2.AutoAugment", "policy": "cifar10"},
    {"name": "v2.RandomApply", "transforms": ["v2.RandomVerticalFlip"], "p": 0.7},
    {"name": "v2.ScaleJitter", "target_size": [16, 16], "scale_range": [1.0, 1.0]},
]  # fmt: skip


def images(count=6, shape=(3, 16, 16)):
    return torch.from_numpy(replay.sample_images(*shape, range(count)))


def states():
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
    )


def draws_of_three(image):
    """Every generator that a transform may use."""
    shift = torch.randint(0, 9, ()).item() + np.random.randint(9) + random.randrange(9)  # noqa: NPY002
    return image.roll(int(shift), -1)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda table: table["name"])
def test_transform_replays_in_any_batch_and_order(transform):
    views, pixels, index = Pipeline.parse([FLIP, transform], 5), images(), torch.arange(6)
    whole = views(pixels, 1, index)
    torch.randn(7)
    for order in (index.flip(0), torch.tensor([4]), torch.tensor([1, 3])):
        assert views(pixels[order], 1, order).equal(whole[order])


def test_transform_differs_between_views_samples_and_seeds():
    operation = [{"name": "v2.RandomPerspective", "p": 1.0}]
    pixels, index = images(1).expand(8, -1, -1, -1), torch.arange(8)
    first = Pipeline.parse(operation)(pixels, 0, index)
    assert len(first.flatten(1).unique(dim=0)) > 6
    assert not Pipeline.parse(operation)(pixels, 1, index).equal(first)
    assert not Pipeline.parse(operation, 1)(pixels, 0, index).equal(first)


def test_every_generator_is_seeded_and_put_back():
    views = Pipeline((TorchvisionOp(draws_of_three, "rolled-1"),), 3)
    before = states()
    first = views(images(), 0, torch.arange(6))
    assert states() == before
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002, TID251
    random.seed(9)
    assert views(images(), 0, torch.arange(6)).equal(first)
    other = views(images(), 1, torch.arange(6))
    assert not other.equal(first)


def test_generators_are_put_back_after_an_error():
    def broken(image):
        torch.rand(3)
        raise RuntimeError("no")

    before = states()
    with pytest.raises(RuntimeError, match="no"):
        Pipeline((TorchvisionOp(broken, "broken"),))(images(), 0, torch.arange(6))
    assert states() == before


def test_transform_is_what_torchvision_makes_under_the_derived_seed():
    views = Pipeline.parse([{"name": "v2.RandomRotation", "degrees": 40}], 2)
    found = views(images(), 4, torch.arange(6))
    for sample in range(6):
        seed = int(np.int64(replay.bits(2, 0, 0, 4, sample)))
        torch.default_generator.manual_seed(seed)
        assert found[sample].equal(v2.RandomRotation(degrees=40)(images()[sample]))


def test_description_names_the_libraries_and_replays():
    views = Pipeline.parse([{"name": "v2.RandomPosterize", "bits": 3}], 2)
    described = views.describe()
    assert described["operations"] == [
        {"name": "v2.RandomPosterize", "bits": 3, "libraries": library_versions()}
    ]
    again = Pipeline.from_description(described)
    assert again(images(), 0, torch.arange(6)).equal(views(images(), 0, torch.arange(6)))


def test_spelling_of_numbers_does_not_matter():
    one, other = (Pipeline.parse([{"name": "v2.RandomInvert", "p": p}]) for p in (1, 1.0))
    assert one == other
    assert json.dumps(one.describe()) == json.dumps(other.describe())


def test_transform_without_draws_is_finite_and_draws_nothing():
    views = Pipeline.parse([{"name": "v2.CenterCrop", "size": 8}, FLIP], enumerated=True)
    assert (views.operations[0].num_draws, views.count_all()) == (0, 2)
    rendered = views(images(), 0, torch.arange(6))
    middle = images()[..., 4:12, 4:12]
    assert all(s.equal(m) or s.equal(m.flip(-1)) for s, m in zip(rendered, middle, strict=True))


def test_other_library_versions_are_refused():
    table = {"name": "v2.AutoAugment", "libraries": {**library_versions(), "torchvision": "0.1"}}
    with pytest.raises(ConfigError, match=r'made with .*"torchvision": "0\.1".*same versions'):
        Pipeline.parse([table])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("v2.RandomPerspectiv", r"no transform 'v2\.RandomPerspectiv'.*'v2\.RandomPerspective'"),
        ("v2.MixUp", "mixes whole batches: use 'mixup'"),
        ("v2.functional", "no transform"),
        ("v2.Transform", "no transform"),
        ({"name": "v2.RandomRotation"}, r"v2\.RandomRotation: .*degrees"),
        ({"name": "v2.RandomRotation", "degrees": 3, "angle": 2}, "angle"),
        ({"name": "v2.RandomPosterize", "bits": "x", "p": 3}, "v2.RandomPosterize: "),
        ({"name": "v2.Resize", "size": 3, "interpolation": "softly"}, "softly"),
        ({"name": "v2.RandomApply", "p": float("inf")}, "an argument is not finite"),
    ],
)
def test_wrong_transform_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.parse([entry])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "v2.ToDtype", "dtype": "float32"}, "v2.ToDtype"),
        ({"name": "v2.UniformTemporalSubsample", "num_samples": 2}, "cannot transform an image"),
        ("v2.ElasticTransform", r"cannot transform an image of \[3, 16, 16\].*[Pp]adding"),
        ({"name": "v2.ToPILImage"}, "returned Image, wanted a uint8 tensor"),
        ({"name": "v2.Grayscale"}, "returned 1 channels of 3"),
        ({"name": "v2.RandomZoomOut", "p": 0.5}, "images of different sizes"),
    ],
)
def test_what_is_no_view_is_refused(transform, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.parse([transform])(images(), 0, torch.arange(6))
