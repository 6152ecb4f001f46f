from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as reference

from kdscale.data.rng import bernoulli, bits_KB, integers
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import grey_levels
from kdscale.data.views.operations.color import ColorJitter, GaussianBlur
from kdscale.data.views.operations.operation_registry import parse_operation
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError

EVERY_OPERATION = [
    {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    {"name": "random_grayscale", "p": 0.5},
    {"name": "grayscale"},
    {"name": "gaussian_blur", "kernel_size": 5},
    {"name": "random_invert"},
    {"name": "random_posterize", "bits": 3},
    {"name": "random_solarize", "threshold": 100},
    {"name": "random_adjust_sharpness", "sharpness_factor": 1.7},
    {"name": "random_autocontrast"},
    {"name": "random_equalize"},
]


def images(count, channels=3, height=19, width=22):
    """Half of them noise, half of them smooth as photographs are."""
    generator = torch.Generator().manual_seed(0)
    size = (count, channels, height, width)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    coarse = torch.rand(count, channels, 5, 4, generator=generator) * 200 + 20
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)
    noise[::2] = smooth.to(torch.uint8)[::2]
    return noise


def parameters(count, low, high):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(low, high + 1, (count,), generator=generator)


def differences(found, expected):
    """Largest difference in grey levels and share of the pixels that differ."""
    difference = (found.to(torch.int16) - expected.to(torch.int16)).abs()
    return int(difference.max()), float((difference > 0).double().mean())


def per_image(function, pixels, values):
    return torch.stack([function(p, v) for p, v in zip(pixels, values.tolist(), strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "most"),
    [("brightness", 0), ("contrast", 1e-3), ("saturation", 1e-3), ("sharpness", 0)],
)
def test_factors_act_as_in_torchvision(name, most, channels):
    pixels, factor_B = images(200, channels), parameters(200, 0, 2 * grey_levels.ONE)
    found = getattr(grey_levels, name)(pixels, factor_B)
    theirs = getattr(reference, f"adjust_{name}")
    expected = per_image(lambda image, k: theirs(image, k / grey_levels.ONE), pixels, factor_B)
    largest, share = differences(found, expected)
    assert largest <= 1
    assert share <= most


def test_hue_turns_as_in_torchvision():
    pixels, turn_B = images(200), parameters(200, -2048, 2048)
    found = grey_levels.hue(pixels, turn_B)
    expected = per_image(lambda image, k: reference.adjust_hue(image, k / 4096), pixels, turn_B)
    largest, share = differences(found, expected)
    assert largest <= 1
    assert share < 1e-3


def test_neutral_parameters_change_nothing():
    pixels = images(20)
    whole = torch.full((20,), grey_levels.ONE)
    for function in (
        grey_levels.brightness,
        grey_levels.contrast,
        grey_levels.saturation,
        grey_levels.sharpness,
    ):
        assert function(pixels, whole).equal(pixels)
    assert grey_levels.hue(pixels, torch.zeros_like(whole)).equal(pixels)
    assert grey_levels.posterize(pixels, torch.full_like(whole, 8)).equal(pixels)
    assert grey_levels.solarize(pixels, torch.full_like(whole, 256)).equal(pixels)


def test_grey_differs_from_torchvision_by_at_most_one_level():
    pixels = images(400)
    largest, share = differences(
        grey_levels.grayscale(pixels), reference.rgb_to_grayscale(pixels, num_output_channels=3)
    )
    assert largest <= 1
    assert share < 1e-4


@pytest.mark.slow
def test_all_colours_turn_and_fade_within_one_level():
    value = torch.arange(1 << 24)
    cube = torch.stack([value >> 16, value >> 8 & 255, value & 255]).to(torch.uint8)
    cube = cube.view(1, 3, 4096, 4096)
    grey = reference.rgb_to_grayscale(cube, num_output_channels=3)
    assert differences(grey_levels.grayscale(cube), grey)[0] <= 1
    turned = grey_levels.hue(cube, torch.tensor([700]))
    assert differences(turned, reference.adjust_hue(cube, 700 / 4096))[0] <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_bit_operations_equal_torchvision(channels):
    pixels = images(60, channels)
    bits_B, threshold_B = parameters(60, 0, 8), parameters(60, 0, 255)
    assert grey_levels.posterize(pixels, bits_B).equal(
        per_image(reference.posterize, pixels, bits_B)
    )
    expected = per_image(reference.solarize, pixels, threshold_B)
    assert grey_levels.solarize(pixels, threshold_B).equal(expected)
    everywhere = torch.ones(60, dtype=torch.bool)
    assert grey_levels.invert(pixels, everywhere).equal(reference.invert(pixels))


def hard_to_equalize():
    """One grey level, two, few bright pixels, all levels, next to all levels."""
    pixels = images(40, height=32, width=32)
    pixels[0] = 7
    pixels[1, 0] = 255
    pixels[2] = 9 + (pixels[2] > 127)
    pixels[3, :, 4:] = 0
    pixels[4] = pixels[4] // 4 + 3
    pixels[5] = torch.arange(1024).view(32, 32).div(4, rounding_mode="floor")
    return pixels


def test_equalize_equals_torchvision():
    pixels = hard_to_equalize()
    assert grey_levels.equalize(pixels).equal(reference.equalize(pixels))


def test_autocontrast_is_torchvisions_where_that_does_not_fall_short():
    """Quotients that are whole numbers: dividing in floats can end up just below."""
    pixels = hard_to_equalize()
    found, expected = grey_levels.autocontrast(pixels), reference.autocontrast(pixels)
    largest, share = differences(found, expected)
    assert largest <= 1
    assert share < 0.02
    least, most = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
    whole = 255 * (pixels - least).int() % (most - least).int().clamp(min=1) == 0
    assert bool(whole[found != expected].all())


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 17])
def test_blur_is_within_one_level_of_torchvision(kernel_size):
    pixels, sigma_B = images(100), parameters(100, 6, 128)
    found = grey_levels.gaussian_blur(pixels, sigma_B, kernel_size, 128)
    expected = per_image(
        lambda image, s: reference.gaussian_blur(image, kernel_size, s / 64), pixels, sigma_B
    )
    largest, share = differences(found, expected)
    assert largest <= 1
    assert share < 5e-3


