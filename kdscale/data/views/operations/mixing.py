"""Operations that mix a sample with its partner; hard labels are mixed to match.

Both are part of the view: partner, weight and box are functions of (seed, view, index), the teacher
is shown the mixed image, and a batch, its order or the number of processes changes nothing.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.rng import bernoulli, integers
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional.blending import blend, box_around, paste
from kdscale.data.views.operations.operation import check_probability, check_range

_ALPHA = (0.01, 100.0)
_ROOTS = tuple(isqrt(k << 24) for k in range(lookup_tables.LARGEST_WEIGHT + 1))
"""Square roots of 0..256 256ths, in 65536ths, rounded down."""


class Mixing:
    """An operation of two images: a frozen dataclass whose fields are its arguments."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    num_draws: ClassVar[int]

    def mix(self, images: Tensor, partners: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Mix both uint8 [B, C, H, W], with int64 bits [num_draws, B].

        Returns:
            uint8 [B, C, H, W], and the share of the images' own labels, float32 [B].
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Mixup(Mixing):
    """A weighted mean with the partner; the weight is drawn from Beta(alpha, alpha).

    Draw 0 decides whether, draw 1 is the weight's place in the table.
    """

    num_draws: ClassVar[int] = 2
    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("mixup", "alpha", self.alpha, *_ALPHA, "")
        check_probability("mixup", "p", self.p)

    def mix(self, images: Tensor, partners: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixing`."""
        weight_B = _weight(bits, self.alpha, self.p)
        return blend(images, partners, weight_B), weight_B.float() / lookup_tables.LARGEST_WEIGHT


@dataclass(frozen=True, slots=True)
class Cutmix(Mixing):
    """A box of the partner; its share of the image is 1 - a draw from Beta(alpha, alpha).

    Draw 0 decides whether, draw 1 is the weight's place in the table, draws 2 and 3 are row and
    column of the box's centre. What the border cuts off the box is given back to the own label.
    """

    num_draws: ClassVar[int] = 4
    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("cutmix", "alpha", self.alpha, *_ALPHA, "")
        check_probability("cutmix", "p", self.p)

    def mix(self, images: Tensor, partners: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixing`."""
        box = _box(_weight(bits, self.alpha, self.p), bits[2:4], images.shape)
        return paste(images, partners, box), _share_outside(box, images.shape)


@dataclass(frozen=True, slots=True)
class MixupOrCutmix(Mixing):
    """Mixup or CutMix, chosen for each sample; the defaults are timm's.

    Draws 0 to 3 are those of `Cutmix`; draw 4 chooses CutMix with probability `switch_p`.
    """

    num_draws: ClassVar[int] = 5
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_p: float = 0.5
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("mixup_or_cutmix", "mixup_alpha", self.mixup_alpha, *_ALPHA, "")
        check_range("mixup_or_cutmix", "cutmix_alpha", self.cutmix_alpha, *_ALPHA, "")
        check_probability("mixup_or_cutmix", "switch_p", self.switch_p)
        check_probability("mixup_or_cutmix", "p", self.p)

    def mix(self, images: Tensor, partners: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixing`."""
        cut_B = bernoulli(bits[4], self.switch_p)
        blended, kept = Mixup(self.mixup_alpha, self.p).mix(images, partners, bits)
        pasted, outside = Cutmix(self.cutmix_alpha, self.p).mix(images, partners, bits)
        mixed = torch.where(cut_B.view(-1, 1, 1, 1), pasted, blended)
        return mixed, torch.where(cut_B, outside, kept)


def _weight(bits: Tensor, alpha: float, p: float) -> Tensor:
    """The own image's weight in 256ths, int64 [B]; all of it where nothing is mixed."""
    table = device_tables.on(bits.device, lookup_tables.beta(alpha))
    drawn = table[integers(bits[1], lookup_tables.QUANTILES)]
    return torch.where(bernoulli(bits[0], p), drawn, lookup_tables.LARGEST_WEIGHT)


def _box(weight_B: Tensor, bits: Tensor, size: torch.Size) -> Tensor:
    """Where the partner shows: both sides are sqrt(1 - weight) of the image's."""
    height, width = size[-2:]
    root_B = device_tables.on(bits.device, _ROOTS)[lookup_tables.LARGEST_WEIGHT - weight_B]
    row_B, column_B = integers(bits[0], height), integers(bits[1], width)
    return box_around(row_B, column_B, root_B * height >> 17, root_B * width >> 17, size)


def _share_outside(box_4B: Tensor, size: torch.Size) -> Tensor:
    top, bottom, left, right = box_4B
    pixels = size[-2] * size[-1]
    outside: Tensor = pixels - (bottom - top) * (right - left)
    return outside.float() / pixels
