"""Operations that move pixels: one frozen dataclass each.

An operation takes a whole batch of uint8 images and its own random bits, and works in integers
only, so that a view is bit-equal on every device and at every batch size. Names and arguments
follow `torchvision.transforms.v2`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.device_tables import device_table
from kdscale.data.rng import bernoulli, integers, integers_between
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import affine
from kdscale.data.views.functional.affine import Interpolation
from kdscale.data.views.operations.operation import (
    Native,
    RandomApply,
    check_interval,
    check_name,
    check_range,
    limits_in,
)
from kdscale.errors import ConfigError

_MOST_PADDING = 1024  # pixels; beyond it a crop would show hardly any image
_SHIFT_UNITS = 64  # a shift is drawn in 64ths of a pixel, then rounded

Angle = float | tuple[float, float]
"""Degrees: [smallest, largest], or the largest in either direction."""


@dataclass(frozen=True, slots=True)
class RandomCrop(Native):
    """A crop of the image's own size out of the image padded on all sides.

    Draw 0 is the top edge, draw 1 the left one, each uniform in 0..2·padding.
    """

    num_draws: ClassVar[int] = 2
    padding: int
    padding_mode: Literal["constant", "reflect", "edge"] = "constant"
    fill: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.padding <= _MOST_PADDING:
            raise ConfigError(
                f"random_crop: padding is {self.padding}, wanted 1..{_MOST_PADDING} pixels"
            )
        check_name(
            "random_crop", "padding_mode", self.padding_mode, ("constant", "reflect", "edge")
        )
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"random_crop: fill is {self.fill}, wanted a grey level 0..255")

    @property
    def choices(self) -> tuple[int, int]:
        """Top edges and left edges."""
        return (2 * self.padding + 1, 2 * self.padding + 1)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The crops, as large as the images."""
        batch, channels, height, width = images.shape
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ConfigError(
                f"random_crop: reflecting {self.padding} pixels needs images larger than that, "
                f"these are {height}x{width}: choose a smaller padding or another padding_mode"
            )
        top_B, left_B = integers(bits, 2 * self.padding + 1)
        padded = self._pad(images)
        # A crop is made of lines of `width` neighbours in the padded images' memory. Copying lines
        # is four times faster than gathering pixels.
        lines = padded.flatten().unfold(0, width, 1)
        padded_height, padded_width = padded.shape[-2:]
        first_BCH = _first_pixels(batch, channels, height, padded_height, padded_width, bits.device)
        start_B = left_B.add(top_B, alpha=padded_width)
        line_BCH = first_BCH + start_B.view(-1, 1, 1)
        return lines.index_select(0, line_BCH.flatten()).view(images.shape)

    def _pad(self, images: Tensor) -> Tensor:
        if self.padding_mode == "constant":
            return F.pad(images, [self.padding] * 4, value=self.fill)
        rows, columns = (self._source(size, images.device) for size in images.shape[-2:])
        return images.index_select(2, rows).index_select(3, columns)

    def _source(self, size: int, device: torch.device) -> Tensor:
        """Which pixel of a line each pixel of the padded line copies."""
        position = torch.arange(-self.padding, size + self.padding, device=device)
        if self.padding_mode == "edge":
            return position.clamp(0, size - 1)
        return (size - 1) - ((size - 1) - position.abs()).abs()


