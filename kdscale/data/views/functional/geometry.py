"""Affine maps of images by given parameters, one set for each sample.

Where a pixel comes from is decided in integers. Interpolation is float32 whose every product and
sum is exactly representable (8 bits of a pixel, 8 of each of two weights), so neither order nor
fused operations can change a result. Shape suffixes: `B` samples, `C` channels, `H` and `W` rows
and columns.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.views import tables
from kdscale.data.views.functional.selection import in_parts

Interpolation = Literal["nearest", "bilinear"]

_PLACE_ONE = 1 << 12  # places are 4096ths of a pixel: int32 reaches 524,288 pixels
_FARTHEST = 1 << 30  # in these; two terms of a place still add up in int32
_BORDER = 2  # pixels of `fill` around an image, for the neighbours of what lies just outside

# --------------------------------------------------------------------------- affine maps


def affine(images: Tensor, matrix_B6: Tensor, interpolation: Interpolation, fill: int) -> Tensor:
    """The images under an affine map, as large as before.

    Args:
        images: uint8 [B, C, H, W], C = 1 or 3.
        matrix_B6: int64, 65536ths. Row (a, b, c, d, e, f) maps the place (x, y) of a pixel of the
            result to its source (a x + b y + c, d x + e y + f), in pixels right of and below the
            middle of the image.
        interpolation: what a source between pixels shows: the nearest one or the weighted four.
        fill: grey level of what lies outside.
    """
    return in_parts(
        partial(_affine, interpolation=interpolation, fill=fill), images, matrix_B6.contiguous()
    )


def _affine(images: Tensor, matrix_B6: Tensor, interpolation: Interpolation, fill: int) -> Tensor:
    x_BHW, y_BHW = _sources(matrix_B6, *images.shape[-2:])
    padded = F.pad(images, [_BORDER] * 4, value=fill)
    moved = _nearest if interpolation == "nearest" else _bilinear
    return moved(padded, x_BHW, y_BHW)


def _nearest(padded: Tensor, x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    half = _PLACE_ONE // 2
    place_BHW = _places(x_BHW + half, y_BHW + half, padded.shape)
    return torch.stack([_take(plane, place_BHW) for plane in _planes(padded)], 1)


def _bilinear(padded: Tensor, x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    x_BHW, y_BHW = x_BHW + 8, y_BHW + 8  # rounded to 256ths when the lowest bits are dropped
    place_BHW = _places(x_BHW, y_BHW, padded.shape)
    right_BHW, below_BHW = _fraction(x_BHW), _fraction(y_BHW)
    row = padded.shape[3]
    channels = []
    for plane in _planes(padded):
        corners = (_take(plane[k:], place_BHW).to(torch.float32) for k in (0, 1, row, row + 1))
        upper = torch.lerp(next(corners), next(corners), right_BHW)
        lower = torch.lerp(next(corners), next(corners), right_BHW)
        channels.append(rounded(torch.lerp(upper, lower, below_BHW)))
    return torch.stack(channels, 1)


def _sources(matrix_B6: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows, int32 [B, H, W] in 4096ths of a pixel, 0 the middle of the first one.

    Each term is rounded to 4096ths on its own: what is done for every pixel then fits int32.
    """
    a, b, c, d, e, f = matrix_B6.unsqueeze(-1).unbind(1)
    device = matrix_B6.device
    # Twice the distance from the middle: whole numbers also where that lies between pixels.
    x_W = 2 * torch.arange(width, device=device) - (width - 1)
    y_H = 2 * torch.arange(height, device=device) - (height - 1)
    x_BHW = _sum(a * x_W, b * y_H + 2 * c + ((width - 1) << 16))
    return x_BHW, _sum(d * x_W, e * y_H + 2 * f + ((height - 1) << 16))


def _sum(by_column_BW: Tensor, by_row_BH: Tensor) -> Tensor:
    """The sum for every pixel, from 131072ths to 4096ths."""
    columns, rows = (
        ((term + 16) >> 5).clamp_(-_FARTHEST, _FARTHEST - 1).to(torch.int32)
        for term in (by_column_BW, by_row_BH)
    )
    return columns.unsqueeze(1) + rows.unsqueeze(2)


