"""Draws a preview by matplotlib: a row for each sample, a column for each view."""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import Rectangle
from PIL import Image, ImageFont

from kdscale.errors import ConfigError

FONT = "DejaVu Sans"
_TITLE, _NAME, _SMALL = 22, 15, 12  # sizes of type, pixels
_DPI = 72  # one point is one pixel
_LARGEST_PICTURE = 144  # pixels a side, on the sheet
_NARROWEST_CELL = 150  # a class name of ten letters and its per cent
_MARGIN, _GAP, _ROW_GAP, _BLOCK_GAP = 28, 18, 26, 40
_LINE_HEIGHT = 20
_HEAD = (72, 168)  # least and most pixels for the names of the rows
_LARGEST_SIDE, _LARGEST_AREA = 16_383, 100_000_000  # the side is WebP's
_LONGEST_TEXT = 300

_INK, _SOFT, _RULE, _TRACK = "#1f2328", "#59636e", "#d8dee4", "#f3f5f7"
_RIGHT, _WRONG = "#0550ae", "#b3360b"
_BARS = {"✓": "#c9dffa", "✗": "#fbd6c4", "": "#dde2e7"}
_SHARES = ("#3d444d", "#e0a100")


@dataclass(frozen=True, slots=True)
class ClassShare:
    """Class of a mixed view, and its share of the label."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the teacher's most probable classes."""

    name: str
    probability: float
    right: bool | None
    """Whether it is the true class; None for unlabelled images."""


@dataclass(frozen=True, slots=True)
class ViewTile:
    """One view of a sample."""

    pixels: np.ndarray
    """uint8 [C, H, W], C is 1 or 3."""
    shares: tuple[ClassShare, ...] = ()
    """Class of the sample and of its mixing partner; empty where views do not mix."""
    predictions: tuple[Prediction, ...] = ()
    """Most probable classes, the first one first; empty without a teacher."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The views of one sample."""

    name: str
    note: str
    tiles: tuple[ViewTile, ...]


