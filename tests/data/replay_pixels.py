"""The native operations in plain NumPy, written from docs/views.md alone: half of `replay`.

An operation is a function `(image, draws, **arguments)`: uint8 [C, H, W] and the arguments of the
description in, uint8 [C, H', W'] out. `draws` gives the random choices by the number of the draw.
"""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np

# --------------------------------------------------------------------------- tables


def sine(angle):
    """65536 times the sine of an angle in 64ths of a degree."""
    return round(65536 * math.sin(math.radians(angle / 64)))


def cosine(angle):
    """65536 times the cosine of an angle in 64ths of a degree."""
    return sine(angle + 5760)


def tangent(angle):
    """65536 times the tangent of an angle in 64ths of a degree."""
    return round(65536 * math.tan(math.radians(angle / 64)))


def log_uniform(low, high, entry):
    """Entry 0..1023 of a table of numbers whose logarithms are evenly spaced, 65536ths."""
    return round(65536 * low * (high / low) ** ((entry + 0.5) / 1024))


@functools.cache
def beta(alpha):
    """The 1024 quantiles of Beta(alpha, alpha), 256ths.

    An entry counts the middles between two 256ths at which the distribution function is smaller
    than its share: so the function need not be inverted.
    """
    lower = [_beta_distribution(alpha, (2 * value + 1) / 512) for value in range(128)]
    function = lower + [1 - share for share in reversed(lower)]
    return np.searchsorted(function, (np.arange(1024) + 0.5) / 1024).tolist()


def _beta_distribution(alpha, x):
    """I_x(alpha, alpha) for x < 1/2: its power series has positive terms only."""
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    term = math.exp(alpha * math.log(x * (1 - x)) - log_beta) / alpha
    total = 0.0
    for n in range(1, 2000):
        total += term
        term *= (2 * alpha + n - 1) / (alpha + n) * x
    return total


# --------------------------------------------------------------------------- places of pixels


def random_crop(image, draws, padding, padding_mode, fill):
    _, height, width = image.shape
    options = {"constant_values": fill} if padding_mode == "constant" else {}
    around = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image, around, mode=padding_mode, **options)
    top, left = (draws.integer(draw, 2 * padding + 1) for draw in (0, 1))
    return padded[:, top : top + height, left : left + width]


def random_horizontal_flip(image, draws, p):
    return image[:, :, ::-1] if draws.bernoulli(0, p) else image


def random_vertical_flip(image, draws, p):
    return image[:, ::-1] if draws.bernoulli(0, p) else image


def _height_and_width(size):
    return size if isinstance(size, list) else (size, size)