def test_gaussian_weights_sum_to_one():
    table = torch.tensor(lookup_tables.gaussian(9, 200)).view(200, 5)
    assert (table[:, 0] + 2 * table[:, 1:].sum(1)).eq(1 << 15).all()
    assert (table[:, :-1] >= table[:, 1:]).all()
    assert table[0].tolist() == [1 << 15, 0, 0, 0, 0]


def test_blur_cannot_leave_the_range():
    white = torch.full((2, 3, 40, 40), 255, dtype=torch.uint8)
    assert grey_levels.gaussian_blur(white, torch.tensor([1, 1024]), 63, 1024).equal(white)


@pytest.mark.parametrize("entry", EVERY_OPERATION, ids=lambda entry: entry["name"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sample_does_not_depend_on_its_batch(entry, channels):
    operation = parse_operation(entry)
    pixels, index = images(512, channels, 8, 9), torch.arange(512)
    whole = draw(operation, pixels, index)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    assert draw(operation, pixels[order], index[order]).equal(whole[order])
    for sample in (0, 1, 200, 511):
        one = slice(sample, sample + 1)
        assert draw(operation, pixels[one], index[one]).equal(whole[one])


def draw(operation, pixels, index):
    draws = [(0, draw) for draw in range(operation.num_draws)]
    bits = bits_KB(3, draws, 1, index) if draws else index.new_empty(0, len(index))
    return operation(pixels, bits)


@pytest.mark.parametrize("entry", EVERY_OPERATION, ids=lambda entry: entry["name"])
@pytest.mark.parametrize("memory", ["channels_last", "strided", "expanded"])
def test_memory_layout_does_not_matter_and_input_stays(entry, memory):
    operation, index = parse_operation(entry), torch.arange(16)
    pixels = images(16)
    if memory == "channels_last":
        other = pixels.to(memory_format=torch.channels_last)
    elif memory == "strided":
        other = images(16, width=44)[..., ::2]
    else:
        other = pixels[:1].expand(16, -1, -1, -1)
    original = other.clone()
    found = draw(operation, other, index)
    assert found.equal(draw(operation, other.contiguous(), index))
    assert other.equal(original)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3), (1, 9)])
def test_small_images_are_not_refused(size):
    pixels, index = images(6, 3, *size), torch.arange(6)
    for entry in EVERY_OPERATION:
        if entry["name"] != "gaussian_blur":
            found = draw(
                parse_operation({**entry, "p": 1.0} if "p" in entry else entry), pixels, index
            )
            assert found.shape == pixels.shape
    assert grey_levels.sharpness(pixels, torch.zeros(6, dtype=torch.int64)).equal(
        reference.adjust_sharpness(pixels, 0.0)
    )


