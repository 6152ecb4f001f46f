"""`data.clean` as a module that exporters can trace: images of any size in, clean images out.

Pixels are equal, bit for bit, to those of `kdscale.data.views`: weights of a resize are exact in
float32, and so is a sum of weighted grey levels in any order. Shape suffixes: `B` images, `C`
channels, `M` old lines of an axis, `N` new ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kdscale.data.views.operations.mixing import Mixing
from kdscale.data.views.operations.operation import Operation
from kdscale.data.views.operations.resizing import CenterCrop, Resize
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ExportError

_WEIGHT_ONE = 1 << 14
"""Weights of a resize are multiples of 1 / _WEIGHT_ONE, see `kdscale.data.views`."""


Size2: TypeAlias = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A resize, or a crop of the middle, or both."""

    resize: Resize | None
    size: Size2
    """Of the result: height and width."""


class TraceableClean(nn.Module):
    """The operations of `data.clean` for uint8 images [B, C, any height, any width].

    Args:
        operations: as `data.clean` has them: `resize` and `center_crop` alone.

    Raises:
        ExportError: there is another operation, or images of several sizes keep several sizes.
    """

    def __init__(self, operations: Sequence[str | Mapping[str, object]]) -> None:
        super().__init__()
        self.steps = _steps(Pipeline.parse(operations, field="data.clean").operations)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return clean images: uint8 [B, C, H, W]."""
        for step in self.steps:
            pixels = _applied(step, pixels)
        return pixels


def _steps(operations: Sequence[Operation | Mixing]) -> list[_Step]:
    """Return the steps that operations amount to, each with a result of one size."""
    steps: list[_Step] = []
    pending: Resize | None = None
    size: Size2 | None = None
    for one in operations:
        if isinstance(one, Resize) and pending is None:
            if isinstance(one.size, int) and size is None:
                pending = one  # a crop has to follow
                continue
            size = _resized(one.size, size)
            steps.append(_Step(replace(one, size=size), size))
        elif isinstance(one, CenterCrop):
            size = one.size if isinstance(one.size, tuple) else (one.size, one.size)
            steps.append(_Step(pending, size))
            pending = None
        else:
            raise _refused(f"data.clean has {one}, wanted resize and center_crop alone")
    if pending is not None or not steps:
        raise _refused("data.clean gives images of several sizes no common one: add a center_crop")
    return steps


def _resized(size: int | Size2, before: Size2 | None) -> Size2:
    """Return the size of resized images; one number is their shorter side."""
    if isinstance(size, tuple):
        return size
    assert before is not None, "the caller knows the size of the images"
    return size * before[0] // min(before), size * before[1] // min(before)


def _refused(reason: str) -> ExportError:
    return ExportError(
        f"--with-preprocessing: {reason}; or export without it, and prepare the images as "
        "data.clean does"
    )


def _applied(step: _Step, pixels: Tensor) -> Tensor:
    """Return the images after one step: along the rows, rounded, then along the columns."""
    height, width = _length(pixels, 2), _length(pixels, 3)
    new_height, new_width, kind, antialias = height, width, "nearest", True
    if step.resize is not None:
        kind, antialias = step.resize.interpolation, step.resize.antialias
        if isinstance(step.resize.size, int):
            shorter = torch.minimum(height, width)
            new_height = step.resize.size * height // shorter
            new_width = step.resize.size * width // shorter
        else:
            new_height, new_width = (torch.full_like(height, one) for one in step.resize.size)
    values = pixels.to(torch.float32)
    weight_NM = _weights(pixels, 3, new_width, step.size[1], kind, antialias)
    values = (values @ weight_NM.T + 0.5).floor()
    weight_NM = _weights(pixels, 2, new_height, step.size[0], kind, antialias)
    values = (weight_NM @ values + 0.5).floor()
    return values.clamp(0, 255).to(torch.uint8)


def _length(pixels: Tensor, axis: int) -> Tensor:
    """Return the number of lines of an axis as a tensor, int64 [1]."""
    return _lines(pixels, axis)[-1:] + 1


def _lines(pixels: Tensor, axis: int) -> Tensor:
    """Return 0..M-1 of an axis."""
    return torch.arange(pixels.shape[axis], device=pixels.device)


def _weights(
    pixels: Tensor, axis: int, size_1: Tensor, crop: int, kind: str, antialias: bool
) -> Tensor:
    """Return the weight of each old line in each line of the crop, float32 [N, M].

    The old axis is resized to `size_1` lines, of which the middle `crop` remain; lines beyond the
    axis are black. The formula is that of `kdscale.data.views.functional.resampling`.
    """
    line_M, length_1 = _lines(pixels, axis), _length(pixels, axis)
    extra_1 = size_1 - crop
    # round(extra / 2), half to even; of a missing part the smaller half lies before.
    cut_1 = extra_1.clamp(min=0) // 2 + (extra_1.clamp(min=0) % 4 == 3).to(torch.int64)
    new_N1 = (torch.arange(crop, device=pixels.device) + cut_1 - (-extra_1).clamp(min=0) // 2)[
        :, None
    ]
    inside_N1 = (new_N1 >= 0) & (new_N1 < size_1)
    if kind == "nearest":
        taken_N1 = new_N1.clamp(min=0) * length_1 // size_1
        return ((line_M == taken_N1) & inside_N1).to(torch.float32)
    widest_1 = torch.maximum(length_1, size_1) if antialias else size_1
    distance_NM = ((2 * line_M + 1) * size_1 - (2 * new_N1 + 1) * length_1).abs()
    share_NM = (2 * widest_1 - distance_NM).clamp(min=0) * inside_N1.to(torch.int64)
    so_far_NM = share_NM.cumsum(1)
    total_N1 = so_far_NM[:, -1:].clamp(min=1)
    end_NM = (so_far_NM * _WEIGHT_ONE + total_N1 // 2) // total_N1
    start_NM = ((so_far_NM - share_NM) * _WEIGHT_ONE + total_N1 // 2) // total_N1
    return (end_NM - start_NM).to(torch.float32) * (1 / _WEIGHT_ONE)
