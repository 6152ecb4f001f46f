import pytest
import torch

from kdscale.data.rng import bernoulli, bits_KB, integers, mix
from kdscale.data.views import lookup_tables
from kdscale.data.views.operations.erasing import Cutout, RandomErasing
from kdscale.data.views.operations.operation_registry import parse_operation
from kdscale.errors import ConfigError
from tests.data.test_color import images

OPERATIONS = [
    RandomErasing(),
    RandomErasing(value="random", scale=(0.1, 0.9), ratio=(0.2, 1.0)),
    RandomErasing(value=255, p=1.0),
    Cutout(size=5),
    Cutout(size=4, p=0.5, value=9),
]


def draw(operation, pixels, index):
    bits = bits_KB(3, [(0, draw) for draw in range(operation.num_draws)], 1, index)
    return operation(pixels, bits)


def dark(count, channels=3, height=24, width=20):
    """Images without the grey level 255, so that it marks what was covered."""
    return images(count, channels, height, width).clamp(max=254)


def boxes(covered):
    """Top, bottom, left, right (behind the last) of the true rectangle of each [B, H, W]."""
    rows, columns = covered.any(2).int(), covered.any(1).int()
    top, left = rows.argmax(1), columns.argmax(1)
    return top, top + rows.sum(1), left, left + columns.sum(1)


@pytest.mark.parametrize("operation", [RandomErasing(p=1.0, value=255), Cutout(size=7, value=255)])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_box_is_covered_alike_in_every_channel(operation, channels):
    pixels = dark(300, channels)
    found = draw(operation, pixels, torch.arange(300))
    covered = found == 255
    assert covered.eq(covered[:, :1]).all()
    assert found[~covered].equal(pixels[~covered])
    top, bottom, left, right = boxes(covered[:, 0])
    assert covered[:, 0].sum((1, 2)).equal((bottom - top) * (right - left))
    assert covered.any((1, 2, 3)).sum() > 290


def test_erased_boxes_follow_the_documented_draws():
    operation = RandomErasing(value=255, p=0.7, scale=(0.05, 0.9), ratio=(0.25, 3.0))
    pixels, index = dark(200), torch.arange(200)
    bits = bits_KB(3, [(0, draw) for draw in range(operation.num_draws)], 1, index)
    covered = (operation(pixels, bits) == 255)[:, 0]
    ratios = lookup_tables.log_uniform(0.25, 3.0)
    tried = 0
    for sample in range(200):
        words = bits[:, sample]
        expected = torch.zeros(24, 20, dtype=torch.bool)
        for attempt in range(10):
            share = (3277 + int(integers(words[3 + attempt], 58982 - 3277 + 1))) / 65536
            ratio = ratios[int(integers(words[13 + attempt], 1024))] / 65536
            height, width = round((480 * share * ratio) ** 0.5), round((480 * share / ratio) ** 0.5)
            if height < 24 and width < 20:
                if bernoulli(words[0], 0.7):
                    top, left = (int(words[1]) >> 32) % 2**32, (int(words[2]) >> 32) % 2**32
                    top, left = top * (24 - height + 1) >> 32, left * (20 - width + 1) >> 32
                    expected[top : top + height, left : left + width] = True
                break
            tried += 1
        assert covered[sample].equal(expected)
    assert tried > 50


def test_erased_share_and_ratio_are_within_bounds():
    pixels = dark(3000, 1, 64, 64)
    covered = (draw(RandomErasing(p=1.0, value=255), pixels, torch.arange(3000)) == 255)[:, 0]
    top, bottom, left, right = boxes(covered)
    height, width = (bottom - top).double(), (right - left).double()
    share, ratio = height * width / 64**2, height / width
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() < 0.34
    assert 0.25 < ratio.min() < 0.35
    assert 2.9 < ratio.max() < 3.8
    assert abs(share.mean() - 0.175) < 0.01
    assert abs(float(ratio.log().mean())) < 0.05