@device_table
def _first_pixels(
    batch: int, channels: int, rows: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Place of the first pixel of each row in the memory of a batch, int64 [B, C, rows]."""
    plane_BC1 = torch.arange(batch * channels, device=device).view(batch, channels, 1)
    return (plane_BC1 * height + torch.arange(rows, device=device)) * width


@dataclass(frozen=True, slots=True)
class RandomHorizontalFlip(RandomApply):
    """A mirror image, left to right, with probability `p`. Draw 0 decides."""

    p: float = 0.5

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them mirrored."""
        flipped_B = bernoulli(bits[0], self.p)
        # Choosing whole images out of both versions is five times faster than `torch.where`.
        both = torch.cat((images, images.flip(-1)))
        sample_B = _first_pixels(1, 1, len(images), 1, 1, bits.device).flatten()
        return both.index_select(0, sample_B.add(flipped_B, alpha=len(images)))


@dataclass(frozen=True, slots=True)
class RandomVerticalFlip(RandomApply):
    """A mirror image, top to bottom, with probability `p`. Draw 0 decides."""

    p: float = 0.5

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them mirrored."""
        batch, channels, height, width = images.shape
        lines = images.contiguous().view(-1, width)
        upright_BCH = _first_pixels(batch, channels, height, height, 1, bits.device)
        flipped_B11 = bernoulli(bits[0], self.p).view(-1, 1, 1)
        line_BCH = torch.where(flipped_B11, upright_BCH.flip(-1), upright_BCH)
        return lines.index_select(0, line_BCH.flatten()).view(images.shape)


@dataclass(frozen=True, slots=True)
class RandomRotation(Native):
    """A turn around the middle, counter-clockwise. Draw 0 is the angle, uniform in `degrees`."""

    num_draws: ClassVar[int] = 1
    degrees: Angle
    interpolation: Interpolation = "nearest"
    fill: int = 0

    def __post_init__(self) -> None:
        _check_angle("random_rotation", "degrees", self.degrees, 360)
        _check_map("random_rotation", self.interpolation, self.fill)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The turned images, as large as before."""
        low, high = limits_in(lookup_tables.UNITS_PER_DEGREE, _both_ways(self.degrees))
        matrices = affine.rotation_matrices(low, high, bits.device)
        matrix_B6 = matrices.index_select(0, integers(bits[0], high - low + 1))
        return affine.affine(images, matrix_B6, self.interpolation, self.fill)


@dataclass(frozen=True, slots=True)
class RandomAffine(Native):
    """A shear, a scaling, a turn clockwise around the middle and a shift.

    Draw 0 is the angle, draws 1 and 2 are the shift right and down, draw 3 the scale, draws 4 and 5
    the angles of the shear along rows and columns.
    """

    num_draws: ClassVar[int] = 6
    degrees: Angle
    translate: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    shear: Angle | tuple[float, float, float, float] | None = None
    interpolation: Interpolation = "nearest"
    fill: int = 0

    def __post_init__(self) -> None:
        name = "random_affine"
        _check_angle(name, "degrees", self.degrees, 360)
        for share in self.translate or ():
            check_range(name, "translate", share, 0, 1, "(share of width and of height)")
        if self.scale is not None:
            check_interval(name, "scale", self.scale, 0.01, 100, "(times as large)")
        for shear in self._shears():
            _check_angle(name, "shear", shear, 89)
        _check_map(name, self.interpolation, self.fill)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The moved images, as large as before."""
        turn, (shear_x, shear_y) = lookup_tables.UNITS_PER_DEGREE, self._shears()
        shifts = [
            round(share * (_SHIFT_UNITS * side))
            for share, side in zip(self.translate or (0, 0), images.shape[:-3:-1], strict=True)
        ]
        limits = (
            limits_in(turn, _both_ways(self.degrees)),
            *((-most, most) for most in shifts),
            limits_in(lookup_tables.ONE, self.scale or (1, 1)),
            limits_in(turn, _both_ways(shear_x)),
            limits_in(turn, _both_ways(shear_y)),
        )
        drawn = integers_between(bits, limits)
        x, y = torch.div(drawn[1:3] + _SHIFT_UNITS // 2, _SHIFT_UNITS, rounding_mode="floor")
        matrix_B6 = affine.affine_matrix(drawn[0], x, y, *drawn[3:])
        return affine.affine(images, matrix_B6, self.interpolation, self.fill)

    def _shears(self) -> tuple[Angle, Angle]:
        """Along the rows, along the columns."""
        if isinstance(self.shear, tuple) and len(self.shear) == 4:
            return self.shear[:2], self.shear[2:]
        return (0.0 if self.shear is None else self.shear), 0.0


# --------------------------------------------------------------------------- arguments and draws


def _check_angle(operation: str, name: str, angle: Angle, largest: int) -> None:
    if isinstance(angle, tuple):
        check_interval(operation, name, angle, -largest, largest, "degrees")
    else:
        check_range(operation, name, angle, 0, largest, "degrees")


def _check_map(operation: str, interpolation: str, fill: int) -> None:
    check_name(operation, "interpolation", interpolation, ("nearest", "bilinear"))
    check_range(operation, "fill", fill, 0, 255, "grey levels")


def _both_ways(limits: Angle) -> tuple[float, float]:
    return limits if isinstance(limits, tuple) else (-limits, limits)