def center_crop(image, _, size):
    for axis, new in enumerate(_height_and_width(size), start=1):
        missing = new - image.shape[axis]
        if missing > 0:
            around = [(0, 0)] * 3
            around[axis] = (missing // 2, missing - missing // 2)
            image = np.pad(image, around)
        else:
            start = round(Fraction(-missing, 2))
            image = image.take(range(start, start + new), axis)
    return image


def resampled_line(old, new_size, interpolation, antialias):
    """A line of pixels, int64 [n, ...], brought to another number of pixels."""
    n, s = len(old), new_size
    if interpolation == "nearest":
        return old[[i * n // s for i in range(s)]]
    reach = 2 * (max(n, s) if antialias else s)
    rows = []
    for i in range(s):
        upto = np.cumsum([max(0, reach - abs((2 * j + 1) * s - (2 * i + 1) * n)) for j in range(n)])
        ends = (2**14 * upto + upto[-1] // 2) // upto[-1]
        weights = np.diff(ends, prepend=0)
        rows.append((np.tensordot(weights, old, 1) + 2**13) >> 14)
    return np.stack(rows)


def _resampled(image, height, width, interpolation, antialias):
    lines = image.astype(np.int64).transpose(2, 1, 0)
    lines = resampled_line(lines, width, interpolation, antialias).transpose(1, 0, 2)
    lines = resampled_line(lines, height, interpolation, antialias)
    return lines.transpose(2, 0, 1).astype(np.uint8)


def resize(image, _, size, interpolation, antialias):
    _, *old = image.shape
    if not isinstance(size, list):
        size = [size * side // min(old) for side in old]
    return _resampled(image, *size, interpolation, antialias)


def random_resized_crop(image, draws, size, scale, ratio, interpolation, antialias):
    top, left, height, width = _random_box(*image.shape[1:], draws, scale, ratio)
    box = image[:, top : top + height, left : left + width]
    return _resampled(box, *_height_and_width(size), interpolation, antialias)


def _random_box(rows, columns, draws, scale, ratio):
    for attempt in range(10):
        area = rows * columns * draws.between(2 * attempt, *scale, 65536) // 256
        aspect = log_uniform(*ratio, draws.integer(2 * attempt + 1, 1024))
        width = (math.isqrt(area * aspect // 2**22) + 1) // 2
        height = (math.isqrt(2**10 * area // aspect) + 1) // 2
        if 1 <= width <= columns and 1 <= height <= rows:
            top, left = draws.integer(20, rows - height + 1), draws.integer(21, columns - width + 1)
            return top, left, height, width
    low, high = (round(65536 * bound) for bound in ratio)
    height, width = rows, columns
    if 65536 * columns < low * rows:
        height = max(1, (2**17 * columns + low) // (2 * low))
    elif 65536 * columns > high * rows:
        width = max(1, (2 * rows * high + 65536) // 2**17)
    return (rows - height) // 2, (columns - width) // 2, height, width


# --------------------------------------------------------------------------- affine maps


def affine(image, matrix, interpolation, fill):
    """The image under a map from its new pixels to the old ones, six numbers in 65536ths."""
    a, b, c, d, e, f = matrix
    _, height, width = image.shape
    y, x = np.ogrid[-(height - 1) : height : 2, -(width - 1) : width : 2]
    columns = _term(a * x) + _term(b * y + 2 * c + 65536 * (width - 1))
    rows = _term(d * x) + _term(e * y + 2 * f + 65536 * (height - 1))
    if interpolation == "nearest":
        return _pixels(image, (rows + 2048) >> 12, (columns + 2048) >> 12, fill)
    u, v = (columns + 8) >> 4, (rows + 8) >> 4
    total = 2**15
    for down, right in itertools.product((0, 1), repeat=2):
        weight = (v % 256 if down else 256 - v % 256) * (u % 256 if right else 256 - u % 256)
        total = total + weight * _pixels(image, (v >> 8) + down, (u >> 8) + right, fill)
    return (total >> 16).astype(np.uint8)


def _term(value):
    return np.clip((value + 16) >> 5, -(2**30), 2**30 - 1)


def _pixels(image, rows, columns, fill):
    """The pixels at these places, `fill` outside of the image: [C, H, W]."""
    _, height, width = image.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(inside, image[:, rows * inside, columns * inside], fill).astype(image.dtype)


def _rotation(angle):
    return cosine(angle), -sine(angle), 0, sine(angle), cosine(angle), 0


def _angles(degrees):
    return degrees if isinstance(degrees, list) else (-degrees, degrees)


def random_rotation(image, draws, degrees, interpolation, fill):
    angle = draws.between(0, *_angles(degrees), 64)
    return affine(image, _rotation(angle), interpolation, fill)


def random_affine(image, draws, degrees, translate, scale, shear, interpolation, fill):
    angle = draws.between(0, *_angles(degrees), 64)
    shifts = [0, 0]
    for axis, side in enumerate(image.shape[:0:-1] if translate else ()):
        most = round(translate[axis] * (64 * side))
        shifts[axis] = (draws.integer(1 + axis, 2 * most + 1) - most + 32) // 64
    factor = draws.between(3, *scale, 65536) if scale else 65536
    limits = _angles(shear) if shear else (0, 0)
    limits = (*limits, 0, 0)[:4]
    shears = draws.between(4, *limits[:2], 64), draws.between(5, *limits[2:], 64)
    return affine(image, affine_map(angle, *shifts, factor, *shears), interpolation, fill)


def affine_map(angle, right, down, scale, shear_x, shear_y):
    """The six numbers of `random_affine`."""

    def times(x, y):
        return (x * y + 32768) >> 16

    a = cosine(angle) + times(sine(angle), tangent(shear_y))
    b = -times(a, tangent(shear_x)) - sine(angle)
    c = sine(angle) - times(cosine(angle), tangent(shear_y))
    d = cosine(angle) - times(c, tangent(shear_x))
    a, b, c, d = ((65536 * x + scale // 2) // scale for x in (a, b, c, d))
    return d, -b, b * down - d * right, -c, a, c * right - a * down


# --------------------------------------------------------------------------- grey levels


def _levels(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def grey(image):
    """The grey image, [1, H, W]."""
    if len(image) == 1:
        return image
    red, green, blue = image.astype(np.int64)
    return ((1253677 * red + 2462056 * green + 478151 * blue) >> 22).astype(np.uint8)[None]


def brightness(image, k):
    return _levels((k * image.astype(np.int64)) >> 12)


def contrast(image, k):
    mean = (4096 - k) * int(grey(image).sum(dtype=np.int64)) // image[0].size
    return _levels((k * image.astype(np.int64) + mean) >> 12)


def saturation(image, k):
    return _levels((k * image.astype(np.int64) + (4096 - k) * grey(image).astype(np.int64)) >> 12)


def sharpness(image, k):
    _, height, width = image.shape
    old = image.astype(np.int64)
    new = image.copy()
    if min(height, width) > 2:
        inner = old[:, 1:-1, 1:-1]
        total = 4 * inner
        for y, x in itertools.product(range(3), repeat=2):
            total = total + old[:, y : y + height - 2, x : x + width - 2]
        smooth = (2 * total + 13) // 26
        new[:, 1:-1, 1:-1] = _levels((k * inner + (4096 - k) * smooth) >> 12)
    return new


def invert(image):
    return 255 - image


def posterize(image, num_bits):
    return image & np.uint8(256 - (256 >> num_bits))


def solarize(image, threshold):
    return np.where(image >= threshold, 255 - image, image)


def autocontrast(image):
    new = image.astype(np.int64)
    for channel in new:
        low, high = channel.min(), channel.max()
        if low < high:
            channel[:] = 255 * (channel - low) // (high - low)
    return new.astype(np.uint8)


def equalize(image):
    new = image.copy()
    for old_channel, channel in zip(image, new, strict=True):
        counts = np.bincount(old_channel.ravel(), minlength=256)
        step = (channel.size - counts[channel.max()]) // 255
        if step:
            below = np.cumsum(counts) - counts
            channel[:] = np.minimum(255, (below + step // 2) // step)[old_channel]
    return new


def hue(image, k):
    if len(image) == 1:
        return image
    red, green, blue = image.astype(np.int64)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    d = high - low
    place = np.where(green == high, 2 * d + blue - red, 4 * d + red - green)
    place = np.where(red == high, green - blue, place)
    full = 4096 * d
    angle = (4096 * place + 6 * k * d) % np.maximum(6 * full, 1)
    parts = (
        np.minimum(np.maximum(abs(angle - 3 * full) - full, 0), full),
        np.minimum(np.maximum(2 * full - abs(angle - 2 * full), 0), full),
        np.minimum(np.maximum(2 * full - abs(angle - 4 * full), 0), full),
    )
    return np.stack([257 * (4096 * low + part) >> 20 for part in parts]).astype(np.uint8)


JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


def color_jitter(image, draws, **arguments):
    factors = {}
    for draw, name in enumerate(JITTER, start=1):
        bounds = arguments[name]
        if not isinstance(bounds, list):
            bounds = (-bounds, bounds) if name == "hue" else (max(0, 1 - bounds), 1 + bounds)
        factors[name] = draws.between(draw, *bounds, 4096)
    for name in list(itertools.permutations(JITTER))[draws.integer(0, 24)]:
        image = JITTER[name](image, factors[name])
    return image


def grayscale(image, _):
    return np.broadcast_to(grey(image), image.shape)


def gaussian_blur(image, draws, kernel_size, sigma):
    s = draws.between(0, *(sigma if isinstance(sigma, list) else (sigma, sigma)), 64)
    reach = kernel_size // 2
    bell = [math.exp(-2048 * j * j / s**2) for j in range(-reach, reach + 1)]
    weights = [round(32768 * value / math.fsum(bell)) for value in bell]
    weights[reach] = 32768 - 2 * sum(weights[reach + 1 :])
    _, height, width = image.shape
    around = ((0, 0), (reach, reach), (reach, reach))
    padded = np.pad(image.astype(np.int64), around, mode="reflect")
    column = sum(w * padded[:, j : j + height] for j, w in enumerate(weights))
    column = (column + 64) >> 7
    row = sum(w * column[:, :, j : j + width] for j, w in enumerate(weights))
    return ((row + 2**22) >> 23).astype(np.uint8)


def _at_random(function):
    """The operation that applies `function(image, **arguments)` with probability p."""

    def operation(image, draws, p, **arguments):
        return function(image, **arguments) if draws.bernoulli(0, p) else image

    return operation


# --------------------------------------------------------------------------- policies


def _augmented(image, kind, sign, u, wide, interpolation, fill):
    """One kind of RandAugment or TrivialAugmentWide at the share u of its range."""
    _, height, width = image.shape
    u = sign * u
    if kind in (1, 2, 3, 4, 5):
        shear = round(65536 * u * (Fraction(99, 100) if wide else Fraction(3, 10)))
        shifts = [
            sign * math.floor(32 * abs(u) if wide else Fraction(150, 331) * side * abs(u))
            for side in (width, height)
        ]
        matrix = [
            (65536, shear, shear * height // 2, 0, 65536, 0),
            (65536, 0, 0, shear, 65536, shear * width // 2),
            (65536, 0, -65536 * shifts[0], 0, 65536, 0),
            (65536, 0, 0, 0, 65536, -65536 * shifts[1]),
            _rotation(round(64 * u * (135 if wide else 30))),
        ][kind - 1]
        return affine(image, matrix, interpolation, fill)
    factor = round(4096 * (1 + u * (Fraction(99, 100) if wide else Fraction(9, 10))))
    others = {
        0: lambda: image,
        6: lambda: brightness(image, factor),
        7: lambda: saturation(image, factor),
        8: lambda: contrast(image, factor),
        9: lambda: sharpness(image, factor),
        10: lambda: posterize(image, round(8 - (6 if wide else 4) * abs(u))),
        11: lambda: solarize(image, math.ceil(255 * (1 - abs(u)))),
        12: lambda: autocontrast(image),
        13: lambda: equalize(image),
    }
    return others[kind]()


def rand_augment(image, draws, num_ops, magnitude, num_magnitude_bins, interpolation, fill):
    u = Fraction(magnitude, num_magnitude_bins - 1)
    for step in range(num_ops):
        kind, sign = draws.integer(2 * step, 14), 1 - 2 * draws.integer(2 * step + 1, 2)
        image = _augmented(image, kind, sign, u, False, interpolation, fill)
    return image


def trivial_augment_wide(image, draws, num_magnitude_bins, interpolation, fill):
    kind, magnitude = draws.integer(0, 14), draws.integer(1, num_magnitude_bins)
    sign = 1 - 2 * draws.integer(2, 2)
    u = Fraction(magnitude, num_magnitude_bins - 1)
    return _augmented(image, kind, sign, u, True, interpolation, fill)


# --------------------------------------------------------------------------- erasing and mixing


def random_erasing(image, draws, p, scale, ratio, value):
    _, rows, columns = image.shape
    if not draws.bernoulli(0, p):
        return image
    for attempt in range(10):
        area = 4 * draws.between(3 + attempt, *scale, 65536) * rows * columns
        aspect = log_uniform(*ratio, draws.integer(13 + attempt, 1024))
        height = sum((2 * k - 1) ** 2 <= area * aspect // 2**32 for k in range(1, rows + 1))
        width = sum((2 * k - 1) ** 2 <= area // aspect for k in range(1, columns + 1))
        if height < rows and width < columns:
            top, left = draws.integer(1, rows - height + 1), draws.integer(2, columns - width + 1)
            noise = draws.noise(23, image.size).reshape(image.shape) if value == "random" else value
            return _with_box(image, noise, top, left, height, width)
    return image


def _with_box(image, other, top, left, height, width):
    """`other`, pixels or a grey level, inside of a box and `image` elsewhere."""
    _, rows, columns = image.shape
    y, x = np.ogrid[:rows, :columns]
    inside = (top <= y) & (y < top + height) & (left <= x) & (x < left + width)
    return np.where(inside, other, image).astype(np.uint8)


def cutout(image, draws, size, p, value):
    _, height, width = image.shape
    if not draws.bernoulli(0, p):
        return image
    top, left = draws.integer(1, height) - size // 2, draws.integer(2, width) - size // 2
    return _with_box(image, value, top, left, size, size)


def mixup(own, other, draws, alpha, p):
    weight = beta(alpha)[draws.integer(1, 1024)] if draws.bernoulli(0, p) else 256
    total = weight * own.astype(np.int64) + (256 - weight) * other.astype(np.int64)
    return ((total + 128) >> 8).astype(np.uint8)


def cutmix(own, other, draws, alpha, p):
    _, height, width = own.shape
    weight = beta(alpha)[draws.integer(1, 1024)] if draws.bernoulli(0, p) else 256
    root = math.isqrt(2**24 * (256 - weight))
    y, x = draws.integer(2, height), draws.integer(3, width)
    h, k = height * root >> 17, width * root >> 17
    return _with_box(own, other, y - h, x - k, 2 * h, 2 * k)


def mixup_or_cutmix(own, other, draws, mixup_alpha, cutmix_alpha, switch_p, p):
    if draws.bernoulli(4, switch_p):
        return cutmix(own, other, draws, cutmix_alpha, p)
    return mixup(own, other, draws, mixup_alpha, p)


# --------------------------------------------------------------------------- by name

OPERATIONS = {
    "random_crop": random_crop,
    "random_horizontal_flip": random_horizontal_flip,
    "random_vertical_flip": random_vertical_flip,
    "center_crop": center_crop,
    "resize": resize,
    "random_resized_crop": random_resized_crop,
    "random_rotation": random_rotation,
    "random_affine": random_affine,
    "color_jitter": color_jitter,
    "random_grayscale": _at_random(lambda image: np.broadcast_to(grey(image), image.shape)),
    "grayscale": grayscale,
    "gaussian_blur": gaussian_blur,
    "random_invert": _at_random(invert),
    "random_posterize": _at_random(lambda image, bits: posterize(image, bits)),
    "random_solarize": _at_random(lambda image, threshold: solarize(image, math.ceil(threshold))),
    "random_adjust_sharpness": _at_random(
        lambda image, sharpness_factor: sharpness(image, round(4096 * sharpness_factor))
    ),
    "random_autocontrast": _at_random(autocontrast),
    "random_equalize": _at_random(equalize),
    "rand_augment": rand_augment,
    "trivial_augment_wide": trivial_augment_wide,
    "random_erasing": random_erasing,
    "cutout": cutout,
}
MIXING = {"mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": mixup_or_cutmix}
