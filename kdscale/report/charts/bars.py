"""Bars with their words above them and their value beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdscale.report.charts.svg import LINE_HEIGHT, Style, element, fitted, text, width_of

_BAR, _GAP = 16, 18
_BOLD = 1.12  # how much wider bold letters are


@dataclass(frozen=True, slots=True)
class Bar:
    """Parts that add up, from left to right."""

    style: Style
    words: str
    parts: Sequence[float]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars from zero, each with its value in words."""

    bars: Sequence[tuple[Bar, str]]

    def __call__(self, width: int) -> tuple[int, Markup]:
        """A `Drawing`."""
        room = width - _BOLD * max(width_of(words) for _, words in self.bars) - 10
        longest = max(sum(bar.parts) for bar, _ in self.bars) or 1
        parts, y = [], 0.0
        for bar, words in self.bars:
            parts.append(fitted(bar.words, width, 0, y + LINE_HEIGHT / 2))
            end = self._parts(bar, y + LINE_HEIGHT + 2, room / longest, parts)
            parts.append(text(words, end + 8, y + LINE_HEIGHT + 2 + _BAR / 2, kind="label strong"))
            y += LINE_HEIGHT + 2 + _BAR + _GAP
        return round(y - _GAP + 4), Markup("").join(parts)

    @staticmethod
    def _parts(bar: Bar, y: float, scale: float, drawn: list[Markup]) -> float:
        """Draws the parts; returns where the last one ends."""
        x = 0.0
        for number, value in enumerate(bar.parts):
            kind = f"bar {bar.style.colour}" + (" first" if len(bar.parts) > number + 1 else "")
            length = max(value * scale, 1.5)
            drawn.append(element("rect", x=x, y=y, width=length, height=_BAR, class_=kind))
            x += length
        return x
