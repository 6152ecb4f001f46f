"""Policies: operations drawn for each sample from a list, with torchvision's lists and magnitudes.

A kind runs on those samples alone that drew it. All kinds that move pixels are affine maps, so they
run together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kdscale.data.rng import integers
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import grey_levels
from kdscale.data.views.functional.affine import affine, gather_pixels, source_coordinates
from kdscale.data.views.functional.masking import chunked, dispatch_by_kind
from kdscale.data.views.operations.operation import Native, check_name, check_range

Interpolation = Literal["nearest", "bilinear"]

KINDS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""What is drawn from, numbered in this order."""
_GREY_LEVELS = (
    grey_levels.brightness,
    grey_levels.saturation,
    grey_levels.contrast,
    grey_levels.sharpness,
    grey_levels.posterize,
    grey_levels.solarize,
    lambda images, _: grey_levels.autocontrast(images),
    lambda images, _: grey_levels.equalize(images),
)
_IDENTITY, _MOVE, _CHANGE = 0, 1, 2  # what runs together; the last are as many as _GREY_LEVELS
_MOVES = range(1, 6)  # kinds
_GROUPS = (_IDENTITY, *[_MOVE] * len(_MOVES), *range(_CHANGE, _CHANGE + len(_GREY_LEVELS)))
_MOST_BINS = 1024
_MOST_PLACES = 1 << 21  # 16 MB
_PART = 1 << 20  # pixels that move at a time
_MOST_OPS = 16


class Space(NamedTuple):
    """Largest magnitudes."""

    shear: Fraction
    """Pixels sideways for each pixel along."""
    share_moved: Fraction
    """Of height and width."""
    pixels_moved: int
    degrees: int
    factor: Fraction
    """Away from 1."""
    bits_lost: int


_STANDARD = Space(Fraction(3, 10), Fraction(150, 331), 0, 30, Fraction(9, 10), 4)
_WIDE = Space(Fraction(99, 100), Fraction(0), 32, 135, Fraction(99, 100), 6)


@dataclass(frozen=True, slots=True)
class RandAugment(Native):
    """`num_ops` operations one after the other, all at one magnitude.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
    2020. Draw 2s is the kind of operation s, draw 2s + 1 its sign.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: int = 0

    def __post_init__(self) -> None:
        name, bins = "rand_augment", self.num_magnitude_bins
        check_range(name, "num_ops", self.num_ops, 0, _MOST_OPS, "operations")
        _check_policy(name, bins, self.interpolation, self.fill)
        check_range(name, "magnitude", self.magnitude, 0, bins - 1, "(below num_magnitude_bins)")

    @property
    def num_draws(self) -> int:
        """A kind and a sign for each operation."""
        return 2 * self.num_ops

    @property
    def choices(self) -> tuple[int, ...]:
        """Kinds and signs."""
        return (len(KINDS), 2) * self.num_ops

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images after `num_ops` operations."""
        kind_SB = integers(bits[::2], len(KINDS))
        strength = Fraction(self.magnitude, self.num_magnitude_bins - 1)
        rows = _rows(_STANDARD, (strength,), *images.shape[-2:])
        row_SB = 2 * kind_SB + integers(bits[1::2], 2)
        return _apply(images, kind_SB, row_SB, rows, self.interpolation, self.fill)