def test_jitter_is_its_functions_in_the_order_drawn():
    jitter = ColorJitter(brightness=0.5, contrast=(0.2, 1.1), saturation=2.0, hue=(-0.1, 0.5))
    pixels, index = images(96), torch.arange(96)
    bits = bits_KB(0, [(0, draw) for draw in range(5)], 0, index)
    found = jitter(pixels, bits)
    bounds = [(2048, 6144), (819, 4506), (0, 12288), (-410, 2048)]
    orders = torch.tensor(list(permutations(range(4))))
    functions = [
        grey_levels.brightness,
        grey_levels.contrast,
        grey_levels.saturation,
        grey_levels.hue,
    ]
    for sample in range(96):
        image = pixels[sample : sample + 1]
        for kind in orders[integers(bits[0, sample], 24)].tolist():
            low, high = bounds[kind]
            value = low + integers(bits[kind + 1, sample : sample + 1], high - low + 1)
            image = functions[kind](image, value)
        assert image.equal(found[sample : sample + 1])


def test_jitter_of_one_kind_needs_no_order():
    pixels = images(64)
    bits = bits_KB(0, [(0, draw) for draw in range(5)], 0, torch.arange(64))
    found = ColorJitter(hue=0.25)(pixels, bits)
    assert found.equal(grey_levels.hue(pixels, integers(bits[4], 2049) - 1024))
    assert ColorJitter()(pixels, bits).equal(pixels)


def test_orders_and_factors_are_uniform():
    """Chi-squares below their 0.9999 quantiles (23 and 40 degrees of freedom)."""
    bits = bits_KB(5, [(0, 0), (0, 1)], 0, torch.arange(50_000))
    for drawn, bound, limit in ((bits[0], 24, 60.0), (bits[1], 41, 85.0)):
        counts = torch.bincount(integers(drawn, bound), minlength=bound).double()
        assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < limit


@pytest.mark.parametrize(
    "entry",
    [e for e in EVERY_OPERATION if e["name"].startswith("random_")],
    ids=lambda e: e["name"],
)
def test_probability_decides_who_is_changed(entry):
    pixels, index = images(200, height=20), torch.arange(200)
    chosen_B = bernoulli(bits_KB(3, [(0, 0)], 1, index)[0], 0.25)
    always = draw(parse_operation({**entry, "p": 1.0}), pixels, index)
    sometimes = draw(parse_operation({**entry, "p": 0.25}), pixels, index)
    assert sometimes.equal(torch.where(chosen_B.view(-1, 1, 1, 1), always, pixels))
    assert draw(parse_operation({**entry, "p": 0.0}), pixels, index).equal(pixels)
    assert not always.equal(pixels)


def test_choices_say_what_is_drawn():
    assert parse_operation("grayscale").choices == ()
    assert parse_operation("random_invert").choices == (2,)
    assert parse_operation({"name": "random_invert", "p": 1.0}).choices == (1,)
    assert ColorJitter(hue=0.1).choices is None
    assert GaussianBlur(kernel_size=3).choices is None


def test_descriptions_replay():
    pipeline = Pipeline.parse(
        [*EVERY_OPERATION, {"name": "gaussian_blur", "kernel_size": 3, "sigma": 1}]
    )
    again = Pipeline.from_description(pipeline.describe())
    assert again == pipeline


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "color_jitter", "hue": 0.6}, r"hue is 0\.6, wanted 0\.0\.\.0\.5 to both sides"),
        (
            {"name": "color_jitter", "hue": [-0.6, 0]},
            r"hue is \[-0\.6, 0\.0\], wanted .*-0\.5\.\.0\.5",
        ),
        ({"name": "color_jitter", "contrast": -1}, "contrast is -1"),
        ({"name": "color_jitter", "brightness": [0.9, 0.1]}, r"wanted \[smallest, largest\]"),
        ({"name": "color_jitter", "saturation": "much"}, "wanted a number or a list of 2 values"),
        ({"name": "gaussian_blur", "kernel_size": 4}, "wanted an odd number of pixels"),
        ({"name": "gaussian_blur", "kernel_size": 65}, r"wanted an odd number of pixels 1\.\.63"),
        ({"name": "gaussian_blur", "kernel_size": 3, "sigma": 0}, "sigma is 0"),
        ({"name": "gaussian_blur", "kernel_size": 3, "sigma": [1.0, 17.0]}, "within .* pixels"),
        ({"name": "random_posterize", "bits": 9}, r"bits is 9, wanted 0\.\.8 bits"),
        ({"name": "random_solarize", "threshold": 256}, "wanted 0..255 grey levels"),
        ({"name": "random_adjust_sharpness", "sharpness_factor": -1}, r"wanted 0\.\.16"),
        ({"name": "random_equalize", "p": 2}, r"wanted a probability 0\.\.1"),
    ],
)
def test_arguments_out_of_range_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_operation(entry)


def test_kernel_larger_than_the_image_is_refused():
    blur = GaussianBlur(kernel_size=9)
    with pytest.raises(ConfigError, match="kernel of 9 pixels is too large for images of 4x8"):
        blur(images(1, height=4, width=8), torch.zeros(1, 1, dtype=torch.int64))