@dataclass(frozen=True, slots=True)
class PreviewSheet:
    """The content of a preview: at least one row, each with a tile for each of `columns`."""

    title: str
    lines: tuple[str, ...]
    """Text below the title, wrapped to the width of the sheet."""
    columns: tuple[str, ...]
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Sizes of the parts of a sheet, pixels."""

    head: int
    cell: int
    picture: int
    shares: int
    predictions: int
    num_columns: int
    rows_per_line: int
    num_lines: int
    width: int

    @property
    def row_width(self) -> int:
        return _row_width(self.head, self.cell, self.num_columns)

    @property
    def row_height(self) -> int:
        return self.picture + self.shares + self.predictions + _ROW_GAP


def _row_width(head: int, cell: int, num_columns: int) -> int:
    return head + num_columns * (_GAP + cell)


def draw(sheet: PreviewSheet, *, widest: int = 1500, narrowest: int = 640) -> Image.Image:
    """Return a preview as an RGB image.

    Args:
        sheet: its content.
        widest: width up to which rows stand side by side, pixels.
        narrowest: least width, pixels.

    Raises:
        ConfigError: it would be larger than image files can be.
    """
    layout = _layout_of(sheet, widest, narrowest)
    room = layout.width - 2 * _MARGIN
    lines = [part for line in sheet.lines for part in wrapped(line, _SMALL, room)]
    legend = wrapped("   ".join(_legend(sheet)), _SMALL, room)
    top = _MARGIN + 92 + len(lines) * _LINE_HEIGHT  # of the first row
    below = top + layout.num_lines * layout.row_height
    height = below + len(legend) * _LINE_HEIGHT + _MARGIN
    _check_size(layout.width, height)
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks
        mpl.rcParams.update({"text.parse_math": False, "font.family": FONT})
        figure, axes = _canvas(layout.width, height)
        _write(axes, _MARGIN, _MARGIN + 14, fitted(sheet.title, _TITLE, room), _INK, _TITLE)
        for number, line in enumerate(lines):
            _write(axes, _MARGIN, _MARGIN + 50 + number * _LINE_HEIGHT, line)
        _draw_rows(axes, sheet, layout, top)
        for number, line in enumerate(legend):
            _write(axes, _MARGIN, below + number * _LINE_HEIGHT + 10, line)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
    return Image.open(buffer).convert("RGB")


def _canvas(width: int, height: int) -> tuple[Figure, Axes]:
    """Return a white figure, and axes over all of it in pixels from its upper left corner."""
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_autoscale_on(False)
    return figure, axes


def _layout_of(sheet: PreviewSheet, widest: int, narrowest: int) -> _Layout:
    tiles = _tiles(sheet)
    sizes = [_drawn_size(tile.pixels) for tile in tiles]
    shares = any(tile.shares for tile in tiles)
    predictions = max(len(tile.predictions) for tile in tiles)
    words = shares or predictions
    cell = max(_NARROWEST_CELL if words else 0, *(width for width, _ in sizes))
    names = [(row.name, _NAME) for row in sheet.rows] + [(row.note, _SMALL) for row in sheet.rows]
    longest = max(width_of(text, size) for text, size in names)
    head = min(max(round(longest), _HEAD[0]), _HEAD[1])
    row_width = _row_width(head, cell, len(sheet.columns))
    most = max((widest + _BLOCK_GAP) // (row_width + _BLOCK_GAP), 1)
    num_lines = -(-len(sheet.rows) // most)
    side_by_side = -(-len(sheet.rows) // num_lines)  # lines of about equal length
    rows = side_by_side * (row_width + _BLOCK_GAP) - _BLOCK_GAP
    return _Layout(
        head=head,
        cell=cell,
        picture=max(height for _, height in sizes),
        shares=2 * _LINE_HEIGHT + 14 if shares else 0,
        predictions=predictions * (_LINE_HEIGHT + 1) + 7 if predictions else 0,
        num_columns=len(sheet.columns),
        rows_per_line=side_by_side,
        num_lines=num_lines,
        width=max(rows + 2 * _MARGIN, narrowest),
    )


def _tiles(sheet: PreviewSheet) -> list[ViewTile]:
    return [tile for row in sheet.rows for tile in row.tiles]


def _check_size(width: int, height: int) -> None:
    if max(width, height) > _LARGEST_SIDE or width * height > _LARGEST_AREA:
        raise ConfigError(
            f"the preview would have {width} x {height} pixels, at most {_LARGEST_SIDE} a side "
            f"and {_LARGEST_AREA // 10**6} million in all fit: choose fewer --samples or --views"
        )


# --------------------------------------------------------------------------- rows


def _draw_rows(axes: Axes, sheet: PreviewSheet, layout: _Layout, top: int) -> None:
    for number, row in enumerate(sheet.rows):
        line, place = divmod(number, layout.rows_per_line)
        x = _MARGIN + place * (layout.row_width + _BLOCK_GAP)
        y = top + line * layout.row_height
        _box(axes, x, y - _ROW_GAP // 2, layout.row_width, 1, _RULE)
        _write(axes, x, y + 10, fitted(row.name, _NAME, layout.head), _INK, _NAME)
        _write(axes, x, y + 32, fitted(row.note, _SMALL, layout.head))
        for column, tile in enumerate(row.tiles):
            left = x + layout.head + _GAP + column * (layout.cell + _GAP)
            if line == 0:
                _write(axes, left, top - 28, fitted(sheet.columns[column], _SMALL, layout.cell))
            _draw_tile(axes, tile, layout, left, y)


def _draw_tile(axes: Axes, tile: ViewTile, layout: _Layout, x: int, y: int) -> None:
    """Draw a view with its class shares and predictions below."""
    width, height = _drawn_size(tile.pixels)
    pixels = np.repeat(tile.pixels, 3, 0) if len(tile.pixels) == 1 else tile.pixels
    axes.imshow(
        _resized(pixels.transpose(1, 2, 0), width, height),
        extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto", zorder=2,
    )  # fmt: skip
    wrong = bool(tile.predictions) and tile.predictions[0].right is False
    pad = 2.0 if wrong else 1.0
    frame = Rectangle((x - pad, y - pad), width + 2 * pad, height + 2 * pad, fill=False)
    frame.set_edgecolor(_WRONG if wrong else _RULE)
    frame.set_linewidth(3 if wrong else 1.5)
    if wrong:
        frame.set_linestyle((0, (2, 1.5)))
    axes.add_patch(frame)
    y += layout.picture
    if tile.shares:
        _draw_shares(axes, tile.shares, x, y + 7, layout.cell)
    y += layout.shares + 7
    for number, prediction in enumerate(tile.predictions):
        place = y + number * (_LINE_HEIGHT + 1)
        _draw_prediction(axes, prediction, x, place, layout.cell, first=number == 0)


def _drawn_size(pixels: np.ndarray) -> tuple[int, int]:
    """Return width and height on the sheet: enlarged by a whole factor, or reduced."""
    height, width = pixels.shape[1:]
    factor = _LARGEST_PICTURE // max(height, width)
    if factor:
        return width * factor, height * factor
    scale = _LARGEST_PICTURE / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    enlarged = width >= pixels.shape[1]
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), resampling)
    )


def _draw_shares(axes: Axes, shares: Sequence[ClassShare], x: int, y: int, width: int) -> None:
    """Draw a bar divided by the shares, and a line of text for each class."""
    start = 0.0
    for number, (share, colour) in enumerate(zip(shares, _SHARES, strict=False)):
        _box(axes, x + start * width, y, share.share * width, 5, colour)
        start += share.share
        middle = y + 18 + number * _LINE_HEIGHT
        _write(axes, x + 2, middle, "■", colour)
        _name_and_percent(axes, share.name, share.share, x, middle, width)


def _draw_prediction(
    axes: Axes, prediction: Prediction, x: int, y: int, width: int, *, first: bool
) -> None:
    """Draw class and per cent, over a bar as long as the probability."""
    mark = "✓" if prediction.right else "✗" if first and prediction.right is False else ""
    middle = y + _LINE_HEIGHT // 2
    ink = {"✓": _RIGHT, "✗": _WRONG}.get(mark, _INK)
    _box(axes, x, y, width, _LINE_HEIGHT, _TRACK)
    _box(axes, x, y, prediction.probability * width, _LINE_HEIGHT, _BARS[mark])
    _write(axes, x + 4, middle, mark, ink)
    _name_and_percent(axes, prediction.name, prediction.probability, x, middle, width, ink)


def _name_and_percent(
    axes: Axes, name: str, share: float, x: int, y: int, width: int, ink: str = _INK
) -> None:
    percent = "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
    room = width - 20 - width_of(percent, _SMALL) - 9
    _write(axes, x + 20, y, fitted(name, _SMALL, room), ink)
    _write(axes, x + width - 4, y, percent, ink, align="right")


def _legend(sheet: PreviewSheet) -> Iterator[str]:
    tiles = _tiles(sheet)
    mixed = any(tile.shares for tile in tiles)
    predictions = [one for tile in tiles for one in tile.predictions]
    if mixed:
        yield "■ share of the sample's own class, then of its mixing partner's"
    if predictions:
        yield "bars: the teacher's most probable classes, at temperature 1"
    if any(one.right is not None for one in predictions):
        yield "✓ class with the larger share" if mixed else "✓ true class"
        yield "✗ and dashed frame: the most probable class is another one"


# --------------------------------------------------------------------------- text


def _write(
    axes: Axes, x: float, y: float, text: str, ink: str = _SOFT, size: int = _SMALL,
    align: str = "left",
) -> None:  # fmt: skip
    if text:
        axes.text(x, y, text, color=ink, fontsize=size, ha=align, va="center_baseline")


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="none"))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FONT), size)


def width_of(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return _font(size).getlength(text)


def fitted(text: str, size: int, width: float) -> str:
    """Cut a text to a width in pixels, with an ellipsis."""
    if len(text) <= _LONGEST_TEXT and width_of(text, size) <= width:
        return text
    text = text[:_LONGEST_TEXT]
    while text and width_of(f"{text}…", size) > width:
        text = text[:-1].rstrip()
    return f"{text}…"


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Break a text into lines of at most `width` pixels; a longer word is cut."""
    letters = max(int(width / (0.6 * size)), 1)
    lines = textwrap.wrap(text, letters, break_long_words=False, break_on_hyphens=False)
    return [fitted(line, size, width) for line in lines]
