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

from kdscale.data.device_tables import device_table
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional.masking import chunked, on_host

Interpolation = Literal["nearest", "bilinear"]

_PLACE_ONE = 1 << 12  # places are 4096ths of a pixel: int32 reaches 524,288 pixels
_FARTHEST = 1 << 30  # in these; two terms of a place still add up in int32
_PART = 1 << 19  # pixels at a time; there are more steps for samples and lines than for pixels
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
    moved = partial(_affine, interpolation=interpolation, fill=fill)
    return chunked(moved, images, matrix_B6.contiguous(), pixels=_PART)


def source_coordinates(matrix_B6: Tensor, height: int, width: int) -> Tensor:
    """Where `affine` finds the nearest pixels of images of a size: int64 [B, H, W].

    For `gather_pixels`: matrices that come again and again need not be multiplied out each time.
    """
    padded_shape = torch.Size((1, 1, height + 2 * _BORDER, width + 2 * _BORDER))
    return _places(_sources(matrix_B6, padded_shape, _PLACE_ONE // 2), padded_shape)


def gather_pixels(images: Tensor, place_BHW: Tensor, fill: int) -> Tensor:
    """The images made of the pixels at these places, `fill` outside."""
    return _take(F.pad(images, [_BORDER] * 4, value=fill), place_BHW).view(images.shape)


def _affine(images: Tensor, matrix_B6: Tensor, interpolation: Interpolation, fill: int) -> Tensor:
    if interpolation == "nearest":
        return gather_pixels(images, source_coordinates(matrix_B6, *images.shape[2:]), fill)
    padded = F.pad(images, [_BORDER] * 4, value=fill)
    return _bilinear(padded, matrix_B6).view(images.shape)


def _bilinear(padded: Tensor, matrix_B6: Tensor) -> Tensor:
    # rounded to 256ths when the lowest four bits are dropped
    source_B2HW = _sources(matrix_B6, padded.shape, 8)
    right_B1P, below_B1P = _fractions(source_B2HW)
    place_BHW = _places(source_B2HW, padded.shape)
    row = padded.shape[3]
    corners = (_take(padded, place_BHW, k).to(torch.float32) for k in (0, 1, row, row + 1))
    upper = next(corners).lerp_(next(corners), right_B1P)
    lower = next(corners).lerp_(next(corners), right_B1P)
    return rounded(upper.lerp_(lower, below_B1P))


def _sources(matrix_B6: Tensor, padded_shape: torch.Size, more: int) -> Tensor:
    """Columns and rows, int32 [B, 2, H, W] in 4096ths of a pixel, 0 the middle of the first one.

    Each term is rounded to 4096ths on its own: what is done for every pixel then fits int32.
    `more` is added to both.
    """
    height, width = (size - 2 * _BORDER for size in padded_shape[2:])
    x_W, y_H, middle_21 = _axes(height, width, matrix_B6.device)
    by_x, by_y, shift = matrix_B6.reshape(-1, 2, 3).split(1, 2)
    by_row_B2H = torch.add(middle_21, shift, alpha=2).addcmul(by_y, y_H)
    # from 131072ths to 4096ths
    both = torch.cat((by_x * x_W, by_row_B2H), 2).add_(16).bitwise_right_shift_(5)
    columns, rows = both.clamp_(-_FARTHEST, _FARTHEST - 1).to(torch.int32).split((width, height), 2)
    source_B2HW: Tensor = columns.unsqueeze(2) + rows.add_(more).unsqueeze(3)
    return source_B2HW


@device_table
def _axes(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the distance from the middle of each column and row, and the middle in 131072ths.

    Twice: whole numbers also where the middle lies between pixels.
    """
    x_W = 2 * torch.arange(width, device=device) - (width - 1)
    y_H = 2 * torch.arange(height, device=device) - (height - 1)
    middle = torch.tensor(((width - 1) << 16, (height - 1) << 16), device=device)
    return x_W, y_H, middle.view(2, 1)


def _places(source_B2HW: Tensor, padded_shape: torch.Size) -> Tensor:
    """Where each padded plane holds a place (overwritten), int64 [B, H, W].

    Places are rounded down to pixels; those farther out than the border are moved onto it.
    """
    padded_height, padded_width = padded_shape[2:]
    # Counted from the first pixel of the border on.
    column, row = source_B2HW.bitwise_right_shift_(12).unbind(1)
    column.clamp_(-_BORDER, padded_width - 2 * _BORDER)
    row.clamp_(-_BORDER, padded_height - 2 * _BORDER)
    first_pixel = _BORDER * padded_width + _BORDER
    return column.add_(row, alpha=padded_width).add_(first_pixel).to(torch.int64)


def _take(padded: Tensor, place_BHW: Tensor, ahead: int = 0) -> Tensor:
    """The pixels so far ahead of the places, in each channel: uint8 [B, C, H W]."""
    batch, channels = padded.shape[:2]
    place_BCP = place_BHW.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2)[..., ahead:].gather(2, place_BCP)


def _fractions(source_B2HW: Tensor) -> tuple[Tensor, Tensor]:
    """How far places lie behind a pixel, in whole 256ths of a pixel: both float32 [B, 1, H W]."""
    fractions = (source_B2HW >> 4).bitwise_and_(255).to(torch.float32).mul_(1 / 256)
    right, below = fractions.flatten(2).split(1, 1)
    return right, below


def rounded(grey_levels: Tensor) -> Tensor:
    """float32 to uint8, halves up, in place; by way of int16, twice as fast on a CPU."""
    grey_levels.add_(0.5)
    return (grey_levels.to(torch.int16) if on_host(grey_levels) else grey_levels).to(torch.uint8)


# --------------------------------------------------------------------------- matrices for affine


def rotation_matrix(angle_B: Tensor) -> Tensor:
    """Inverse matrices, int64 [B, 6], of turns counter-clockwise, in 64ths of a degree."""
    cosine, sine, zero = _cosine(angle_B), _sine(angle_B), torch.zeros_like(angle_B)
    return torch.stack((cosine, -sine, zero, sine, cosine, zero), 1)


@device_table
def rotation_matrices(lowest: int, highest: int, device: torch.device) -> Tensor:
    """`rotation_matrix` of all angles from the lowest to the highest, int64 [angles, 6]."""
    return rotation_matrix(torch.arange(lowest, highest + 1, device=device))


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
    sines, _ = _tables(angle.device)
    return sines[angle % len(sines)]


def _cosine(angle: Tensor) -> Tensor:
    return _sine(angle + 90 * lookup_tables.UNITS_PER_DEGREE)


def _tangent(angle: Tensor) -> Tensor:
    _, tangents = _tables(angle.device)
    return tangents[angle + len(tangents) // 2]


@device_table
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Sines of a whole turn, and tangents of all angles of less than 90 degrees either way."""
    sine = torch.tensor(lookup_tables.sines(), device=device)
    tangent = torch.tensor(lookup_tables.tangents(), device=device)
    half = torch.cat((sine, sine[1:-1].flip(0)))
    return torch.cat((half, -half)), torch.cat((-tangent[1:].flip(0), tangent))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Of two numbers in 65536ths, rounded."""
    return (x * y + lookup_tables.ONE // 2) >> 16


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Of two numbers in 65536ths, y positive, rounded."""
    return torch.div(x * lookup_tables.ONE + y // 2, y, rounding_mode="floor")
