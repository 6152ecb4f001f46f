"""Every kind of change on every sample at once, of which all but one change nothing.

On a device nobody may ask which samples drew a kind. So each sample goes through all of them with
parameters of its own, and those of the kinds that it did not draw are neutral: bit for bit, a
factor of `ONE`, a share of 0, a table of grey levels that maps each one to itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdscale.data.views.functional.grey_levels import (
    FACTOR_BITS,
    autocontrast_levels,
    equalized_levels,
    grey_of,
    mean_of_neighbours,
    mean_part,
)


class Blend(NamedTuple):
    """Parameters of `blend`, each int32 [B, 1, 1, 1] in 4096ths or None where all are neutral.

    Brightness has a factor alone; saturation, contrast and sharpness share what the factor leaves.
    """

    factor: Tensor
    """Of the pixel; neutral: ONE."""
    grey: Tensor
    """Of the grey image (saturation); neutral: 0."""
    mean: Tensor
    """Of the mean of the grey image (contrast); neutral: 0."""
    neighbours: Tensor | None = None
    """Of the mean of 3x3 pixels (sharpness); neutral: 0."""


def blend(pixels: Tensor, share: Blend) -> Tensor:
    """Weighted sums of each pixel and what is around it, cut to 0..255, int32 as `pixels` is."""
    grey = grey_of(pixels)
    sums = (pixels * share.factor).addcmul_(grey, share.grey)
    sums += mean_part(grey, share.mean.flatten()).view(-1, 1, 1, 1)
    if share.neighbours is not None:
        sums.addcmul_(mean_of_neighbours(pixels), share.neighbours)
    return sums.bitwise_right_shift_(FACTOR_BITS).clamp_(0, 255)


def exchange_levels(
    images: Tensor, levels_BL: Tensor, stretched_B: Tensor, equalized_B: Tensor
) -> Tensor:
    """Each grey level replaced by that of a table.

    Args:
        images: uint8 [B, C, H, W].
        levels_BL: uint8 [B, 256], what each grey level becomes.
        stretched_B: bool; autocontrast instead of the table.
        equalized_B: bool; equalize instead of the table.
    """
    batch, channels = images.shape[:2]
    pixels_BCP = images.flatten(2).to(torch.int64)
    by_channel = (batch, channels, 256)
    levels_BCL = torch.where(
        stretched_B.view(-1, 1, 1),
        autocontrast_levels(images).view(by_channel),
        levels_BL.unsqueeze(1),
    )
    levels_BCL = torch.where(
        equalized_B.view(-1, 1, 1),
        equalized_levels(images, pixels_BCP.flatten(0, 1)).view(by_channel),
        levels_BCL,
    )
    return levels_BCL.gather(2, pixels_BCP).view(images.shape)
