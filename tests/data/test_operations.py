import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from kdscale.data.rng import bernoulli, bits_KB, integers
from kdscale.data.views.operations.geometry import RandomCrop, RandomHorizontalFlip
from kdscale.data.views.operations.operation_registry import OPERATIONS
from kdscale.errors import ConfigError
from tests.data import replay

MODES = ("constant", "edge", "reflect")
RESIZING = ("center_crop", "resize", "random_resized_crop")
REQUIRED = {
    "random_crop": {"padding": 2},
    "random_rotation": {"degrees": 30},
    "random_affine": {"degrees": 30},
    "gaussian_blur": {"kernel_size": 3},
    "random_posterize": {"bits": 4},
    "random_solarize": {"threshold": 128.0},
    "random_adjust_sharpness": {"sharpness_factor": 2.0},
    "cutout": {"size": 3},
    **{name: {"size": (7, 9)} for name in RESIZING},
}
"""Arguments for operations that have no default for all of theirs."""


def images(count, channels=3, height=12, width=10):
    shape = (count, channels, height, width)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def bits_for(values, bound):
    """int64 bits from which `integers` draws the values."""
    return torch.tensor([-(-(value << 32) // bound) for value in values]) << 32


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("mode", "line"), replay.known_answers("padding"))
def test_padding_gives_the_documented_lines(mode, line):
    crop = RandomCrop(padding=2, padding_mode=mode, fill=7)
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(5, 1, 3, 3)
    left = bits_for(range(5), 5)
    found = crop(image, torch.stack((bits_for([2] * 5, 5), left)))
    assert found[:, 0, 0].tolist() == [line[start : start + 3] for start in range(5)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1, 4, 9])
def test_crop_equals_torchvision_at_every_offset(mode, padding):
    bound = 2 * padding + 1
    top, left = (x.flatten() for x in torch.meshgrid([torch.arange(bound)] * 2, indexing="ij"))
    pixels = images(len(top))
    crop = RandomCrop(padding=padding, padding_mode=mode, fill=33)
    found = crop(pixels, torch.stack([bits_for(x.tolist(), bound) for x in (top, left)]))
    fill = {"fill": [33]} if mode == "constant" else {}
    padded = reference.pad(pixels, [padding] * 4, padding_mode=mode, **fill)
    for sample, (t, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        assert found[sample].equal(reference.crop(padded[sample], t, x, 12, 10))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip_equals_torchvision(p):
    pixels = images(64)
    bits = bits_KB(0, [(0, 0)], 0, torch.arange(64))
    found = RandomHorizontalFlip(p=p)(pixels, bits)
    for sample, flipped in enumerate(bernoulli(bits[0], p).tolist()):
        expected = reference.horizontal_flip(pixels[sample]) if flipped else pixels[sample]
        assert found[sample].equal(expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_leaves_its_input_alone_and_keeps_type_and_shape(name):
    arguments = REQUIRED.get(name, {})
    operation = OPERATIONS[name](**arguments)
    pixels = images(5)
    original = pixels.clone()
    draws = [(0, draw) for draw in range(operation.num_draws)]
    found = operation(pixels, bits_KB(1, draws, 0, torch.arange(5)))
    assert pixels.equal(original)
    sides = arguments["size"] if name in RESIZING else pixels.shape[2:]
    assert (found.dtype, found.shape) == (torch.uint8, (*pixels.shape[:2], *sides))
    assert found.is_contiguous()


@pytest.mark.parametrize("memory", ["channels_last", "strided", "expanded"])
@pytest.mark.parametrize("mode", MODES)
def test_memory_layout_does_not_matter(memory, mode):
    pixels = images(8)
    if memory == "channels_last":
        other = pixels.to(memory_format=torch.channels_last)
    elif memory == "strided":
        other = images(8, width=20)[..., ::2]
        pixels = other.contiguous()
    else:
        other = pixels[:1].expand(8, -1, -1, -1)
        pixels = other.contiguous()
    bits = bits_KB(5, [(0, 0), (0, 1), (1, 0)], 2, torch.arange(8))
    crop, flip = RandomCrop(padding=3, padding_mode=mode), RandomHorizontalFlip()
    assert flip(crop(other, bits[:2]), bits[2:]).equal(flip(crop(pixels, bits[:2]), bits[2:]))
    assert flip(other, bits[2:]).equal(flip(pixels, bits[2:]))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_offsets_are_uniform_and_independent(seed):
    """Chi-square below its 0.9999 quantile for the 81 pairs of offsets (80 degrees of freedom)."""
    bits = bits_KB(seed, [(0, 0), (0, 1)], 3, torch.arange(50_000))
    top, left = integers(bits, 9)
    assert chi_square(torch.bincount(top * 9 + left, minlength=81)) < 135
    across_views = bits_KB(seed, [(0, 0)], torch.arange(50_000), torch.tensor([7]))[0]
    assert chi_square(torch.bincount(integers(across_views, 9), minlength=9)) < 31.9


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_flip_share_is_its_probability(p):
    flipped = bernoulli(bits_KB(11, [(1, 0)], 0, torch.arange(100_000))[0], p)
    deviation = (p * (1 - p) / 100_000) ** 0.5
    assert abs(flipped.double().mean() - p) < 4 * deviation


@pytest.mark.parametrize("padding", [0, -1, 1025, 2**40])
def test_padding_out_of_range_is_refused(padding):
    with pytest.raises(ConfigError, match=rf"padding is {padding}, wanted 1\.\.1024"):
        RandomCrop(padding=padding)


@pytest.mark.parametrize("fill", [-1, 256])
def test_fill_out_of_range_is_refused(fill):
    with pytest.raises(ConfigError, match=rf"fill is {fill}, wanted a grey level"):
        RandomCrop(padding=1, fill=fill)


def test_unknown_padding_mode_is_refused():
    with pytest.raises(ConfigError, match="padding_mode is 'zeros', wanted constant, reflect or"):
        RandomCrop(padding=1, padding_mode="zeros")


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range_is_refused(p):
    with pytest.raises(ConfigError, match=r"wanted a probability 0\.\.1"):
        RandomHorizontalFlip(p=p)


def test_reflecting_more_than_the_image_is_refused():
    crop = RandomCrop(padding=10, padding_mode="reflect")
    with pytest.raises(ConfigError, match=r"reflecting 10 pixels .* these are 12x10"):
        crop(images(2), torch.zeros(2, 2, dtype=torch.int64))
    RandomCrop(padding=30, padding_mode="edge")(images(2), torch.zeros(2, 2, dtype=torch.int64))
