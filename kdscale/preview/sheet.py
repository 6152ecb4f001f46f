"""Draws a contact sheet: a row a sample, a column a view, words where they fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from kdscale.errors import ConfigError
from kdscale.preview.lettering import INK, NAME, SMALL, TITLE, fit, font, wrap, write
from kdscale.preview.signs import (
    BARS,
    PAPER,
    RIGHT,
    RULE,
    SHARES,
    TRACK,
    WRONG,
    Entry,
    bar,
    dash,
    draw_entries,
    set_in_lines,
    sign,
)

_LARGEST_PICTURE = 144  # pixels a side, on the sheet
_NARROWEST_CELL = 140  # a class name of ten letters and its per cent
_MARGIN, _GAP, _ROW_GAP, _BLOCK_GAP = 28, 18, 26, 40
_LINE_HEIGHT = 20  # of small type
_HEAD = (72, 168)  # least and most pixels for the names of the rows
_WIDE_ENOUGH = 1500  # so far rows are set side by side
_NARROWEST_SHEET = 640
_LARGEST_SIDE, _LARGEST_AREA = 16_383, 100_000_000  # the side is WebP's


@dataclass(frozen=True, slots=True)
class Share:
    """A class that a mixed picture shows, and how much of it."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A class that the teacher named."""

    name: str
    probability: float
    right: bool | None
    """Whether it is the true class; None where there is none."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One view of a sample."""

    pixels: np.ndarray
    """uint8 [C, H, W], C is 1 or 3."""
    shares: tuple[Share, ...] = ()
    """Own and partner's class; empty where views do not mix."""
    answers: tuple[Answer, ...] = ()
    """Best first; empty where no teacher was asked."""


@dataclass(frozen=True, slots=True)
class Row:
    """A sample."""

    name: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What there is to see: at least one row, with a picture for each of `columns`."""

    title: str
    lines: tuple[str, ...]
    """Small type below the title, wrapped where the sheet ends."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How large things are, in pixels of the sheet."""

    head: int
    cell: int
    picture: int
    shares: int
    answers: int
    num_columns: int
    side_by_side: int
    """Rows on one line."""
    num_lines: int
    narrowest: int

    @property
    def row_width(self) -> int:
        return self.head + self.num_columns * (_GAP + self.cell)

    @property
    def row_height(self) -> int:
        return self.picture + self.shares + self.answers + _ROW_GAP

    @property
    def width(self) -> int:
        rows = self.side_by_side * (self.row_width + _BLOCK_GAP) - _BLOCK_GAP
        return max(rows + 2 * _MARGIN, self.narrowest)


