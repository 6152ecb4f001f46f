import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torchvision.transforms import v2

from kdscale.data.rng import bits_KB, integers
from kdscale.data.views.operations.auto_augment import KINDS, RandAugment, TrivialAugmentWide
from kdscale.data.views.operations.operation_registry import parse_operation
from kdscale.errors import ConfigError
from tests.data.test_color import differences, images

RANDOM, TRIVIAL = v2.RandAugment, v2.TrivialAugmentWide
NAMES = dict(zip(KINDS, RANDOM._AUGMENTATION_SPACE, strict=True))  # in both the same, in order
MOVES = KINDS[1:6]
# Mean shares of pixels that may differ. Factors are rounded to 4096ths, so a product that should be
# a whole number can fall short; autocontrast falls short in torchvision; and of a source right
# between two pixels either is right.
SHARES = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.06),
    "autocontrast": 0.02,
    **dict.fromkeys(("shear_x", "shear_y", "rotate"), 0.015),
}


def word(value, bound):
    """Bits from which `integers` draws the value."""
    return -(-(value << 32) // bound) << 32


def signed(words):
    return torch.tensor([w - (1 << 64) if w >> 63 else w for w in words])


def theirs(policy, kind, pixels, place, bins, negative):
    """What torchvision's own code makes of a kind at a place in its list of magnitudes."""
    magnitudes, has_sign = policy._AUGMENTATION_SPACE[NAMES[kind]]
    listed = magnitudes(bins, *pixels.shape[-2:])
    # In float32, 16 can be 15.999999, which would then be cut off: what was meant is a fraction.
    meant = 0 if listed is None else Fraction(float(listed[place])).limit_denominator(10_000)
    magnitude = float(meant)
    if has_sign and negative:
        magnitude = -magnitude
    transform = policy(num_magnitude_bins=bins)
    return transform._apply_image_or_video_transform(
        pixels, NAMES[kind], magnitude, transform.interpolation, transform._fill
    )


def ours(policy, kind, pixels, place, bins, negative):
    kind_word, sign_word = word(KINDS.index(kind), len(KINDS)), word(int(negative), 2)
    if policy is RANDOM:
        augment = RandAugment(num_ops=1, magnitude=place, num_magnitude_bins=bins)
        words = [kind_word, sign_word]
    else:
        augment = TrivialAugmentWide(num_magnitude_bins=bins)
        words = [kind_word, word(place, bins), sign_word]
    return augment(pixels, signed(words).view(-1, 1).expand(-1, len(pixels)))


@pytest.mark.parametrize("policy", [RANDOM, TRIVIAL])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [31, 10])
def test_every_kind_at_every_magnitude_is_torchvisions(policy, kind, bins):
    pixels = images(8, height=32, width=28)
    shares = []
    for place in range(bins):
        for negative in (False, True):
            case = (policy, kind, pixels, place, bins, negative)
            largest, share = differences(ours(*case), theirs(*case))
            assert kind in MOVES or largest <= 1
            shares.append(share)
    assert sum(shares) / len(shares) <= SHARES.get(kind, 0)


