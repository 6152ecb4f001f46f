"""One row a name, with signs along it."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdscale.report.charts.axes import Axis, Field
from kdscale.report.charts.svg import LINE_HEIGHT, Style, fitted, line, mark, text, width_of

_ROW = 22


@dataclass(frozen=True, slots=True)
class Dot:
    """A value, and what it is of."""

    style: Style
    words: str
    value: float
    size: float = 4.5


@dataclass(frozen=True, slots=True)
class Dots:
    """Values by name."""

    rows: Sequence[tuple[str, Sequence[Dot]]]
    axis: Axis

    def __call__(self, width: int) -> tuple[int, Markup]:
        """A `Drawing`."""
        widest = max(width_of(name) for name, _ in self.rows) + 4
        left = min(widest, 0.42 * width) + 12
        top = LINE_HEIGHT + 4
        bottom = top + 4 + _ROW * len(self.rows)
        plane = Field(left, top, width - 16, bottom, self.axis, self.axis)
        parts = [self._ticks(plane)]
        for row, (name, dots) in enumerate(self.rows):
            y = top + _ROW * (row + 0.5) + 2
            parts.append(fitted(name, left - 12, left - 10, y, anchor="end"))
            parts.append(_row(plane, dots, y))
        return round(bottom + LINE_HEIGHT + 6), Markup("").join(parts)

    def _ticks(self, plane: Field) -> Markup:
        ticks = self.axis.scale.ticks(5)
        words = self.axis.words(ticks)
        parts = []
        for tick in ticks:
            x = plane.across(tick)
            parts.append(line(x, plane.top, x, plane.bottom, "grid"))
            parts.append(text(words(tick), x, plane.top - LINE_HEIGHT / 2 - 2, anchor="middle"))
        below = plane.bottom + LINE_HEIGHT / 2 + 2
        parts.append(text(self.axis.title, plane.right, below, kind="axis", anchor="end"))
        return Markup("").join(parts)


def _row(plane: Field, dots: Sequence[Dot], y: float) -> Markup:
    places = [plane.across(dot.value) for dot in dots]
    parts = [line(min(places), y, max(places), y, "guide")]
    for dot, x in zip(dots, places, strict=True):
        parts.append(mark(dot.style, x, y, dot.size, dot.words))
    return Markup("").join(parts)