@dataclass(frozen=True, slots=True)
class TrivialAugmentWide(Native):
    """One operation at a magnitude that is drawn as well.

    Müller & Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV
    2021. Draw 0 is the kind, draw 1 the magnitude, draw 2 the sign.
    """

    num_draws: ClassVar[int] = 3
    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: int = 0

    def __post_init__(self) -> None:
        _check_policy(
            "trivial_augment_wide", self.num_magnitude_bins, self.interpolation, self.fill
        )

    @property
    def choices(self) -> tuple[int, int, int]:
        """Kinds, magnitudes and signs."""
        return (len(KINDS), self.num_magnitude_bins, 2)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images after one operation each."""
        bins = self.num_magnitude_bins
        kind_B, bin_B = integers(bits[0], len(KINDS)), integers(bits[1], bins)
        strengths = tuple(Fraction(k, bins - 1) for k in range(bins))
        rows = _rows(_WIDE, strengths, *images.shape[-2:])
        row_B = 2 * (kind_B * bins + bin_B) + integers(bits[2], 2)
        return _apply(images, kind_B[None], row_B[None], rows, self.interpolation, self.fill)


def _check_policy(name: str, bins: int, interpolation: str, fill: int) -> None:
    check_range(name, "num_magnitude_bins", bins, 2, _MOST_BINS, "magnitudes")
    check_name(name, "interpolation", interpolation, ("nearest", "bilinear"))
    check_range(name, "fill", fill, 0, 255, "grey levels")


def _apply(
    images: Tensor,
    kind_SB: Tensor,
    row_SB: Tensor,
    rows: tuple[int, ...],
    interpolation: Interpolation,
    fill: int,
) -> Tensor:
    """S rounds of operations whose parameters are rows of six numbers in a table."""
    table = lookup_tables.on(images.device, rows).view(-1, 6)
    first, last = (len(table) // len(KINDS) * kind for kind in (_MOVES.start, _MOVES.stop))
    found = None
    if interpolation == "nearest" and not torch.compiler.is_compiling():
        found = _place_table(rows[6 * first : 6 * last], *images.shape[-2:], images.device)

    def move(part: Tensor, row_B: Tensor) -> Tensor:
        assert found is not None
        return gather_pixels(part, found.index_select(0, row_B), fill)

    def change(step: int, group: int, part: Tensor, rows_B: Tensor) -> Tensor:
        if group == _IDENTITY:
            return part
        row_B = row_SB[step].index_select(0, rows_B)
        if group == _MOVE and found is not None:
            return chunked(move, part, row_B - first, pixels=_PART)
        parameters_B6 = table.index_select(0, row_B)
        if group == _MOVE:
            return affine(part, parameters_B6, interpolation, fill)
        return _GREY_LEVELS[group - _CHANGE](part, parameters_B6[:, 0])

    groups = lookup_tables.on(images.device, _GROUPS)
    return dispatch_by_kind(images, groups[kind_SB], _GROUPS[-1] + 1, change)


@lru_cache(maxsize=8)
def _place_table(
    matrices: tuple[int, ...], height: int, width: int, device: torch.device
) -> Tensor | None:
    """Where each matrix finds its pixels, int64 [matrices, H, W]; None where that is too much.

    There are few matrices: to look up places takes a tenth of the time to compute them.
    """
    if len(matrices) // 6 * height * width > _MOST_PLACES:
        return None
    with torch.inference_mode(False):
        return source_coordinates(torch.tensor(matrices, device=device).view(-1, 6), height, width)


@lru_cache(maxsize=64)
def _rows(space: Space, strengths: Sequence[Fraction], height: int, width: int) -> tuple[int, ...]:
    """The table of parameters, [kinds · strengths · 2 (sign) · 6], row by row.

    A kind that moves pixels has its inverse matrix in 65536ths, the others one number and zeros.
    """
    rows: list[int] = []
    for kind in KINDS:
        for strength in strengths:
            for sign in (1, -1):
                matrix = _matrix(kind, space, sign * strength, height, width)
                rows += matrix or (_grey_parameter(kind, space, strength, sign), 0, 0, 0, 0, 0)
    return tuple(rows)


def _matrix(
    kind: str, space: Space, strength: Fraction, height: int, width: int
) -> tuple[int, ...] | None:
    """From a pixel's place to that of its source, both from the middle of the image."""
    one = lookup_tables.ONE
    if kind in ("shear_x", "shear_y"):
        shear = round(space.shear * strength * one)
        if kind == "shear_x":  # the first row stays where it is
            return (one, shear, shear * height // 2, 0, one, 0)
        return (one, 0, 0, shear, one, shear * width // 2)
    if kind == "translate_x":
        return (one, 0, -_moved(space, width, strength) * one, 0, one, 0)
    if kind == "translate_y":
        return (one, 0, 0, 0, one, -_moved(space, height, strength) * one)
    if kind == "rotate":
        angle = round(space.degrees * strength * lookup_tables.UNITS_PER_DEGREE)
        cosine, sine = _sine(angle + 90 * lookup_tables.UNITS_PER_DEGREE), _sine(angle)
        return (cosine, -sine, 0, sine, cosine, 0)
    return None


def _moved(space: Space, size: int, strength: Fraction) -> int:
    """Whole pixels, what follows the point cut off."""
    return int((space.share_moved * size + space.pixels_moved) * strength)


def _sine(angle: int) -> int:
    """Of an angle in units of the table of sines, in 65536ths."""
    quarter = 90 * lookup_tables.UNITS_PER_DEGREE
    turns, rest = divmod(angle, quarter)
    sine = lookup_tables.sines()[rest if turns % 2 == 0 else quarter - rest]
    return sine if turns % 4 < 2 else -sine


def _grey_parameter(kind: str, space: Space, strength: Fraction, sign: int) -> int:
    if kind == "posterize":
        return round(8 - space.bits_lost * strength)
    if kind == "solarize":
        return math.ceil(255 * (1 - strength))
    return round((1 + sign * space.factor * strength) * grey_levels.ONE)
