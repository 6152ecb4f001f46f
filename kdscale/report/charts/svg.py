"""Elements of SVG, escaped, and how wide words are."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

FONT_SIZE = 13
"""Pixels of a drawing, which is shown at about its own size."""
LINE_HEIGHT = 18


_OPEN, _OPEN_EMPTY, _WHOLE = Markup("<{}{}>"), Markup("<{}{}/>"), Markup("{}{}</{}>")
_ATTRIBUTE = Markup(' {}="{}"')


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An element; `fill_opacity=0.5` becomes `fill-opacity="0.5"`, None is left out."""
    written = Markup("").join(
        _ATTRIBUTE.format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    if not children:
        return _OPEN_EMPTY.format(name, written)
    return _WHOLE.format(_OPEN.format(name, written), Markup("").join(children), name)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(words: str, x: float, y: float, *, kind: str = "label", anchor: str = "start") -> Markup:
    """A line of words whose middle line is at `y`."""
    return element("text", escape(words), x=x, y=y + 4.5, class_=kind, text_anchor=anchor)


def fitted(words: str, room: float, x: float, y: float, *, anchor: str = "start") -> Markup:
    """Words cut to `room` pixels; all of them are told to who points at them."""
    cut = fit(words, room)
    if cut == words:
        return text(words, x, y, anchor=anchor)
    whole = element("title", escape(words))
    return element("text", whole, escape(cut), x=x, y=y + 4.5, class_="label", text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def polyline(points: Iterable[tuple[float, float]], kind: str) -> Markup:
    """A line through points."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=d, class_=kind)


# --------------------------------------------------------------------------- words

_NARROW, _WIDE = set("iIjl|.,:;'!()[]ftr "), set("mwMW@%<>=+~&#")


def width_of(words: str, size: float = FONT_SIZE) -> float:
    """Pixels that words take in the page's letters, rather too many than too few."""
    return size * sum(_share(letter) for letter in words)


def _share(letter: str) -> float:
    """Width of a letter, in parts of the font's size."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.05
    if letter in _NARROW:
        return 0.4
    return 0.98 if letter in _WIDE else 0.76 if letter.isupper() else 0.65


def fit(words: str, room: float) -> str:
    """As much of the words as `room` pixels hold, with an ellipsis where some are left out."""
    if width_of(words) <= room:
        return words
    while words and width_of(words + "…") > room:
        words = words[:-1]
    return words.rstrip() + "…"


# --------------------------------------------------------------------------- marks


@dataclass(frozen=True, slots=True)
class Style:
    """How a series looks: no two agree in both, so that colour alone tells nothing apart."""

    colour: str
    """A class of the style sheet."""
    shape: str
    dash: str = ""
    """Class of the line."""


_SHAPES = {
    "circle": "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z",
    "square": "M-.88-.88H.88V.88H-.88Z",
    "diamond": "M0-1.25L1.25 0L0 1.25L-1.25 0Z",
    "triangle": "M0-1.2L1.15 .9H-1.15Z",
    "point-down": "M0 1.2L1.15-.9H-1.15Z",
    "cross": "M-.4-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
}
_STYLES = {
    "cache": Style("kind-cache", "circle"),
    "online": Style("kind-online", "diamond", "dashed"),
    "alone": Style("kind-alone", "square", "long-dashed"),
    "teacher": Style("kind-teacher", "triangle", "dotted"),
}
_COLOURS = 7


def style_of(kind: str) -> Style:
    """Of a kind of model, where each kind comes once."""
    return _STYLES[kind]


def style_of_many(number: int) -> Style:
    """Of one series among many: colours go round, then shapes."""
    shapes, dashes = list(_SHAPES), ("", "dashed", "long-dashed", "dotted")
    turn = number % _COLOURS + number // _COLOURS
    return Style(f"many-{number % _COLOURS}", shapes[turn % 6], dashes[turn % 4])


def mark(style: Style, x: float, y: float, size: float = 5, words: str = "") -> Markup:
    """A series' sign, which says `words` to who points at it."""
    title = [element("title", escape(words))] if words else []
    place = f"translate({x:.1f} {y:.1f}) scale({size:.2f})"
    shape = _SHAPES[style.shape]
    return element("path", *title, d=shape, transform=place, class_=f"mark {style.colour}")


def key(style: Style, *, with_line: bool) -> Markup:
    """A legend's sign."""
    width = 28 if with_line else 14
    parts = [mark(style, width / 2, 8)]
    if with_line:
        parts.insert(0, line(0, 8, width, 8, f"series {style.colour} {style.dash}"))
    box = {"width": width, "height": 16, "viewBox": f"0 0 {width} 16"}
    return element("svg", *parts, class_="key", aria_hidden="true", **box)
