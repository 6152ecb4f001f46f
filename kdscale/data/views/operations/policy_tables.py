"""Parameters of a policy's kinds as tables: few rows, looked up by what a sample drew.

A row is a kind, a strength and a sign, in this order of their numbers.
"""

import math
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from kdscale.data.device_tables import device_table
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import grey_levels
from kdscale.data.views.functional.affine import source_coordinates

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
MOVES = range(1, 6)
"""Kinds that move pixels."""
_MOST_PLACES = 1 << 21  # 16 MB


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


class Policy(NamedTuple):
    """What the parameters of all kinds depend on: the key of their tables."""

    wide: bool
    """Whether the magnitudes are those of TrivialAugment's wide space."""
    magnitude: int | None
    """Of all operations; None: each magnitude has its rows."""
    bins: int
    """Number of magnitudes."""
    height: int
    width: int

    @property
    def rows(self) -> list[tuple[str, Fraction, int]]:
        """Kind, strength and sign of each row."""
        magnitudes = range(self.bins) if self.magnitude is None else (self.magnitude,)
        strengths = [Fraction(magnitude, self.bins - 1) for magnitude in magnitudes]
        return list(product(KINDS, strengths, (1, -1)))


class NeutralTables(NamedTuple):
    """Parameters of all kinds but moves, for each row: neutral but for the row's own kind."""

    levels: Tensor
    """uint8 [rows, 256], what each grey level becomes: posterize and solarize."""
    shares: Tensor
    """int32 [rows, 4], the fields of `Blend`: brightness, color, contrast and sharpness."""
    whole: Tensor
    """bool [rows, 2], autocontrast and equalize."""


@device_table
def neutral_tables(policy: Policy, device: torch.device) -> NeutralTables:
    """What `all_kinds` takes for each row."""
    number = torch.tensor([_number(*row, policy) for row in policy.rows])
    of = {name: torch.tensor([kind == name for kind, *_ in policy.rows]) for name in KINDS}
    levels = torch.arange(256, dtype=torch.uint8).repeat(len(number), 1, 1, 1)
    for name, function in (
        ("posterize", grey_levels.posterize),
        ("solarize", grey_levels.solarize),
    ):
        changed = function(levels, number.clamp(0, 8 if name == "posterize" else 256))
        levels = torch.where(of[name].view(-1, 1, 1, 1), changed, levels)
    blended = of["brightness"] | of["color"] | of["contrast"] | of["sharpness"]
    factor = torch.where(blended, number, grey_levels.ONE)
    rest = [(grey_levels.ONE - factor) * of[name] for name in ("color", "contrast", "sharpness")]
    shares = torch.stack((factor, *rest), 1).to(torch.int32)
    whole = torch.stack((of["autocontrast"], of["equalize"]), 1)
    return NeutralTables(*(one.to(device) for one in (levels.flatten(1), shares, whole)))


@device_table
def number_table(policy: Policy, device: torch.device) -> Tensor:
    """The parameter of each row that changes grey levels, int64 [rows]."""
    return torch.tensor([_number(*row, policy) for row in policy.rows], device=device)


@device_table
def matrix_table(policy: Policy, device: torch.device) -> Tensor:
    """The inverse matrix of each row in 65536ths, int64 [rows, 6]; one moves nothing."""
    return torch.tensor([_matrix(*row, policy) for row in policy.rows], device=device)


@device_table
def place_table(policy: Policy, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Where each matrix finds its pixels, int64 [matrices, H, W], and the matrix of each row.

    None where that is too much. There are few matrices: to look up places takes a tenth of the time
    to compute them.
    """
    rows = [_matrix(*row, policy) for row in policy.rows]
    number = {matrix: place for place, matrix in enumerate(dict.fromkeys(rows))}
    if len(number) * policy.height * policy.width > _MOST_PLACES:
        return None
    matrices = torch.tensor(list(number), device=device)
    matrix_of_row = torch.tensor([number[row] for row in rows], device=device)
    return source_coordinates(matrices, policy.height, policy.width), matrix_of_row


def _matrix(kind: str, strength: Fraction, sign: int, policy: Policy) -> tuple[int, ...]:
    """From a pixel's place to that of its source, both from the middle of the image."""
    one, space = lookup_tables.ONE, _WIDE if policy.wide else _STANDARD
    height, width, strength = policy.height, policy.width, sign * strength
    shear = round(space.shear * strength * one)
    if kind == "shear_x":  # the first row stays where it is
        return (one, shear, shear * height // 2, 0, one, 0)
    if kind == "shear_y":
        return (one, 0, 0, shear, one, shear * width // 2)
    if kind == "translate_x":
        return (one, 0, -_moved(space, width, strength) * one, 0, one, 0)
    if kind == "translate_y":
        return (one, 0, 0, 0, one, -_moved(space, height, strength) * one)
    if kind == "rotate":
        angle = round(space.degrees * strength * lookup_tables.UNITS_PER_DEGREE)
        cosine, sine = _sine(angle + 90 * lookup_tables.UNITS_PER_DEGREE), _sine(angle)
        return (cosine, -sine, 0, sine, cosine, 0)
    return (one, 0, 0, 0, one, 0)


def _moved(space: Space, size: int, strength: Fraction) -> int:
    """Whole pixels, what follows the point cut off."""
    return int((space.share_moved * size + space.pixels_moved) * strength)


def _sine(angle: int) -> int:
    """Of an angle in units of the table of sines, in 65536ths."""
    quarter = 90 * lookup_tables.UNITS_PER_DEGREE
    turns, rest = divmod(angle, quarter)
    sine = lookup_tables.sines()[rest if turns % 2 == 0 else quarter - rest]
    return sine if turns % 4 < 2 else -sine


def _number(kind: str, strength: Fraction, sign: int, policy: Policy) -> int:
    """Bits, a threshold or a factor; what other kinds have is not used."""
    space = _WIDE if policy.wide else _STANDARD
    if kind == "posterize":
        return round(8 - space.bits_lost * strength)
    if kind == "solarize":
        return math.ceil(255 * (1 - strength))
    return round((1 + sign * space.factor * strength) * grey_levels.ONE)
