"""Crops and whole images brought to another size, a box for each sample.

Where a pixel comes from and its weight are decided in integers. Weighted sums are float32, but
every product and sum is exactly representable (8 bits of a pixel, 14 of a weight), so neither order
nor fused operations can change a result. Shape suffixes: `B` samples, `C` channels, `H` and `W`
rows and columns, `K` taps, `N` new and `M` old lines of an axis, `L` pixels of a line.
"""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.device_tables import device_table
from kdscale.data.views.functional.affine import Interpolation, rounded
from kdscale.data.views.functional.masking import chunked, on_host

_WEIGHT_ONE = 1 << 14
_SMALL = 48  # pixels a side, up to which the weights of all boxes fit into memory
_PART = 1 << 21  # pixels; products gain less from smaller parts than these cost
_LARGE = 1 << 16  # pixels; from here on the box alone is worth a step of its own for each sample


def resized_crop(
    images: Tensor,
    start_2B: Tensor,
    length_2B: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """A box of each image, brought to one size.

    Bilinear interpolation runs along the rows, is rounded to grey levels, then along the columns,
    as Pillow and torchvision do it.

    Args:
        images: uint8 [B, C, H, W].
        start_2B: int64, first row and first column of the box; all boxes lie inside of the images.
        length_2B: numbers of rows and columns, at least 1.
        size: height and width of the result.
        interpolation: "nearest" takes the pixel that holds the left upper corner of the new one,
            as torchvision does.
        antialias: bilinear weights reach as far as the new pixels where these are the larger ones.
    """
    if on_host(images) and images[:1].numel() >= _LARGE:
        # Nothing outside of the box is needed, and here no device has to be waited for.
        edges = torch.cat((start_2B, start_2B + length_2B)).T.tolist()
        cut = [
            images[sample : sample + 1, :, top:bottom, left:right]
            for sample, (top, left, bottom, right) in enumerate(edges)
        ]
        return torch.cat([resize(image, size, interpolation, antialias) for image in cut])
    if interpolation == "bilinear" and _has_tables(images, size):
        return _with_tables(images, start_2B, length_2B, size, antialias)
    taps = partial(_taps, interpolation=interpolation, antialias=antialias)
    rows = taps(start_2B[0], length_2B[0], size[0], images.shape[2])
    columns = taps(start_2B[1], length_2B[1], size[1], images.shape[3])
    return _resample_both(images, *rows, *columns)


def resize(
    images: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """The whole images, brought to one size: see `resized_crop`."""
    if size == images.shape[2:]:
        return images.contiguous()
    parameters = []
    for sides in zip(size, images.shape[2:], strict=True):
        taps = _taps_of_all(*sides, interpolation, antialias, images.device)
        parameters += [x.expand(len(images), -1, -1) for x in taps]
    return _resample_both(images, *parameters)


@device_table
def _taps_of_all(
    new: int, old: int, interpolation: Interpolation, antialias: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`_taps` of whole images."""
    start = torch.zeros(1, dtype=torch.int64, device=device)
    return _taps(start, start + old, new, old, interpolation, antialias)


def _resample_both(
    images: Tensor, row_BHK: Tensor, weight_BHK: Tensor, column_BWK: Tensor, weight_BWK: Tensor
) -> Tensor:
    return chunked(_as_bags, images, row_BHK, weight_BHK, column_BWK, weight_BWK)


def _has_tables(images: Tensor, size: tuple[int, int]) -> bool:
    """Whether the weights of all boxes fit into memory, and a float32 product is exact.

    Both ways give the same pixels; this one needs that matrix products keep all 24 bits.
    """
    if max(*images.shape[2:], *size) > _SMALL:
        return False
    exact = images.device.type == "cpu" or not torch.backends.cuda.matmul.allow_tf32
    return exact and torch.get_float32_matmul_precision() == "highest"


def _with_tables(
    images: Tensor, start_2B: Tensor, length_2B: Tensor, size: tuple[int, int], antialias: bool
) -> Tensor:
    """The crops of small images."""
    old, device = images.shape[2:], images.device
    row_table, column_table = (
        _table_of_boxes(*sides, antialias, device) for sides in zip(old, size, strict=True)
    )
    # Boxes are numbered by length, then by start.
    row_box_B, column_box_B = _first_boxes(*old, device).gather(1, length_2B).add_(start_2B)
    multiplied = partial(_as_products, row_table=row_table[0], column_table=column_table[1])
    return chunked(multiplied, images, row_box_B, column_box_B, pixels=_PART)


@lru_cache(maxsize=8)
def _first_boxes(height: int, width: int, device: torch.device) -> Tensor:
    """How many boxes of an axis are shorter than each length, int64 [2, the longer side + 1].

    There are size - length + 1 boxes of each length.
    """
    with torch.inference_mode(False):
        length = torch.arange(max(height, width) + 1, device=device)
        sizes = torch.tensor(((height,), (width,)), device=device)
        return torch.div((length - 1) * (2 * sizes - length + 2), 2, rounding_mode="floor")


@lru_cache(maxsize=8)
def _table_of_boxes(
    old_size: int, size: int, antialias: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The weights of all boxes of a small axis, 2 MB for 32 lines, 11 MB for 48.

    Returns:
        Weights float32 [boxes, N, M] of every old line in every new one, and [boxes, M, N]: a
        product is a quarter faster where no factor has to be transposed.
    """
    with torch.inference_mode(False):
        boxes = [(s, n) for n in range(1, old_size + 1) for s in range(old_size - n + 1)]
        start, length = torch.tensor(boxes, device=device).unbind(1)
        line, weight = _taps(start, length, size, old_size, "bilinear", antialias)
        empty = torch.zeros(len(boxes), size, old_size, device=device)
        table = empty.scatter_add_(2, line, weight)
        return table, table.transpose(1, 2).contiguous()


def _as_products(
    images: Tensor, row_box_B: Tensor, column_box_B: Tensor, row_table: Tensor, column_table: Tensor
) -> Tensor:
    """Two matrix products: 1.5 times as fast as bags where lines are short."""
    batch, channels, height, width = images.shape
    lines = images.to(torch.float32, memory_format=torch.contiguous_format)
    row_box_BC = row_box_B.repeat_interleave(channels)
    with torch.autocast(images.device.type, enabled=False):
        narrow = lines.view(batch, -1, width).bmm(column_table.index_select(0, column_box_B))
        narrow = narrow.add_(0.5).floor_().view(batch * channels, height, -1)
        made = row_table.index_select(0, row_box_BC).bmm(narrow)
    return rounded(made).view(batch, channels, *made.shape[1:])


def _as_bags(
    images: Tensor, row_BHK: Tensor, weight_BHK: Tensor, column_BWK: Tensor, weight_BWK: Tensor
) -> Tensor:
    """Along the rows, then along the columns."""
    narrow = _resample(images.transpose(2, 3), column_BWK, weight_BWK)
    return _resample(narrow.transpose(2, 3), row_BHK, weight_BHK)


def _resample(images: Tensor, line_BNK: Tensor, weight_BNK: Tensor) -> Tensor:
    """Weighted sums of lines of images [B, C, M, L]: uint8 [B, C, N, L].

    Lines of neighbours in memory are rows of a table, and a new line is a bag of them: 4 times
    faster than to copy the rows and weigh them, and many times faster than to gather pixels.
    """
    batch, channels, old_size, length = images.shape
    _, size, num_taps = line_BNK.shape
    plane_BC = torch.arange(0, batch * channels * old_size, old_size, device=images.device)
    line_BCNK = plane_BC.view(batch, channels, 1, 1) + line_BNK.unsqueeze(1)
    lines = images.contiguous().view(-1, length)
    if num_taps == 1:
        return lines.index_select(0, line_BCNK.flatten()).view(batch, channels, size, length)
    weight_BCNK = weight_BNK.unsqueeze(1).expand(line_BCNK.shape)
    summed = F.embedding_bag(
        line_BCNK.view(-1, num_taps),
        lines.to(torch.float32),
        mode="sum",
        per_sample_weights=weight_BCNK.reshape(-1, num_taps),
    )
    return rounded(summed).view(batch, channels, size, length)


def _taps(
    start_B: Tensor,
    length_B: Tensor,
    size: int,
    longest: int,
    interpolation: Interpolation,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    """Which of the lines start..start + length - 1 make each of `size` lines, and their weights.

    In units of 1/(2 size) of an old line, new line i has its middle at (2i + 1) length, old line j
    at (2j + 1) size. A triangle around the new middle, two lines wide, gives the shares: two old
    lines, or two new ones where these are the larger and `antialias` is true.

    Args:
        start_B: int64, first line.
        length_B: int64, number of lines, at most `longest`.
        size: number of new lines.
        longest: decides the number of taps, without asking a device for the longest one.
        interpolation: "nearest" has one tap, the old line floor(i length / size).
        antialias: see above.

    Returns:
        int64 and float32 [B, size, K]; weights are 16384ths and sum to 1.
    """
    if interpolation == "nearest":
        return _one_tap(start_B, length_B, size)
    if longest <= size or not antialias:
        return _two_taps(start_B, length_B, size)
    device = length_B.device
    length_B11 = length_B.view(-1, 1, 1)
    reach = 2 * length_B11.clamp(min=size)
    num_taps = -(-2 * longest // size)
    middle = (2 * torch.arange(size, device=device).view(1, -1, 1) + 1) * length_B11
    first = torch.div(middle - reach - size, 2 * size, rounding_mode="floor").add_(1).clamp_(min=0)
    line = first + torch.arange(num_taps, device=device)
    share = (reach - ((2 * line + 1) * size - middle).abs()).clamp_(min=0) * (line < length_B11)
    so_far = share.cumsum(2)
    total = so_far[..., -1:]
    ends = torch.div(so_far * _WEIGHT_ONE + total // 2, total, rounding_mode="floor")
    weight = ends.diff(dim=2, prepend=torch.zeros_like(total))
    line = torch.minimum(line, length_B11 - 1) + start_B.view(-1, 1, 1)
    return line, weight.to(torch.float32).mul_(1 / _WEIGHT_ONE)


def _two_taps(start_B: Tensor, length_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same for two taps, in a third of the time."""
    last = (length_B - 1).unsqueeze(1)
    middle_BN = (2 * torch.arange(size, device=length_B.device) + 1) * length_B.unsqueeze(1)
    place_BN = torch.minimum((middle_BN - size).clamp_(min=0), last * (2 * size))
    line_BN = torch.div(place_BN, 2 * size, rounding_mode="floor")
    share_BN = 2 * size * (line_BN + 1) - place_BN
    first_BN = torch.div(share_BN * _WEIGHT_ONE + size, 2 * size, rounding_mode="floor")
    weight = torch.stack((first_BN, _WEIGHT_ONE - first_BN), 2)
    line = torch.stack((line_BN, torch.minimum(line_BN + 1, last)), 2) + start_B.view(-1, 1, 1)
    return line, weight.to(torch.float32).mul_(1 / _WEIGHT_ONE)


def _one_tap(start_B: Tensor, length_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    place_N = torch.arange(size, device=start_B.device)
    line_BN = torch.div(place_N * length_B.unsqueeze(1), size, rounding_mode="floor")
    line_BN1 = (line_BN + start_B.unsqueeze(1)).unsqueeze(2)
    return line_BN1, torch.ones_like(line_BN1, dtype=torch.float32)