@pytest.mark.parametrize("policy", [RANDOM, TRIVIAL])
@pytest.mark.parametrize("size", [(1, 32, 32), (3, 224, 200), (1, 31, 8)])
def test_other_sizes_and_grey_images_are_torchvisions(policy, size):
    pixels = images(2, *size)
    for kind in KINDS:
        case = (policy, kind, pixels, 17, 31, True)
        largest, share = differences(ours(*case), theirs(*case))
        assert kind in MOVES or largest <= 1
        assert share <= max(2 * SHARES.get(kind, 0), 2e-3 if kind in MOVES else 0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rounds_follow_one_another(interpolation):
    """Two rounds in a batch are one round after the other, each image by itself."""
    pixels, index = images(300, height=11, width=13), torch.arange(300)
    bits = bits_KB(4, [(0, draw) for draw in range(4)], 0, index)
    arguments = {"magnitude": 20, "interpolation": interpolation, "fill": 77}
    found = RandAugment(num_ops=2, **arguments)(pixels, bits)
    single = RandAugment(num_ops=1, **arguments)
    for sample in range(300):
        one = slice(sample, sample + 1)
        first = single(pixels[one], bits[:2, one])
        assert single(first, bits[2:, one]).equal(found[one])


@pytest.mark.parametrize("operation", [RandAugment(), TrivialAugmentWide()])
@pytest.mark.parametrize("channels", [1, 3])
def test_sample_depends_on_neither_batch_nor_memory(operation, channels):
    pixels, index = images(512, channels, 9, 8), torch.arange(512)
    original = pixels.clone()
    bits = bits_KB(1, [(2, draw) for draw in range(operation.num_draws)], 5, index)
    whole = operation(pixels, bits)
    assert pixels.equal(original)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    assert operation(pixels[order], bits[:, order]).equal(whole[order])
    assert operation(pixels[3:4], bits[:, 3:4]).equal(whole[3:4])
    last = operation(pixels.to(memory_format=torch.channels_last), bits)
    assert last.equal(whole)
    assert last.is_contiguous()
    assert operation(pixels[:0], bits[:, :0]).shape == (0, channels, 9, 8)
    same = pixels[:1].expand(512, -1, -1, -1)
    assert operation(same, bits).equal(operation(same.contiguous(), bits))


def test_kinds_magnitudes_and_signs_are_uniform():
    """Chi-squares of all combinations below mean + 4.5 standard deviations."""
    index = torch.arange(100_000)
    bits = bits_KB(9, [(0, draw) for draw in range(4)], 0, index)
    kind, sign, other_kind, _ = (integers(bits[d], b) for d, b in enumerate((14, 2, 14, 2)))
    place = integers(bits[1], 31)
    for drawn, cells in (
        (kind * 2 + sign, 28),
        (kind * 14 + other_kind, 196),
        (kind * 31 + place, 434),
    ):
        counts = torch.bincount(drawn, minlength=cells).double()
        statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert statistic < cells + 4.5 * math.sqrt(2 * cells)


def test_every_kind_is_drawn_in_a_batch():
    """A pixel tells shifts, factors and bits apart: each draw goes to the kind of its number."""
    pixels = images(1, height=32, width=32).expand(2000, -1, -1, -1)
    operation = RandAugment(num_ops=1, magnitude=30)
    bits = bits_KB(0, [(0, 0), (0, 1)], 0, torch.arange(2000))
    found = operation(pixels, bits)
    kinds = integers(bits[0], 14)
    signs = integers(bits[1], 2)
    seen = Counter()
    for kind in range(14):
        for sign in range(2):
            rows = ((kinds == kind) & (signs == sign)).nonzero().flatten()
            expected = ours(RANDOM, KINDS[kind], pixels[:1], 30, 31, bool(sign))
            assert found[rows].equal(expected.expand(len(rows), -1, -1, -1))
            seen[kind] += len(rows)
    assert min(seen.values()) > 100


def test_no_operations_and_choices():
    pixels = images(4)
    assert RandAugment(num_ops=0)(pixels, torch.zeros(0, 4, dtype=torch.int64)).equal(pixels)
    assert RandAugment(num_ops=3).num_draws == 6
    assert RandAugment().choices == (14, 2, 14, 2)
    assert TrivialAugmentWide(num_magnitude_bins=5).choices == (14, 5, 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "rand_augment", "magnitude": 31}, r"magnitude is 31, wanted 0\.\.30 \(below num"),
        ({"name": "rand_augment", "num_ops": -1}, r"num_ops is -1, wanted 0\.\.16 operations"),
        ({"name": "rand_augment", "num_magnitude_bins": 1}, "num_magnitude_bins is 1, wanted 2"),
        ({"name": "rand_augment", "interpolation": "cubic"}, "'nearest' or 'bilinear'"),
        (
            {"name": "trivial_augment_wide", "fill": 256},
            r"fill is 256, wanted 0\.\.255 grey levels",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_operation(entry)
