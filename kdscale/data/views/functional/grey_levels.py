"""Functions that change grey levels, at given integer parameters for each sample.

Images are uint8 [B, C, H, W] with C = 1 or 3, parameters int64 [B]. Factors are in 4096ths, so a
product with a pixel is exact, and every result is that of integer arithmetic: no order of
summation, batch size or device can change it. Where torchvision has a function, this one follows
its arithmetic on uint8 (blend, clamp, cut off what follows the point); `docs/views.md` says where
floating point makes torchvision's differ.
"""

import torch
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional.masking import chunked

FACTOR_BITS = 12
ONE = 1 << FACTOR_BITS
"""Factors and turns of hue are integers: 4096ths."""
LARGEST_FACTOR = 16
"""Beyond it, sums could leave int32."""
_GREY_WEIGHTS = (1253677, 2462056, 478151)  # 0.2989, 0.587 and 0.114
_GREY_BITS = 22  # in so fine parts, as many as int32 holds: floor then hardly ever differs

_RECIPROCALS = (1 << 16, *(-(-255 * 65536 // span) for span in range(1, 256)))
"""Of spans of grey levels, in 65536ths; a span of 0 is to stay as it is."""


def brightness(images: Tensor, factor_B: Tensor) -> Tensor:
    """Black (0) to too bright: floor(pixel · factor), at most 255."""
    return chunked(_scale, images, factor_B, torch.zeros_like(factor_B))


def contrast(images: Tensor, factor_B: Tensor) -> Tensor:
    """Even grey (0) to too contrasted: away from the mean of the grey image."""
    return chunked(_contrast, images, factor_B)


def saturation(images: Tensor, factor_B: Tensor) -> Tensor:
    """Grey (0) to too colourful: away from the grey image. An image of one channel stays."""
    return chunked(_saturation, images, factor_B) if images.shape[1] == 3 else images


def hue(images: Tensor, turn_B: Tensor) -> Tensor:
    """Turn the colour circle by -2048..2048 4096ths. An image of one channel stays."""
    return chunked(_hue, images, turn_B) if images.shape[1] == 3 else images


def grayscale(images: Tensor) -> Tensor:
    """The grey image, in as many channels as before."""
    if images.shape[1] == 1:
        return images
    return chunked(lambda part: _grey(part).to(torch.uint8).expand(part.shape), images).contiguous()


def sharpness(images: Tensor, factor_B: Tensor) -> Tensor:
    """Smooth (0) to too sharp: away from a 3x3 mean; the outermost pixels stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    return chunked(_sharpness, images, factor_B)


def invert(images: Tensor, inverted_B: Tensor) -> Tensor:
    """255 - pixel where bool `inverted_B` is true."""
    return images ^ _per_sample(-inverted_B.to(torch.int16)).to(torch.uint8)


def posterize(images: Tensor, bits_B: Tensor) -> Tensor:
    """The upper 0..8 bits of each pixel, the others 0."""
    return images & _per_sample(256 - (256 >> bits_B)).to(torch.uint8)


def solarize(images: Tensor, threshold_B: Tensor) -> Tensor:
    """255 - pixel where the pixel is at least the threshold, 0..256."""
    # A sign shifted down is a mask, -1 or 0. `torch.where` takes ten times as long.
    below = images.to(torch.int16).sub_(_per_sample(threshold_B).to(torch.int16)) >> 15
    return images ^ below.bitwise_not_().to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0..255: floor(255 · (pixel - least) / (most - least))."""
    return chunked(_autocontrast, images)


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram made flat, as Pillow does it."""
    return chunked(_equalize, images)


def gaussian_blur(images: Tensor, sigma_B: Tensor, kernel_size: int, largest_sigma: int) -> Tensor:
    """A Gaussian over kernel_size x kernel_size pixels, the image mirrored at its edges.

    Args:
        images: uint8 [B, C, H, W], larger than half the kernel.
        sigma_B: int64, 1..largest_sigma, standard deviation in 64ths of a pixel.
        kernel_size: odd, in pixels.
        largest_sigma: how far the table of weights reaches.
    """
    table = lookup_tables.gaussian(kernel_size, largest_sigma)
    weights = device_tables.on(images.device, table).to(torch.int32).view(largest_sigma, -1)
    return chunked(_blur, images, weights[sigma_B - 1])


def _quotient(dividend: Tensor, divisor: Tensor | int) -> Tensor:
    return dividend.div(divisor, rounding_mode="floor")


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1)


def _finish(sums: Tensor) -> Tensor:
    """4096ths (int32, overwritten) -> uint8."""
    return sums.bitwise_right_shift_(FACTOR_BITS).clamp_(0, 255).to(torch.uint8)


def _scale(images: Tensor, factor_B: Tensor, offset_B: Tensor) -> Tensor:
    sums = images.to(torch.int32).mul_(_per_sample(factor_B).to(torch.int32))
    return _finish(sums.add_(_per_sample(offset_B).to(torch.int32)))


def grey_of(pixels: Tensor) -> Tensor:
    """The grey image of int32 [B, C, H, W], int32 [B, 1, H, W]."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    grey: Tensor = (red * _GREY_WEIGHTS[0]).add_(green, alpha=_GREY_WEIGHTS[1])
    return grey.add_(blue, alpha=_GREY_WEIGHTS[2]).bitwise_right_shift_(_GREY_BITS)


def _grey(images: Tensor) -> Tensor:
    return grey_of(images.to(torch.int32))


def _contrast(images: Tensor, factor_B: Tensor) -> Tensor:
    grey = _grey(images)
    return _scale(images, factor_B, mean_part(grey, ONE - factor_B))


def mean_part(grey: Tensor, share_B: Tensor) -> Tensor:
    """The mean of each grey image times its share, rounded down: int64 [B].

    Inside of the floor of (pixel · factor + x) / 4096, x may be rounded down first.
    """
    # A row's sum fits in int32, of which torch makes sums seven times faster than of int64.
    total_B = grey.sum(-1, dtype=torch.int32).sum((1, 2))
    return _quotient(total_B * share_B, grey.shape[-2] * grey.shape[-1])


def _saturation(images: Tensor, factor_B: Tensor) -> Tensor:
    factor = _per_sample(factor_B).to(torch.int32)
    return _finish(images.to(torch.int32).mul_(factor).addcmul_(_grey(images), ONE - factor))


def _sharpness(images: Tensor, factor_B: Tensor) -> Tensor:
    pixels = images.to(torch.int16).contiguous()
    factor = _per_sample(factor_B).to(torch.int32)
    mean = _mean(_neighbours(pixels).to(torch.int32))
    blend = _finish(mean.mul_(ONE - factor).add_(pixels.to(torch.int32).mul_(factor)))
    sharpened = images.clone(memory_format=torch.contiguous_format)
    sharpened[..., 1:-1, 1:-1] = blend[..., 1:-1, 1:-1]
    return sharpened


def mean_of_neighbours(pixels: Tensor) -> Tensor:
    """Rounded mean of 3x3 pixels, the middle one five times; the outermost pixels are their own.

    Both int32 [B, C, H, W].
    """
    if min(pixels.shape[-2:]) <= 2:
        return pixels
    mean = pixels.clone(memory_format=torch.contiguous_format)
    mean[..., 1:-1, 1:-1] = _mean(_neighbours(pixels.contiguous()))[..., 1:-1, 1:-1]
    return mean


def _mean(sums: Tensor) -> Tensor:
    """floor((2 · sum + 13) / 26), overwriting the sums: exact up to 13 · 255."""
    return sums.mul_(2 * 10083).add_(13 * 10083).bitwise_right_shift_(18)


def _neighbours(pixels: Tensor) -> Tensor:
    """Sums of 3x3 pixels, [B, C, H, W] as they are; what stands for the outermost is void.

    All pixels of a batch in one line: twice as fast as line by line, where these are short.
    """
    line, width = pixels.flatten(), pixels.shape[-1]
    rows = (line[: -2 * width] + line[width:-width]).add_(line[2 * width :])
    inner = slice(width + 1, -width - 1)
    sums = torch.zeros_like(line)
    sums[inner] = (rows[:-2] + rows[1:-1]).add_(rows[2:]).add_(line[inner], alpha=4)
    return sums.view(pixels.shape)


def _autocontrast(images: Tensor) -> Tensor:
    least, reciprocal = _stretch(images)
    stretched = images.to(torch.int32).sub_(least).mul_(reciprocal)
    return stretched.bitwise_right_shift_(16).to(torch.uint8)


def autocontrast_levels(images: Tensor) -> Tensor:
    """What `autocontrast` makes of the grey levels that a channel has: uint8 [B, C, 1, 256].

    Those that it does not have become anything.
    """
    least, reciprocal = _stretch(images)
    level = device_tables.on(images.device, tuple(range(256)))
    return (level - least).mul_(reciprocal).bitwise_right_shift_(16).to(torch.uint8)


def _stretch(images: Tensor) -> tuple[Tensor, Tensor]:
    """What to subtract in each channel (uint8), what to multiply with then (int32, 65536ths).

    [B, C, 1, 1] both. A channel of one grey level stays.
    """
    least = images.amin((-2, -1), keepdim=True)
    # floor(255 · n / span) = floor(n · ceil(255 · 65536 / span) / 65536) for 0 <= n <= span <= 255
    span = (images.amax((-2, -1), keepdim=True) - least).to(torch.int64)
    return least * (span > 0), device_tables.on(images.device, _RECIPROCALS)[span].to(torch.int32)


def _equalize(images: Tensor) -> Tensor:
    pixels = images.flatten(0, 1).flatten(1).to(torch.int64)
    return equalized_levels(images, pixels).gather(1, pixels).view(images.shape)


def equalized_levels(images: Tensor, pixels: Tensor) -> Tensor:
    """What `equalize` makes of each grey level in each channel, uint8 [B · C, 256].

    Args:
        images: uint8 [B, C, H, W].
        pixels: the same as int64 [B · C, H · W].
    """
    one = torch.ones((), dtype=torch.int32, device=images.device).expand(pixels.shape)
    histogram = torch.zeros(len(pixels), 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(1, pixels, one)
    brightest = images.amax((-2, -1)).view(-1, 1).to(torch.int64)
    step = _quotient(pixels.shape[1] - histogram.gather(1, brightest), 255)
    # For integers below 2^52, the floor of their float64 quotient is exact, and it is faster.
    below = histogram.cumsum(1, dtype=torch.int32).sub_(histogram).add_(_quotient(step, 2))
    levels = below.to(torch.float64).div_(step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    same = torch.arange(256, dtype=torch.uint8, device=images.device)
    return torch.where(step > 0, levels, same)


def _hue(images: Tensor, turn_B: Tensor) -> Tensor:
    red, green, blue = images.to(torch.int16).unbind(1)
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    span = most - least
    # The hue in sixths of the circle is place / span. Masks are -1 (true) or 0.
    place = red - green + 4 * span
    place += (2 * span + blue - red - place) & ((most - green - 1) >> 15)
    place += (green - blue - place) & ((most - red - 1) >> 15)
    unit = span.to(torch.int32).mul_(ONE)
    turn = (6 * turn_B).to(torch.int32).view(-1, 1, 1)
    angle = place.to(torch.int32).mul_(ONE).add_(span.to(torch.int32).mul_(turn))
    circle = 6 * unit
    angle += circle & (angle >> 31)
    angle -= circle & ((angle - circle) >> 31).bitwise_not_()
    base = least.to(torch.int32).mul_(ONE)
    zero = torch.zeros((), dtype=torch.int32, device=images.device)
    rises = (
        (angle - 3 * unit).abs_().sub_(unit),
        2 * unit - (angle - 2 * unit).abs_(),
        2 * unit - (angle - 4 * unit).abs_(),
    )
    levels = [rise.clamp_(zero, unit).add_(base) for rise in rises]
    # torchvision cuts off 255.999 · level; 257/256 is that ratio to five digits
    shift = FACTOR_BITS + 8
    turned = [level.mul_(257).bitwise_right_shift_(shift).to(torch.uint8) for level in levels]
    return torch.stack(turned, 1)


def _blur(images: Tensor, weights_BR: Tensor) -> Tensor:
    reach = weights_BR.shape[1] - 1
    padded = _mirrored(images.to(torch.int32), reach)
    weights = [_per_sample(weight) for weight in weights_BR.unbind(1)]
    # 15 bits of weight and 8 of pixel, of which 16 are kept: the second sum stays below 2^31
    rows = _weighted(padded, weights, -2).add_(1 << 6).bitwise_right_shift_(7)
    sums = _weighted(rows, weights, -1).add_(1 << 22).bitwise_right_shift_(23)
    return sums.to(torch.uint8)


def _weighted(padded: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    """Symmetric weighted sums along `dim`, which gets shorter by twice the reach."""
    reach = len(weights) - 1
    size = padded.shape[dim] - 2 * reach
    total = padded.narrow(dim, reach, size) * weights[0]
    for distance in range(1, reach + 1):
        sides = padded.narrow(dim, reach - distance, size) + padded.narrow(
            dim, reach + distance, size
        )
        total.addcmul_(sides, weights[distance])
    return total


def _mirrored(images: Tensor, reach: int) -> Tensor:
    """The images with `reach` more pixels on all sides, mirrored at the outermost pixels."""
    for dim in (-2, -1):
        if reach:
            size = images.shape[dim]
            before = images.narrow(dim, 1, reach).flip(dim)
            after = images.narrow(dim, size - 1 - reach, reach).flip(dim)
            images = torch.cat((before, images, after), dim)
    return images