def test_nothing_is_erased_where_no_rectangle_fits():
    pixels = dark(50)
    assert draw(RandomErasing(p=1.0, scale=(1.0, 1.0)), pixels, torch.arange(50)).equal(pixels)


def test_probability_decides_who_is_erased():
    erased = draw(RandomErasing(p=0.3, value=255), dark(4000, 1, 16, 16), torch.arange(4000)) == 255
    share = float(erased.any((1, 2, 3)).double().mean())
    assert abs(share - 0.3) < 4 * (0.21 / 4000) ** 0.5


def test_noise_is_uniform_and_its_own_for_every_pixel():
    """Chi-square of 256 grey levels below its 0.9999 quantile (255 degrees of freedom)."""
    pixels, index = dark(400, 3, 15, 13), torch.arange(400)
    operation = RandomErasing(p=1.0, value="random")
    found = draw(operation, pixels, index)
    covered = draw(RandomErasing(p=1.0, value=255), pixels, index) == 255
    counts = torch.bincount(found[covered].long(), minlength=256).double()
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 347
    assert found[~covered].equal(pixels[~covered])
    seed = bits_KB(3, [(0, 23)], 1, index)[0, 7]
    for number in covered[7].flatten().nonzero().flatten().tolist():
        byte = int(mix(seed, torch.tensor(number // 8))) >> 8 * (number % 8) & 255
        assert int(found[7].flatten()[number]) == byte


@pytest.mark.parametrize("size", [1, 4, 5, 60])
def test_squares_are_centred_on_any_pixel_and_cut_off_at_the_border(size):
    pixels, index = dark(400), torch.arange(400)
    operation = Cutout(size=size, value=255)
    bits = bits_KB(3, [(0, 0), (0, 1), (0, 2)], 1, index)
    covered = (operation(pixels, bits) == 255)[:, 0]
    row, column = integers(bits[1], 24), integers(bits[2], 20)
    for sample in range(400):
        expected = torch.zeros(24, 20, dtype=torch.bool)
        top, left = int(row[sample]) - size // 2, int(column[sample]) - size // 2
        expected[max(top, 0) : top + size, max(left, 0) : left + size] = True
        assert covered[sample].equal(expected)
    counts = torch.bincount(row * 20 + column, minlength=480)
    assert counts.max() < 8


@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_sample_depends_on_neither_batch_nor_memory(operation, channels):
    pixels, index = images(512, channels, 9, 10), torch.arange(512)
    original = pixels.clone()
    whole = draw(operation, pixels, index)
    assert pixels.equal(original)
    assert (whole.dtype, whole.shape, whole.is_contiguous()) == (torch.uint8, pixels.shape, True)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    assert draw(operation, pixels[order], index[order]).equal(whole[order])
    assert draw(operation, pixels[5:6], index[5:6]).equal(whole[5:6])
    for other in (pixels.to(memory_format=torch.channels_last), pixels[:1].expand(512, -1, -1, -1)):
        assert draw(operation, other, index).equal(draw(operation, other.contiguous(), index))


def test_choices_are_too_many():
    assert RandomErasing().choices is None
    assert Cutout(size=3).choices is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "random_erasing", "p": -0.1}, r"wanted a probability 0\.\.1"),
        (
            {"name": "random_erasing", "scale": [0.3, 0.2]},
            r"scale is \[0\.3, 0\.2\], wanted \[smallest",
        ),
        ({"name": "random_erasing", "ratio": [0.0, 2]}, r"ratio is \[0\.0, 2\.0\]"),
        (
            {"name": "random_erasing", "value": 256},
            r"value is 256, wanted 0\.\.255 grey levels, or",
        ),
        ({"name": "random_erasing", "value": "noise"}, "wanted a whole number or 'random'"),
        ({"name": "cutout"}, "size is missing"),
        ({"name": "cutout", "size": 0}, r"size is 0, wanted 1\.\.4096 pixels"),
        ({"name": "cutout", "size": 3, "value": -1}, "value is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_operation(entry)
