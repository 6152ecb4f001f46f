"""The signs of a sheet, drawn since the font has none of them, and its legend.

The colours differ for people who see few of them too, and no meaning rests on colour alone.
"""

from collections.abc import Iterable, Sequence

from PIL import ImageDraw

from kdscale.preview.lettering import SMALL, font, wrap, write

RULE, PAPER = "#d8dee4", "#ffffff"
TRACK = "#f3f5f7"
"""Behind a bar, so that a short one is seen to be one."""
RIGHT, WRONG = "#0550ae", "#b3360b"
BARS = {"right": "#c9dffa", "wrong": "#fbd6c4", "": "#dde2e7"}
"""Colours of bars, by the sign that stands on them."""
SHARES = ("#3d444d", "#e0a100")  # own, partner

Entry = tuple[str, str]
"""A sign, and what it means."""

_SPACE = 24  # between entries


def sign(pen: ImageDraw.ImageDraw, name: str, x: int, y: int) -> None:
    """A sign 20 pixels wide with its left end in the middle at (x, y); none without a name."""
    if name == "right":
        pen.line(((x + 4, y), (x + 8, y + 4), (x + 15, y - 5)), RIGHT, 2, joint="curve")
    elif name == "wrong":
        pen.line((x + 5, y - 4, x + 13, y + 4), WRONG, 2)
        pen.line((x + 5, y + 4, x + 13, y - 4), WRONG, 2)
    elif name == "answer":
        bar(pen, x, y - 7, 20, 14, TRACK)
        bar(pen, x, y - 7, 12, 14, BARS[""])
    elif name.startswith("share"):
        bar(pen, x, y - 5, 10, 10, SHARES[int(name[-1])])


def bar(pen: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, colour: str) -> None:
    """A filled box; nothing where it has no width."""
    if width:
        pen.rectangle((x, y, x + width - 1, y + height - 1), colour)


def dash(pen: ImageDraw.ImageDraw, frame: tuple[int, int, int, int]) -> None:
    """A dashed frame, three pixels thick, around a picture's thin one."""
    left, top, right, bottom = frame
    for x in range(left - 2, right + 1, 10):
        for y in (top - 2, bottom):
            pen.rectangle((x, y, min(x + 5, right + 2), y + 2), WRONG)
    for y in range(top - 2, bottom + 1, 10):
        for x in (left - 2, right):
            pen.rectangle((x, y, x + 2, min(y + 5, bottom + 2)), WRONG)


def set_in_lines(entries: Iterable[Entry], width: int) -> list[list[Entry]]:
    """As many entries a line as fit; a longer one goes on below itself, without a sign."""
    lines: list[list[Entry]] = []
    left = 0.0
    for name, words in entries:
        first, *others = wrap(words, SMALL, width - 24) or [""]
        if not lines or _width(first) - _SPACE > left:
            lines.append([])
            left = width
        lines[-1].append((name, first))
        left = left - _width(first) if not others else 0.0
        lines += [[("", other)] for other in others]
    return lines


def draw_entries(pen: ImageDraw.ImageDraw, entries: Sequence[Entry], x: float, y: int) -> None:
    """A line of the legend."""
    for name, words in entries:
        sign(pen, name, round(x), y)
        write(pen, x + 24, y, words)
        x += _width(words)


def _width(words: str) -> float:
    return 24 + font(SMALL).getlength(words) + _SPACE
