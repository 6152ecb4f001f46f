import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from kdscale.errors import ModelError
from kdscale.models.preprocess import Preprocess

torch.set_num_threads(1)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_preprocess_normalises_as_the_textbook_does():
    images = pixels(4, 3, 8, 8)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (images.float() / 255 - mean) / std
    result = Preprocess(MEAN, STD, 8)(images)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_preprocess_resizes_with_antialiasing_before_it_normalises():
    images = pixels(2, 3, 16, 16)
    shrunk = F.interpolate(images.float() / 255, (5, 5), mode="bilinear", antialias=True)
    expected = (shrunk - 0.5) / 0.25
    result = Preprocess((0.5,) * 3, (0.25,) * 3, 5)(images)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_preprocess_makes_squares_of_oblong_images():
    assert Preprocess(MEAN, STD, 8)(pixels(2, 3, 8, 12)).shape == (2, 3, 8, 8)


def test_preprocess_keeps_the_size_when_none_is_set():
    assert Preprocess(MEAN, STD, None)(pixels(2, 3, 9, 12)).shape == (2, 3, 9, 12)


@pytest.mark.parametrize("size", [None, 13, 32, 48])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_preprocess_gives_equal_bits_at_any_batch_size(size, memory_format):
    preprocess = Preprocess(MEAN, STD, size)
    images = pixels(37, 3, 31, 31)
    whole = preprocess(images)
    for length in (1, 2, 7, 37):
        parts = images.contiguous(memory_format=memory_format).split(length)
        assert torch.equal(torch.cat([preprocess(part) for part in parts]), whole)


def test_preprocess_repeats_grey_images_for_a_colour_model():
    grey = pixels(2, 1, 8, 8)
    preprocess = Preprocess(MEAN, STD, None)
    assert torch.equal(preprocess(grey), preprocess(grey.expand(2, 3, 8, 8)))


def test_preprocess_keeps_grey_images_grey_for_a_grey_model():
    assert Preprocess((0.1307,), (0.3081,), 28)(pixels(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_preprocess_leaves_the_pixels_as_they_were():
    images = pixels(2, 3, 8, 8)
    before = images.clone()
    Preprocess(MEAN, STD, 8)(images)
    assert torch.equal(images, before)


def test_preprocess_refuses_colour_images_for_a_grey_model():
    with pytest.raises(ModelError, match="the images have 3 channels, mean and std have 1"):
        Preprocess((0.5,), (0.5,), None)(pixels(2, 3, 8, 8))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), pixels(3, 8, 8)])
def test_preprocess_refuses_what_is_no_batch_of_uint8_images(images):
    with pytest.raises(ModelError, match=r"wanted torch\.uint8 \[B, C, H, W\]"):
        Preprocess(MEAN, STD, None)(images)


def test_preprocess_first_used_in_inference_mode_works_under_autograd_afterwards():
    preprocess = Preprocess((0.11,), (0.77,), None)
    with torch.inference_mode():
        preprocess(pixels(2, 1, 4, 4))
    weight = torch.ones(1, requires_grad=True)
    (preprocess(pixels(2, 1, 4, 4)) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.5, 0.5), (0.5,), None), "mean has 2 values and std has 1"),
        (((), (), None), "mean has 0 values"),
        (((0.5,), (0.0,), None), "std is .* above zero"),
        (((0.5,), (float("nan"),), None), "std is"),
        (((float("inf"),), (0.5,), None), "mean is"),
        (((0.5,), (0.5,), 0), "size is 0, wanted at least 1 pixel"),
    ],
)
def test_preprocess_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ModelError, match=message):
        Preprocess(*arguments)


@pytest.mark.parametrize("size", [None, 224])
def test_preprocess_round_trips_through_its_description(size):
    preprocess = Preprocess(MEAN, STD, size)
    assert Preprocess.parse(preprocess.describe()) == preprocess


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 3}, r"keys \['crop', 'mean', 'size', 'std'\], wanted mean, std and size"),
        ({"size": 2.5}, "size is 2.5, wanted a whole number"),
        ({"size": True}, "size is True"),
        ({"mean": 0.5}, "mean is 0.5, wanted a list of numbers"),
        ({"std": ["wide"]}, "std is .* wanted a list of numbers"),
    ],
)
def test_preprocess_parse_refuses_another_shape_of_description(change, message):
    with pytest.raises(ModelError, match=message):
        Preprocess.parse(Preprocess((0.5,), (0.5,), 8).describe() | change)


def test_preprocess_parse_refuses_a_missing_key():
    with pytest.raises(ModelError, match=r"keys \['mean', 'std'\]"):
        Preprocess.parse({"mean": [0.5], "std": [0.5]})


def test_preprocess_is_frozen_and_copies_equal():
    preprocess = Preprocess(MEAN, STD, 8)
    assert copy.deepcopy(preprocess) == preprocess
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocess.size = 9  # type: ignore[misc]
