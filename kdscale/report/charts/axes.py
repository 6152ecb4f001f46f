"""From values to pixels, and the round numbers that stand along an axis."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from kdscale.report.charts.svg import LINE_HEIGHT, line, text, width_of


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high`, linear or by factors."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    """Whether there is nothing between whole numbers."""

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        low, high, value = (self._inner(one) for one in (self.low, self.high, value))
        return (value - low) / (high - low)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self, most: int) -> list[float]:
        """At most `most` (2 or more) round values within the scale; of factors about as many."""
        return self._factors(most) if self.logarithmic else self._steps(most)

    def _steps(self, most: int) -> list[float]:
        """Multiples of the smallest round step that gives no more than `most`."""
        step = round_step((self.high - self.low) / most)
        ticks = self._multiples(step)
        while len(ticks) > most:
            step = round_step(1.01 * step)
            ticks = self._multiples(step)
        return ticks

    def _multiples(self, step: float) -> list[float]:
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        ticks = (number * step for number in range(first, last + 1))
        return list(dict.fromkeys(ticks))  # where values differ by their last bits alone

    def _factors(self, most: int) -> list[float]:
        finest = [self._digits(digits) for digits in ((1, 2, 5), (1, 3), (1,))]
        found = next((ticks for ticks in finest if len(ticks) <= most), finest[-1])
        return found[:: -(-len(found) // most)] if found else []

    def _digits(self, digits: tuple[int, ...]) -> list[float]:
        """Numbers within the scale whose only digit is one of these."""
        first, last = (math.floor(math.log10(end)) for end in (self.low, self.high))
        found = (digit * 10.0**decade for decade in range(first, last + 1) for digit in digits)
        return [one for one in found if self.low * (1 - 1e-9) <= one <= self.high * (1 + 1e-9)]


def round_step(step: float) -> float:
    """The next larger of 1, 2, 5, 10, 20, ..."""
    magnitude = 10.0 ** math.floor(math.log10(step))
    return next(d * magnitude for d in (1, 2, 5, 10) if d * magnitude >= step * (1 - 1e-9))


def scale_over(
    values: Iterable[float],
    *,
    from_zero: bool = False,
    within: tuple[float, float] = (-math.inf, math.inf),
    logarithmic: bool | None = False,
    whole: bool = False,
    room: float = 0.08,
) -> Scale:
    """A scale with room around values.

    Args:
        values: at least one.
        from_zero: begin at 0.
        within: never beyond.
        logarithmic: by factors; None for where the largest is 20 times the smallest or more.
        whole: values are whole numbers, and so are the ticks.
        room: share of their span that is left free at either end.
    """
    low, high = min(values := list(values)), max(values)
    if logarithmic is None:
        logarithmic = low > 0 and high / low >= 20
    if logarithmic:
        factor = max((high / low) ** room, 1.15)
        return Scale(low / factor, high * factor, True)
    if from_zero:
        return Scale(0, high * 1.06 or 1, whole=whole)
    free = room * (high - low) or 0.05 * abs(high) or 1
    bottom, top = max(low - free, within[0]), min(high + free, within[1])
    if bottom >= top:
        bottom, top = low - free, high + free
    return Scale(bottom, top, whole=whole)


# --------------------------------------------------------------------------- words for numbers


def plain(ticks: Sequence[float]) -> Callable[[float], str]:
    """Numbers with as many digits as tell the ticks apart."""
    steps = [b - a for a, b in pairwise(ticks)]
    digits = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 1
    return lambda value: f"{value:,.{digits}f}"


def factors(_: Sequence[float]) -> Callable[[float], str]:
    """Numbers of any size."""
    return factors_text


def factors_text(value: float) -> str:
    """`0.002`, `5`, `30,000`, `1e-05`."""
    if 100 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 1e-4 <= abs(value) < 100 or not value else f"{value:.0e}"


def compact(value: float) -> str:
    """A large number in few letters."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


Words = Callable[[Sequence[float]], Callable[[float], str]]


# --------------------------------------------------------------------------- a field to draw on


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a drawing."""

    title: str
    """What, and in which unit."""
    scale: Scale
    words: Words = plain


@dataclass(frozen=True, slots=True)
class Field:
    """The part of a drawing that holds the data, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        """Pixels from the left of the drawing."""
        return self.left + self.x.scale.share(value) * (self.right - self.left)

    def up(self, value: float) -> float:
        """Pixels from the top of the drawing."""
        return self.bottom - self.y.scale.share(value) * (self.bottom - self.top)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point."""
        return self.across(x), self.up(y)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies on the field."""
        slack = 1e-6
        shares = (self.x.scale.share(x), self.y.scale.share(y))
        return all(-slack <= share <= 1 + slack for share in shares)


def field_of(width: int, height: int, x: Axis, y: Axis) -> tuple[Field, Markup]:
    """A field with room for its axes' words, and those axes drawn."""
    ticks_y = y.scale.ticks(6)
    words_y = [y.words(ticks_y)(tick) for tick in ticks_y]
    left = max((width_of(one) for one in words_y), default=0) + 10
    field = Field(left, LINE_HEIGHT + 10, width - 14, height - 2 * LINE_HEIGHT - 8, x, y)
    parts = [text(y.title, 0, LINE_HEIGHT / 2 + 1, kind="axis")]
    for tick, words in zip(ticks_y, words_y, strict=True):
        parts.append(line(field.left, field.up(tick), field.right, field.up(tick), "grid"))
        parts.append(text(words, field.left - 8, field.up(tick), anchor="end"))
    parts += _along_the_bottom(field, width)
    return field, Markup("").join(parts)


def _along_the_bottom(field: Field, width: int) -> list[Markup]:
    parts = [line(field.left, field.bottom, field.right, field.bottom, "base")]
    ticks = _ticks_with_room(field)
    words = field.x.words(ticks)
    below = field.bottom + LINE_HEIGHT / 2 + 5
    for tick in ticks:
        x = field.across(tick)
        parts.append(line(x, field.bottom, x, field.bottom + 4, "base"))
        half = width_of(words(tick)) / 2
        parts.append(text(words(tick), min(max(x, half), width - half), below, anchor="middle"))
    parts.append(text(field.x.title, field.right, below + LINE_HEIGHT, kind="axis", anchor="end"))
    return parts


def _ticks_with_room(field: Field) -> list[float]:
    """As many round values as stand beside each other without touching."""
    room = field.right - field.left
    for most in range(8, 1, -1):
        ticks = field.x.scale.ticks(most)
        words = field.x.words(ticks)
        places = [(field.across(t), width_of(words(t)) / 2) for t in ticks]
        pairs = pairwise(places)
        if room and all(b - half_b - (a + half_a) >= 6 for (a, half_a), (b, half_b) in pairs):
            return ticks
    return field.x.scale.ticks(2)[:1]