def _places(x_BHW: Tensor, y_BHW: Tensor, padded_shape: torch.Size) -> Tensor:
    """Where the first plane of each padded image holds a place, int64 [B, H, W].

    Places are rounded down to pixels; those farther out than the border are moved onto it.
    """
    batch, channels, padded_height, padded_width = padded_shape
    column = (x_BHW >> 12).clamp_(-_BORDER, padded_width - 2 * _BORDER)
    row = (y_BHW >> 12).clamp_(-_BORDER, padded_height - 2 * _BORDER)
    start_B = torch.arange(batch, device=x_BHW.device) * (channels * padded_height * padded_width)
    first_pixel = _BORDER * padded_width + _BORDER
    inside = torch.add(column, row, alpha=padded_width).to(torch.int64)
    return inside.add_((start_B + first_pixel).view(-1, 1, 1))


def _planes(padded: Tensor) -> list[Tensor]:
    """The pixels from each channel's first one on, so that one set of places serves them all."""
    plane = padded.shape[2] * padded.shape[3]
    return [padded.flatten()[channel * plane :] for channel in range(padded.shape[1])]


def _take(plane: Tensor, place_BHW: Tensor) -> Tensor:
    """Copying pixels one channel after the other is three times faster than a gather of all."""
    return plane.index_select(0, place_BHW.flatten()).view(place_BHW.shape)


def _fraction(axis: Tensor) -> Tensor:
    """How far a place lies behind a pixel, in whole 256ths of a pixel."""
    return ((axis >> 4) & 255).to(torch.float32).mul_(1 / 256)


def rounded(grey_levels: Tensor) -> Tensor:
    """float32 to uint8, halves up, in place; by way of int16, which is twice as fast."""
    return grey_levels.add_(0.5).to(torch.int16).to(torch.uint8)


# --------------------------------------------------------------------------- matrices for affine


def rotation_matrix(angle_B: Tensor) -> Tensor:
    """Inverse matrices, int64 [B, 6], of turns counter-clockwise, in 64ths of a degree."""
    cosine, sine, zero = _cosine(angle_B), _sine(angle_B), torch.zeros_like(angle_B)
    return torch.stack((cosine, -sine, zero, sine, cosine, zero), 1)


def affine_matrix(
    angle_B: Tensor, x_B: Tensor, y_B: Tensor, scale_B: Tensor, shear_x_B: Tensor, shear_y_B: Tensor
) -> Tensor:
    """Inverse matrices of a shear, then a scaling, a turn and a shift, as torchvision's `affine`.

    Args:
        angle_B: clockwise, 64ths of a degree.
        x_B: shift to the right, whole pixels.
        y_B: shift down, whole pixels.
        scale_B: 65536ths, positive.
        shear_x_B: angle, 64ths of a degree, less than 90 degrees either way.
        shear_y_B: the same for rows.

    Returns:
        int64 [B, 6].
    """
    cosine, sine = _cosine(angle_B), _sine(angle_B)
    tangent_x, tangent_y = _tangent(shear_x_B), _tangent(shear_y_B)
    a = cosine + _product(sine, tangent_y)
    b = -_product(a, tangent_x) - sine
    c = sine - _product(cosine, tangent_y)
    d = cosine - _product(c, tangent_x)
    a, b, c, d = (_quotient(term, scale_B) for term in (a, b, c, d))
    shift_x, shift_y = b * y_B - d * x_B, c * x_B - a * y_B
    return torch.stack((d, -b, shift_x, -c, a, shift_y), 1)


def _sine(angle: Tensor) -> Tensor:
    quarter = 90 * tables.UNITS_PER_DEGREE
    angle = angle % (4 * quarter)
    in_half = angle % (2 * quarter)
    sine = tables.on(angle.device, tables.sines())[quarter - (in_half - quarter).abs()]
    return torch.where(angle < 2 * quarter, sine, -sine)


def _cosine(angle: Tensor) -> Tensor:
    return _sine(angle + 90 * tables.UNITS_PER_DEGREE)


def _tangent(angle: Tensor) -> Tensor:
    return tables.on(angle.device, tables.tangents())[angle.abs()] * angle.sign()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Of two numbers in 65536ths, rounded."""
    return (x * y + tables.ONE // 2) >> 16


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Of two numbers in 65536ths, y positive, rounded."""
    return torch.div(x * tables.ONE + y // 2, y, rounding_mode="floor")
