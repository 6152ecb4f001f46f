"""Operations that change the size of an image: one frozen dataclass each.

Names and arguments follow `torchvision.transforms.v2`.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.rng import integers, integers_between
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import resampling
from kdscale.data.views.functional.affine import Interpolation
from kdscale.data.views.functional.masking import on_host
from kdscale.data.views.operations.operation import (
    Native,
    check_interval,
    check_name,
    check_range,
    limits_in,
)

_LARGEST_SIZE = 1 << 14  # pixels
_ATTEMPTS = 10  # at a crop that fits, as torchvision has it
Size = int | tuple[int, int]
"""Pixels: of a side, or of height and width."""


@dataclass(frozen=True, slots=True)
class CenterCrop(Native):
    """The middle of the image; what is missing of `size` becomes black. Nothing is drawn."""

    num_draws: ClassVar[int] = 0
    choices: ClassVar[tuple[()]] = ()
    fixes_size: ClassVar[bool] = True
    size: Size

    def __post_init__(self) -> None:
        _check_size("center_crop", self.size)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The crops."""
        for axis, size in zip((-1, -2), _pair(self.size)[::-1], strict=True):
            missing = size - images.shape[axis]
            if missing > 0:
                around = [0, 0] * (-1 - axis) + [missing // 2, (missing + 1) // 2]
                images = F.pad(images, around)
            else:
                images = images.narrow(axis, round(-missing / 2), size)
        return images.contiguous()


@dataclass(frozen=True, slots=True)
class Resize(Native):
    """All of the image at another size. Nothing is drawn.

    One number is the length of the shorter side; the longer one keeps the ratio, rounded down.
    """

    num_draws: ClassVar[int] = 0
    choices: ClassVar[tuple[()]] = ()
    size: Size
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        _check_size("resize", self.size)
        check_name("resize", "interpolation", self.interpolation, ("bilinear", "nearest"))

    @property
    def fixes_size(self) -> bool:  # type: ignore[override]  # of an instance here, of a class there
        """Whether both sides are given."""
        return not isinstance(self.size, int)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images at their new size."""
        height, width = images.shape[-2:]
        if isinstance(self.size, int):
            shorter = min(height, width)
            new = (self.size * height // shorter, self.size * width // shorter)
        else:
            new = self.size
        return resampling.resize(images, new, self.interpolation, self.antialias)


@dataclass(frozen=True, slots=True)
class RandomResizedCrop(Native):
    """A box of random area and shape, brought to one size.

    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6. Draws 2a and 2a + 1 are
    the area and the ratio of width to height of attempt a; the first box that fits counts. Draws 20
    and 21 are its top and left edge. Where none fits it is the largest one in the middle.
    """

    num_draws: ClassVar[int] = 2 * _ATTEMPTS + 2
    fixes_size: ClassVar[bool] = True
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        name = "random_resized_crop"
        _check_size(name, self.size)
        check_interval(name, "scale", self.scale, 0.0001, 1, "(shares of the image's area)")
        check_interval(name, "ratio", self.ratio, 0.01, 100, "(width to height)")
        check_name(name, "interpolation", self.interpolation, ("bilinear", "nearest"))

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The crops at their new size."""
        # Both axes at once, [2, ...]: what counts in so small tensors is the number of steps.
        largest_2 = (images.shape[-2], images.shape[-1])
        sides_2B = self._box(bits[: 2 * _ATTEMPTS], largest_2)
        drawn_1B = sides_2B[1:] > 0
        middle_2 = device_tables.on(bits.device, self._middle_box(*largest_2))
        sides_2B = torch.where(drawn_1B, sides_2B, middle_2.view(2, 1))
        left_over_2B = device_tables.on(bits.device, largest_2).view(2, 1) - sides_2B
        start_2B = torch.where(drawn_1B, integers(bits[-2:], left_over_2B + 1), left_over_2B >> 1)
        return resampling.resized_crop(
            images, start_2B, sides_2B, _pair(self.size), self.interpolation, self.antialias
        )

    def _box(self, bits: Tensor, largest_2: tuple[int, int]) -> Tensor:
        """Height and width of the first attempt that fits, int64 [2, B]; 0 where none does."""
        if not on_host(bits):
            return self._first_of(bits, largest_2)
        # Most first attempts fit: where no device has to be waited for, the others are made for
        # those samples alone that need them.
        sides_2B = self._first_of(bits[:2], largest_2)
        misses = (sides_2B[1] == 0).nonzero().flatten()
        if len(misses):
            sides_2B[:, misses] = self._first_of(bits[2:, misses], largest_2)
        return sides_2B

    def _first_of(self, bits: Tensor, largest_2: tuple[int, int]) -> Tensor:
        """The same for any number of attempts, two draws each."""
        attempts, device = len(bits) // 2, bits.device
        limits = limits_in(lookup_tables.ONE, self.scale), (0, lookup_tables.QUANTILES - 1)
        drawn = integers_between(bits, limits * attempts)
        ratio_AB = device_tables.on(device, lookup_tables.log_uniform(*self.ratio))[drawn[1::2]]
        area_AB = (drawn[::2] * prod(largest_2)) >> 8  # 256ths of a pixel
        height_AB = torch.div(area_AB << 10, ratio_AB, rounding_mode="floor")
        sides_2AB = (_square_root(torch.stack((height_AB, (area_AB * ratio_AB) >> 22))) + 1) >> 1
        largest_211 = device_tables.on(device, largest_2).view(2, 1, 1)
        fits_AB = ((sides_2AB > 0) & (sides_2AB <= largest_211)).all(0)
        # The first that fits has the largest of these numbers; where none does, all are 0.
        turns = device_tables.on(device, tuple(range(attempts, 0, -1))).view(-1, 1)
        first_1B = (fits_AB * turns).argmax(0, keepdim=True)
        return (sides_2AB * fits_AB).gather(1, first_1B.expand(2, 1, -1)).squeeze(1)

    def _middle_box(self, height: int, width: int) -> tuple[int, int]:
        """The largest box whose ratio is within the limits."""
        low, high = (round(limit * lookup_tables.ONE) for limit in self.ratio)
        if width * lookup_tables.ONE < low * height:
            return max(1, (2 * width * lookup_tables.ONE + low) // (2 * low)), width
        if width * lookup_tables.ONE > high * height:
            return height, max(
                1, (2 * height * high + lookup_tables.ONE) // (2 * lookup_tables.ONE)
            )
        return height, width


# --------------------------------------------------------------------------- arguments and draws


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_size(operation: str, size: Size) -> None:
    for side in _pair(size):
        check_range(operation, "size", side, 1, _LARGEST_SIZE, "pixels")


def _square_root(square: Tensor) -> Tensor:
    """The largest integer whose square is not above, for int64 below 2^52.

    IEEE 754 wants the root of a float64 rounded correctly, and k - 1/2k, about the root of k^2 - 1,
    is then not rounded to k.
    """
    return square.to(torch.float64).sqrt().to(torch.int64)
