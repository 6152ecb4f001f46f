"""Policies: operations drawn for each sample from a list, with torchvision's lists and magnitudes.

A kind runs on those samples alone that drew it. All kinds that move pixels are affine maps, so they
run together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.rng import integers_between
from kdscale.data.views.functional import grey_levels
from kdscale.data.views.functional.affine import affine, gather_pixels
from kdscale.data.views.functional.all_kinds import Blend, blend, exchange_levels
from kdscale.data.views.functional.masking import chunked, dispatch_by_kind, on_host
from kdscale.data.views.operations.operation import Native, check_name, check_range
from kdscale.data.views.operations.policy_tables import (
    KINDS,
    MOVES,
    Policy,
    matrix_table,
    neutral_tables,
    number_table,
    place_table,
)

Interpolation = Literal["nearest", "bilinear"]

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
_GROUPS = (_IDENTITY, *[_MOVE] * len(MOVES), *range(_CHANGE, _CHANGE + len(_GREY_LEVELS)))
_MOST_BINS = 1024
_PART = 1 << 20  # pixels that move at a time
_MOST_OPS = 16


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
        if not self.num_ops:
            return images
        drawn = integers_between(bits, _limits(self.choices)).view(self.num_ops, 2, -1)
        kind_SB, sign_SB = drawn.unbind(1)
        row_SB = sign_SB.add(kind_SB, alpha=2)
        policy = Policy(False, self.magnitude, self.num_magnitude_bins, *images.shape[-2:])
        return _apply(images, kind_SB, row_SB, policy, self.interpolation, self.fill)


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
        kind_B, bin_B, sign_B = integers_between(bits, _limits(self.choices))
        row_B = sign_B.add(kind_B, alpha=2 * bins).add_(bin_B, alpha=2)
        policy = Policy(True, None, bins, *images.shape[-2:])
        return _apply(images, kind_B[None], row_B[None], policy, self.interpolation, self.fill)


def _limits(choices: Sequence[int]) -> list[tuple[int, int]]:
    return [(0, count - 1) for count in choices]


def _check_policy(name: str, bins: int, interpolation: str, fill: int) -> None:
    check_range(name, "num_magnitude_bins", bins, 2, _MOST_BINS, "magnitudes")
    check_name(name, "interpolation", interpolation, ("nearest", "bilinear"))
    check_range(name, "fill", fill, 0, 255, "grey levels")


def _apply(
    images: Tensor,
    kind_SB: Tensor,
    row_SB: Tensor,
    policy: Policy,
    interpolation: Interpolation,
    fill: int,
) -> Tensor:
    """S rounds of operations whose parameters are rows of tables."""
    move = partial(_move, policy=policy, interpolation=interpolation, fill=fill)
    if not on_host(images):
        for row_B in row_SB:
            images = _change_all(images, row_B, policy, move)
        return images
    numbers = number_table(policy, images.device)

    def change(step: int, group: int, part: Tensor, rows_B: Tensor) -> Tensor:
        if group == _IDENTITY:
            return part
        row_B = row_SB[step].index_select(0, rows_B)
        if group == _MOVE:
            return move(part, row_B)
        return _GREY_LEVELS[group - _CHANGE](part, numbers.index_select(0, row_B))

    groups = device_tables.on(images.device, _GROUPS)
    return dispatch_by_kind(images, groups[kind_SB], _GROUPS[-1] + 1, change)


# --------------------------------------------------------------------------- moves


def _move(
    images: Tensor, row_B: Tensor, policy: Policy, interpolation: Interpolation, fill: int
) -> Tensor:
    """The images under the matrices of their rows, which move nothing for the other kinds."""
    found = place_table(policy, images.device) if interpolation == "nearest" else None
    if found is None:
        matrices = matrix_table(policy, images.device)
        return affine(images, matrices.index_select(0, row_B), interpolation, fill)
    places, matrix_of_row = found

    def gather(part: Tensor, row_B: Tensor) -> Tensor:
        places_BHW = places.index_select(0, matrix_of_row.index_select(0, row_B))
        return gather_pixels(part, places_BHW, fill)

    return chunked(gather, images, row_B, pixels=_PART)


# --------------------------------------------------------------------------- all kinds


def _change_all(
    images: Tensor, row_B: Tensor, policy: Policy, move: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """One round without a question to the device: every kind, neutral where it was not drawn."""
    tables = neutral_tables(policy, images.device)
    levels_BL, shares_BK, whole_BK = (table.index_select(0, row_B) for table in tables)
    images = exchange_levels(move(images, row_B), levels_BL, *whole_BK.unbind(1))
    shares = shares_BK.view(-1, 4, 1, 1, 1).unbind(1)
    return blend(images.to(torch.int32), Blend(*shares)).to(torch.uint8)
