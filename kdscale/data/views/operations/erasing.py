"""Operations that cover a rectangle, alike in every channel."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.rng import bernoulli, integers, mix
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional.masking import chunked
from kdscale.data.views.operations.operation import (
    Native,
    check_interval,
    check_probability,
    check_range,
)

_ATTEMPTS = 10
_LARGEST_SIZE = 4096  # pixels
_LARGEST_RATIO = 1024.0


@dataclass(frozen=True, slots=True)
class RandomErasing(Native):
    """A rectangle of one grey level or of noise, with probability `p`.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020. Draw 0 decides, draws 1 and 2 are
    the top and left edge, draws 3 to 12 the areas and 13 to 22 the aspect ratios of ten attempts to
    find a rectangle that fits, draw 23 seeds the noise.
    """

    num_draws: ClassVar[int] = 4 + 2 * _ATTEMPTS
    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    """Share of the image's area."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Height over width."""
    value: int | Literal["random"] = 0
    """Grey level of all channels."""

    def __post_init__(self) -> None:
        check_probability("random_erasing", "p", self.p)
        check_interval("random_erasing", "scale", self.scale, 0, 1, "of the image's area")
        least = 1 / _LARGEST_RATIO
        check_interval("random_erasing", "ratio", self.ratio, least, _LARGEST_RATIO, "as a ratio")
        if self.value != "random":
            check_range("random_erasing", "value", self.value, 0, 255, "grey levels, or 'random'")

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them with a rectangle covered."""
        height, width = images.shape[-2:]
        erased_B = bernoulli(bits[0], self.p)
        height_B, width_B = self._rectangles(height, width, bits[3:-1])
        height_B, width_B = height_B * erased_B, width_B * erased_B
        top_B = integers(bits[1], height - height_B + 1)
        left_B = integers(bits[2], width - width_B + 1)
        inside = _inside(images, top_B, top_B + height_B, left_B, left_B + width_B)
        if self.value == "random":
            return _covered(images, inside, chunked(_noise, images, bits[-1]))
        return _covered(images, inside, self.value)

    def _rectangles(self, height: int, width: int, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width, int64 [B], of the first attempt that fits; 0 where none does."""
        low, high = (round(share * lookup_tables.ONE) for share in self.scale)
        area_AB = (low + integers(bits[:_ATTEMPTS], high - low + 1)) * (height * width)
        ratios = device_tables.on(bits.device, lookup_tables.log_uniform(*self.ratio))
        ratio_AB = ratios[integers(bits[_ATTEMPTS:], lookup_tables.QUANTILES)]
        # Four times the squares of height and width, rounded down
        height_AB = _half_up_root((4 * area_AB * ratio_AB) >> 32, height)
        width_AB = _half_up_root((4 * area_AB).div(ratio_AB, rounding_mode="floor"), width)
        fits_AB = ((height_AB < height) & (width_AB < width)).to(torch.int64)
        first_1B = fits_AB.argmax(0, keepdim=True)
        fits_B = fits_AB.amax(0)
        return tuple(x.gather(0, first_1B)[0] * fits_B for x in (height_AB, width_AB))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Cutout(Native):
    """A square around any pixel, what lies outside of the image cut off, with probability `p`.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    Draw 0 decides, draws 1 and 2 are the row and the column of the middle.
    """

    num_draws: ClassVar[int] = 3
    size: int
    """Pixels."""
    p: float = 1.0
    value: int = 0
    """Grey level of all channels."""

    def __post_init__(self) -> None:
        check_range("cutout", "size", self.size, 1, _LARGEST_SIZE, "pixels")
        check_probability("cutout", "p", self.p)
        check_range("cutout", "value", self.value, 0, 255, "grey levels")

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them with a square covered."""
        size_B = self.size * bernoulli(bits[0], self.p)
        top_B = integers(bits[1], images.shape[-2]) - self.size // 2
        left_B = integers(bits[2], images.shape[-1]) - self.size // 2
        inside = _inside(images, top_B, top_B + size_B, left_B, left_B + size_B)
        return _covered(images, inside, self.value)


def _half_up_root(four_squares: Tensor, most: int) -> Tensor:
    """floor(sqrt(x) + 1/2) of x = four_squares/4, at most `most`.

    The number of odd squares (2k - 1)², k = 1..most, that are not greater: no root, no rounding.
    """
    odd = torch.arange(1, 2 * most, 2, device=four_squares.device)
    return torch.searchsorted(odd * odd, four_squares, right=True)


def _inside(
    images: Tensor, top_B: Tensor, bottom_B: Tensor, left_B: Tensor, right_B: Tensor
) -> Tensor:
    """uint8 [B, 1, H, W]: 255 from top and left up to bottom and right, 0 elsewhere."""
    row_H = torch.arange(images.shape[-2], device=images.device)
    column_W = torch.arange(images.shape[-1], device=images.device)
    rows_BH = (row_H >= top_B.view(-1, 1)) & (row_H < bottom_B.view(-1, 1))
    columns_BW = (column_W >= left_B.view(-1, 1)) & (column_W < right_B.view(-1, 1))
    # As bits, masks cost a tenth of what `torch.where` does.
    return (255 * rows_BH.view(*rows_BH.shape, 1).to(torch.uint8)).unsqueeze(1) & (
        255 * columns_BW.view(len(images), 1, 1, -1).to(torch.uint8)
    )


def _covered(images: Tensor, inside: Tensor, value: Tensor | int) -> Tensor:
    return (images & ~inside) | (inside & value)


def _noise(images: Tensor, bits_B: Tensor) -> Tensor:
    """Uniform grey levels: byte n of a sample is byte n mod 8 of absorb(bits, floor(n / 8))."""
    num_pixels = images[:1].numel()
    word = torch.arange(-(-num_pixels // 8), device=images.device)
    words_BN = mix(bits_B.view(-1, 1), word)
    # Bytes as they lie in memory: every machine that torch runs on has the lowest one first.
    return words_BN.view(torch.uint8)[:, :num_pixels].reshape(images.shape)
