"""Mixtures of two images at given weights or boxes."""

import torch
from torch import Tensor


def blend(images: Tensor, partners: Tensor, weight_B: Tensor) -> Tensor:
    """weight/256 of an image and the rest of its partner, rounded half up.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), equation 1.

    Args:
        images: uint8 [B, C, H, W].
        partners: uint8 [B, C, H, W].
        weight_B: int64 [B], 0..256.

    Returns:
        uint8 [B, C, H, W].
    """
    own = weight_B.to(torch.int32).view(-1, 1, 1, 1)
    mixed = (images * own).add_(partners * (256 - own)).add_(128)
    return mixed.bitwise_right_shift_(8).to(torch.uint8)


def box_around(
    row_B: Tensor, column_B: Tensor, half_height_B: Tensor, half_width_B: Tensor, size: torch.Size
) -> Tensor:
    """The box of given half sides around a pixel, clipped at the border.

    Args:
        row_B: int64 [B], 0..H-1.
        column_B: int64 [B], 0..W-1.
        half_height_B: int64 [B], pixels.
        half_width_B: int64 [B], pixels.
        size: of the images, [..., H, W].

    Returns:
        int64 [4, B]: top, bottom (excluded), left, right (excluded).
    """
    height, width = size[-2:]
    return torch.stack(
        (
            (row_B - half_height_B).clamp(0, height),
            (row_B + half_height_B).clamp(0, height),
            (column_B - half_width_B).clamp(0, width),
            (column_B + half_width_B).clamp(0, width),
        )
    )


def paste(images: Tensor, partners: Tensor, box_4B: Tensor) -> Tensor:
    """The partner's pixels inside a box, the image's outside, alike in every channel.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features" (ICCV 2019), equation 1.

    Args:
        images: uint8 [B, C, H, W].
        partners: uint8 [B, C, H, W].
        box_4B: int64 [4, B], as `box_around` returns it.

    Returns:
        uint8 [B, C, H, W].
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = box_4B.view(4, -1, 1, 1, 1)
    row = torch.arange(height, device=images.device).view(-1, 1)
    column = torch.arange(width, device=images.device)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return torch.where(inside, partners, images)
