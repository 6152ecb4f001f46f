"""Lines over an axis, and points on a plane."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from kdscale.report.charts.axes import Axis, Field, field_of
from kdscale.report.charts.svg import Style, line, mark, polyline

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A series: one strong line, and thin ones for what it is the mean of."""

    style: Style
    name: str
    points: Points
    thin: Sequence[Points] = ()
    marked: bool = False
    """Whether each point carries the series' sign."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the plane, with what it spreads over."""

    style: Style
    words: str
    x: float
    y: float
    spread: float = 0.0
    """Up and down, one standard deviation."""
    size: float = 5.5


@dataclass(frozen=True, slots=True)
class Plane:
    """Axes and what is drawn between them."""

    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    points: Sequence[Point] = ()
    guides: Sequence[Points] = field(default=())
    """Thin lines to compare with."""
    dodge: bool = False
    """Set points at the same place along the bottom beside each other."""
    height: int = 300

    def __call__(self, width: int) -> tuple[int, Markup]:
        """A `Drawing`."""
        height = self.height if width > 400 else round(0.88 * self.height)
        plane, axes = field_of(width, height, self.x, self.y)
        parts = [axes]
        parts += [polyline(_inside(plane, points), "guide") for points in self.guides]
        for one in self.lines:
            for points in one.thin:
                parts.append(_line(plane, points, f"thin {one.style.colour}"))
        for one in self.lines:
            kind = f"series {one.style.colour} {one.style.dash}"
            parts.append(_line(plane, one.points, kind))
            if one.marked:
                parts += [mark(one.style, *plane.at(x, y), 4) for x, y in one.points]
        beside = _beside([plane.across(point.x) for point in self.points]) if self.dodge else None
        for number, point in enumerate(self.points):
            parts.append(_point(plane, point, beside[number] if beside else 0.0))
        return height, Markup("").join(parts)


def _inside(plane: Field, points: Points) -> list[tuple[float, float]]:
    return [plane.at(x, y) for x, y in points]


def _line(plane: Field, points: Points, kind: str) -> Markup:
    shown = thinned([plane.at(x, y) for x, y in points if plane.holds(x, y)])
    return polyline(shown, kind) if len(shown) > 1 else Markup("")


def _beside(places: Sequence[float]) -> list[float]:
    """Pixels by which points are moved aside, so that none hides another in the same place."""
    moved = []
    for number, place in enumerate(places):
        near = [other for other, x in enumerate(places) if abs(x - place) < _STEP]
        moved.append(_STEP * (near.index(number) - (len(near) - 1) / 2))
    return moved


_STEP = 14.0


def _point(plane: Field, point: Point, aside: float) -> Markup:
    x, y = plane.at(point.x, point.y)
    x = min(max(x + aside, plane.left + 6), plane.right - 6)
    parts = []
    if point.spread:
        low, high = plane.up(point.y - point.spread), plane.up(point.y + point.spread)
        low, high = min(low, plane.bottom), max(high, plane.top)
        kind = f"whisker {point.style.colour}"
        parts = [line(x, low, x, high, kind)]
        parts += [line(x - 4, end, x + 4, end, kind) for end in (low, high)]
    parts.append(mark(point.style, x, y, point.size, point.words))
    return Markup("").join(parts)


def thinned(points: Sequence[tuple[float, float]], least: float = 1.0) -> list[tuple[float, float]]:
    """Points without those nearer than `least` pixels to the one before, but for the last.

    A run's log may hold 100,000 of them, and a screen shows 500.
    """
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if not kept or x - kept[-1][0] >= least:
            kept.append((x, y))
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept
