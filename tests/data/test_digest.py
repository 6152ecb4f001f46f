import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from tests.data import replay

CROP_AND_FLIP = [{"name": "random_crop", "padding": 4}, "random_horizontal_flip"]


def pictures(count, channels=3, height=32, width=32):
    shape = (count, channels, height, width)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def single_byte_changes(image, positions):
    """Every other value at each of the positions: uint8 [255 * positions, C, H, W]."""
    flat = image.flatten().repeat(len(positions), 255, 1)
    for row, position in enumerate(positions):
        flat[row, :, position] += torch.arange(1, 256, dtype=torch.uint8)
    return flat.view(-1, *image.shape)


@pytest.mark.parametrize(("shape", "pixels", "expected"), replay.known_answers("digest"))
def test_digest_gives_the_documented_answers(shape, pixels, expected):
    image = np.array(pixels, dtype=np.uint8).reshape(shape)
    assert digest(torch.from_numpy(image[None])).tolist() == [replay.digest(image)] == [expected]


@settings(max_examples=60, deadline=None)
@given(
    pixels=arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), *[st.integers(1, 13)] * 2),
    )
)
def test_digest_is_that_of_the_independent_reader(pixels):
    expected = [replay.digest(image) for image in pixels]
    assert digest(torch.from_numpy(pixels)).tolist() == expected
    assert all(0 <= value < 2**32 for value in expected)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_digest_does_not_depend_on_the_batch(batch_size):
    pixels = pictures(128, height=9, width=7)
    whole = digest(pixels)
    assert torch.cat([digest(part) for part in pixels.split(batch_size)]).equal(whole)
    assert digest(pixels.flip(0)).equal(whole.flip(0))


def test_memory_layout_does_not_matter():
    pixels = pictures(4, height=6, width=6)
    expected = digest(pixels)
    assert digest(pixels.to(memory_format=torch.channels_last)).equal(expected)
    assert digest(pixels.repeat_interleave(2, 3)[..., ::2]).equal(expected)


def test_slice_that_starts_within_a_word_is_digested():
    pixels = pictures(1, channels=3, height=2, width=2)
    assert digest(pixels[:, 1:]).equal(digest(pixels[:, 1:].clone()))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 5)])
def test_any_change_of_a_single_byte_is_noticed(shape):
    image = pictures(1, *shape)[0]
    changed = single_byte_changes(image, range(image.numel()))
    found = digest(changed)
    assert (found != digest(image[None])).all()
    # 48,960 digests have 1.2 billion pairs, of which 2^-32 each, 0.28 in all, may meet by chance.
    assert len(found) - len(found.unique()) <= 2


def test_any_swap_of_two_pixels_is_noticed():
    image = pictures(1, 1, 8, 8)[0]
    first, second = torch.triu_indices(64, 64, offset=1)
    flat = image.flatten().repeat(len(first), 1)
    rows = torch.arange(len(first))
    flat[rows, first], flat[rows, second] = image.flatten()[second], image.flatten()[first]
    differs = image.flatten()[first] != image.flatten()[second]
    noticed = digest(flat.view(-1, 1, 8, 8)) != digest(image[None])
    assert len(first) == 2016
    assert noticed.equal(differs)


def test_other_view_sample_or_shift_is_noticed():
    pixels, index = pictures(2000), torch.arange(2000)
    pipeline = Pipeline.parse(CROP_AND_FLIP)
    views = pipeline(pixels, 0, index)
    expected = digest(views)
    other = pipeline(pixels, 1, index)
    for changed in (other, views.roll(1, 0), views.roll(1, 2), views.roll(1, 3), views.roll(1, 1)):
        # A view may be equal by chance (1 in 162): then so must its digest be.
        assert (digest(changed) != expected).equal((changed != views).flatten(1).any(1))
    assert (other == views).flatten(1).all(1).sum() < 40


def test_shape_is_part_of_the_digest():
    zeros = torch.zeros(1, 48, dtype=torch.uint8)
    shapes = [(3, 4, 4), (1, 4, 12), (1, 12, 4), (1, 6, 8), (3, 2, 8), (1, 1, 48)]
    found = {int(digest(zeros.view(1, *shape))) for shape in shapes}
    found |= {int(digest(torch.zeros(1, 1, 1, size, dtype=torch.uint8))) for size in range(41, 48)}
    assert len(found) == 13


@pytest.mark.slow
def test_measured_miss_rate_is_that_of_32_bits():
    """The numbers in docs/views.md."""
    image = pictures(1)[0]
    found = torch.cat(
        [
            digest(single_byte_changes(image, part.tolist()))
            for part in torch.arange(image.numel()).split(32)
        ]
    )
    missed = int((found == digest(image[None])).sum())
    _, counts = found.unique(return_counts=True)
    collisions = int((counts * (counts - 1) // 2).sum())
    pairs = len(found) * (len(found) - 1) // 2
    print(f"{len(found)=} {missed=} {pairs=} {collisions=} expected={pairs / 2**32:.1f}")  # noqa: T201
    assert missed == 0
    assert abs(collisions - pairs / 2**32) < 4 * (pairs / 2**32) ** 0.5