def draw(
    sheet: Sheet, *, widest: int = _WIDE_ENOUGH, narrowest: int = _NARROWEST_SHEET
) -> Image.Image:
    """The sheet as an RGB picture.

    Args:
        sheet: what there is to see.
        widest: pixels up to which rows are set side by side.
        narrowest: pixels that it has at least.

    Raises:
        ConfigError: it would be larger than files of pictures can be.
    """
    layout = _lay_out(sheet, widest, narrowest)
    room = layout.width - 2 * _MARGIN
    lines = [part for line in sheet.lines for part in wrap(line, SMALL, room)]
    legend = set_in_lines(_legend(sheet), room)
    top = _MARGIN + 92 + len(lines) * _LINE_HEIGHT  # of the first row
    below = top + layout.num_lines * layout.row_height
    height = below + len(legend) * _LINE_HEIGHT + _MARGIN
    _check_size(layout.width, height)
    canvas = Image.new("RGB", (layout.width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, _MARGIN, _MARGIN + 14, fit(sheet.title, TITLE, room), INK, TITLE)
    for number, line in enumerate(lines):
        write(pen, _MARGIN, _MARGIN + 50 + number * _LINE_HEIGHT, line)
    _draw_heads(pen, sheet, layout, top - 28)
    for number, row in enumerate(sheet.rows):
        below_it, beside_it = divmod(number, layout.side_by_side)
        x = _MARGIN + beside_it * (layout.row_width + _BLOCK_GAP)
        _draw_row(canvas, row, layout, x, top + below_it * layout.row_height)
    for number, entries in enumerate(legend):
        draw_entries(pen, entries, _MARGIN, below + number * _LINE_HEIGHT + 10)
    return canvas


def _lay_out(sheet: Sheet, widest: int, narrowest: int) -> _Layout:
    pictures = _pictures(sheet)
    sizes = [_shown_size(picture.pixels) for picture in pictures]
    shares = any(picture.shares for picture in pictures)
    answers = max(len(picture.answers) for picture in pictures)
    cell = max(_NARROWEST_CELL if shares or answers else 0, *(width for width, _ in sizes))
    names = [(row.name, NAME) for row in sheet.rows] + [(row.note, SMALL) for row in sheet.rows]
    longest = max(font(size).getlength(text) for text, size in names)
    head = min(max(round(longest), _HEAD[0]), _HEAD[1])
    row_width = head + len(sheet.columns) * (_GAP + cell)
    most = max((widest + _BLOCK_GAP) // (row_width + _BLOCK_GAP), 1)
    num_lines = -(-len(sheet.rows) // most)
    return _Layout(
        head=head,
        cell=cell,
        picture=max(height for _, height in sizes),
        shares=2 * _LINE_HEIGHT + 14 if shares else 0,
        answers=answers * (_LINE_HEIGHT + 1) + 7 if answers else 0,
        num_columns=len(sheet.columns),
        side_by_side=-(-len(sheet.rows) // num_lines),  # none of the lines much shorter than others
        num_lines=num_lines,
        narrowest=narrowest,
    )


def _pictures(sheet: Sheet) -> list[Picture]:
    return [picture for row in sheet.rows for picture in row.pictures]


def _check_size(width: int, height: int) -> None:
    if max(width, height) > _LARGEST_SIDE or width * height > _LARGEST_AREA:
        raise ConfigError(
            f"the sheet would have {width} x {height} pixels, the most are {_LARGEST_SIDE} a side "
            f"and {_LARGEST_AREA // 10**6} million in all: ask for fewer --samples or --views"
        )


# --------------------------------------------------------------------------- rows


def _draw_heads(pen: ImageDraw.ImageDraw, sheet: Sheet, layout: _Layout, y: int) -> None:
    """The names of the columns."""
    for place in range(layout.side_by_side):
        left = _MARGIN + place * (layout.row_width + _BLOCK_GAP) + layout.head + _GAP
        for column, name in enumerate(sheet.columns):
            write(pen, left + column * (layout.cell + _GAP), y, fit(name, SMALL, layout.cell))


def _draw_row(canvas: Image.Image, row: Row, layout: _Layout, x: int, y: int) -> None:
    """What a sample is, and its pictures, below a thin rule."""
    pen = ImageDraw.Draw(canvas)
    pen.line((x, y - _ROW_GAP // 2, x + layout.row_width - 1, y - _ROW_GAP // 2), RULE)
    write(pen, x, y + 10, fit(row.name, NAME, layout.head), INK, NAME)
    write(pen, x, y + 32, fit(row.note, SMALL, layout.head))
    for column, picture in enumerate(row.pictures):
        left = x + layout.head + _GAP + column * (layout.cell + _GAP)
        _draw_picture(canvas, picture, layout, left, y)


def _draw_picture(canvas: Image.Image, picture: Picture, layout: _Layout, x: int, y: int) -> None:
    """A picture with its words below."""
    pen = ImageDraw.Draw(canvas)
    shown = _to_shown_size(picture.pixels)
    canvas.paste(shown, (x, y))
    frame = (x - 1, y - 1, x + shown.width, y + shown.height)
    if picture.answers and picture.answers[0].right is False:
        dash(pen, frame)
    else:
        pen.rectangle(frame, outline=RULE)
    y += layout.picture
    if picture.shares:
        _draw_shares(pen, picture.shares, x, y + 7, layout.cell)
    y += layout.shares + 7
    for number, answer in enumerate(picture.answers):
        place = y + number * (_LINE_HEIGHT + 1)
        _draw_answer(pen, answer, x, place, layout.cell, first=number == 0)


def _shown_size(pixels: np.ndarray) -> tuple[int, int]:
    """Width and height on the sheet: enlarged by a whole factor, or reduced."""
    height, width = pixels.shape[1:]
    factor = _LARGEST_PICTURE // max(height, width)
    if factor:
        return width * factor, height * factor
    scale = _LARGEST_PICTURE / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _to_shown_size(pixels: np.ndarray) -> Image.Image:
    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    size = _shown_size(pixels)
    larger = size[0] >= image.width
    resampling = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return image.resize(size, resampling).convert("RGB")


def _draw_shares(
    pen: ImageDraw.ImageDraw, shares: Sequence[Share], x: int, y: int, width: int
) -> None:
    """A bar split by the shares, and a line of words for each class."""
    start = 0.0
    for share, colour in zip(shares, SHARES, strict=False):
        bar(pen, x + round(start * width), y, round(share.share * width), 5, colour)
        start += share.share
    for number, share in enumerate(shares):
        middle = y + 18 + number * _LINE_HEIGHT
        sign(pen, f"share {number}", x, middle)
        _name_and_per_cent(pen, share.name, share.share, x, middle, width, INK)


def _draw_answer(
    pen: ImageDraw.ImageDraw, answer: Answer, x: int, y: int, width: int, *, first: bool
) -> None:
    """Class and per cent, over a bar as long as the teacher was sure."""
    verdict = "right" if answer.right else "wrong" if first and answer.right is False else ""
    middle = y + _LINE_HEIGHT // 2
    bar(pen, x, y, width, _LINE_HEIGHT, TRACK)
    bar(pen, x, y, round(answer.probability * width), _LINE_HEIGHT, BARS[verdict])
    sign(pen, verdict, x, middle)
    ink = {"right": RIGHT, "wrong": WRONG}.get(verdict, INK)
    _name_and_per_cent(pen, answer.name, answer.probability, x, middle, width, ink)


def _name_and_per_cent(
    pen: ImageDraw.ImageDraw, name: str, share: float, x: int, y: int, width: int, ink: str
) -> None:
    per_cent = "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
    room = width - 20 - font(SMALL).getlength(per_cent) - 9
    write(pen, x + 20, y, fit(name, SMALL, room), ink)
    write(pen, x + width - 4, y, per_cent, ink, anchor="rm")


def _legend(sheet: Sheet) -> Iterator[Entry]:
    pictures = _pictures(sheet)
    mixed = any(picture.shares for picture in pictures)
    answers = [answer for picture in pictures for answer in picture.answers]
    if mixed:
        yield "share 0", "share of the row's own class"
        yield "share 1", "share of its partner's class"
    if answers:
        yield "answer", "the teacher's first answers, probability at temperature 1"
    if any(answer.right is not None for answer in answers):
        yield "right", "the class with the larger share" if mixed else "the true class"
        yield "wrong", "first answer is another class: dashed frame"
