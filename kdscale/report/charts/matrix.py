"""A square of numbers in steps of colour: with its names and numbers, or as a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kdscale.report.charts.axes import round_step
from kdscale.report.charts.svg import FONT_SIZE, LINE_HEIGHT, element, fitted, line, text, width_of

_MOST_NAMED, _MOST_ROWS = 20, 250
_TRUE = "true ↓"


def step_of(share: float) -> int:
    """The colour of a share, class `step-1` to `step-7` of the style sheet; 0 has none.

    Rare ones are told apart best, as they are what one looks for.
    """
    if share <= 0:
        return 0
    edges = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
    return 1 + sum(share >= edge for edge in edges)


@dataclass(frozen=True, slots=True)
class NamedMatrix:
    """Up to 20 rows, each with its name; cells show whole per cents of their row."""

    names: Sequence[str]
    shares: Sequence[Sequence[float]]

    def __call__(self, width: int) -> tuple[int, Markup]:
        """A `Drawing`."""
        number = len(self.names)
        widest = max(width_of(name) for name in self.names) + width_of("00 ")
        left = max(min(widest, 0.3 * width), width_of(_TRUE)) + 12
        cell = min((width - left - 2) / number, 44.0)
        high = max(min(cell, 30.0), LINE_HEIGHT)
        top = 2 * LINE_HEIGHT + 4
        parts = [text("predicted class →", left, LINE_HEIGHT / 2, kind="axis")]
        parts.append(text(_TRUE, left - 10, 1.5 * LINE_HEIGHT, kind="axis", anchor="end"))
        every = 1 if cell >= width_of(str(number - 1)) + 4 else 2 if cell >= 14 else 5
        for place in range(0, number, every):
            x = left + (place + 0.5) * cell
            parts.append(text(str(place), x, top - LINE_HEIGHT / 2 - 2, anchor="middle"))
        for row, name in enumerate(self.names):
            y = top + row * high
            label = name if name == str(row) else f"{row} {name}"
            parts.append(fitted(label, left - 12, left - 10, y + high / 2, anchor="end"))
            for column, share in enumerate(self.shares[row]):
                words = f"{name} taken for {self.names[column]}: {100 * share:.1f} %"
                parts.append(_cell(left + column * cell, y, cell, high, share, words))
        return round(top + number * high + 4), Markup("").join(parts)


def _cell(x: float, y: float, width: float, height: float, share: float, words: str) -> Markup:
    step = step_of(share)
    title = element("title", escape(words))
    box = element(
        "rect",
        title,
        x=x + 0.5,
        y=y + 0.5,
        width=width - 1,
        height=height - 1,
        class_=f"step-{step}",
    )
    number = f"{100 * share:.0f}"
    if step == 0 or number == "0" or width < width_of("100", FONT_SIZE) - 1:
        return box
    return box + text(number, x + width / 2, y + height / 2, kind=f"ink-{step}", anchor="middle")


@dataclass(frozen=True, slots=True)
class MatrixMap:
    """More rows than names have room for: each cell a dot of colour."""

    shares: Mapping[tuple[int, int], float]
    """By row and column; 0 where there is none."""
    num_rows: int
    num_classes: int
    """Of which a row may hold several."""

    def __call__(self, width: int) -> tuple[int, Markup]:
        """A `Drawing`."""
        left, top = width_of(str(self.num_classes)) + 12.0, 2.0 * LINE_HEIGHT + 2
        side = width - left - 10
        cells: dict[int, list[str]] = {}
        for (row, column), share in self.shares.items():
            cells.setdefault(step_of(share), []).append(f"M{column} {row}h1v1h-1z")
        dots = [element("path", d="".join(d), class_=f"step-{s}") for s, d in sorted(cells.items())]
        place = f"translate({left:.2f} {top:.2f}) scale({side / self.num_rows:.4f})"
        parts = [
            text("predicted class →", left, LINE_HEIGHT / 2, kind="axis"),
            element("rect", x=left, y=top, width=side, height=side, class_="step-0"),
            element("g", *dots, transform=place),
            *self._ticks(left, top, side),
        ]
        return round(top + side + 10), Markup("").join(parts)

    def _ticks(self, left: float, top: float, side: float) -> list[Markup]:
        every = int(round_step(self.num_classes / 6))
        parts = []
        for number in range(0, self.num_classes, every):
            place = side * number / self.num_classes
            parts.append(line(left - 4, top + place, left, top + place, "base"))
            parts.append(text(str(number), left - 7, top + place, anchor="end"))
            if number:
                parts.append(line(left + place, top - 4, left + place, top, "base"))
                parts.append(
                    text(str(number), left + place, top - LINE_HEIGHT / 2 - 2, anchor="middle")
                )
        return parts


def matrix_drawing(
    names: Sequence[str], confusion: Sequence[Sequence[int]]
) -> NamedMatrix | MatrixMap:
    """The drawing that has room for this many classes."""
    if len(names) <= _MOST_NAMED:
        shares = [[cell / (sum(row) or 1) for cell in row] for row in confusion]
        return NamedMatrix(names, shares)
    return _map_of(confusion)


def _map_of(confusion: Sequence[Sequence[int]]) -> MatrixMap:
    """A map of at most 250 rows: the largest share of a block stands for it, so none is lost."""
    size = -(-len(confusion) // _MOST_ROWS)
    shares: dict[tuple[int, int], float] = {}
    for label, row in enumerate(confusion):
        samples = sum(row)
        for prediction, count in enumerate(row):
            if count:
                block = label // size, prediction // size
                shares[block] = max(shares.get(block, 0.0), count / samples)
    return MatrixMap(shares, -(-len(confusion) // size), len(confusion))
