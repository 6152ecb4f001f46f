"""A drawing with its words: title, legend, what it shows, its values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kdscale.report.charts.svg import Style, element, key

WIDE, NARROW = 520, 340
"""Pixels that a drawing is made for; the page shows one of the two."""


@dataclass(frozen=True, slots=True)
class Table:
    """Values as text: the first column names a row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All that the page shows of one drawing."""

    name: str
    """Letters and hyphens, once on a page."""
    title: str
    summary: str
    """What is to be seen, for who cannot see it."""
    wide: Markup
    narrow: Markup
    legend: Sequence[tuple[Markup, str]] = ()
    note: str = ""
    table: Table | None = None
    spans: bool = False
    """Whether it takes the page's whole width."""


Drawing = Callable[[int], tuple[int, Markup]]
"""From a width to a height and what is drawn."""


def chart(
    name: str,
    title: str,
    summary: str,
    draw: Drawing,
    *,
    series: Sequence[tuple[Style, str]] = (),
    lines: bool = False,
    note: str = "",
    table: Table | None = None,
    wide: int = WIDE,
) -> Chart:
    """A chart drawn for both widths.

    Args:
        name: letters and hyphens, once on a page.
        title: its heading.
        summary: what is to be seen, for who cannot see it.
        draw: from a width to a height and what is drawn.
        series: how each looks, and its name.
        lines: whether series are lines.
        note: below the drawing.
        table: its values.
        wide: pixels on a wide screen.
    """
    return Chart(
        name=name,
        title=title,
        summary=summary,
        wide=_svg(f"{name}-wide", title, summary, wide, draw),
        narrow=_svg(f"{name}-narrow", title, summary, NARROW, draw),
        legend=[(key(style, with_line=lines), words) for style, words in series],
        note=note,
        table=table,
        spans=wide > WIDE,
    )


def _svg(name: str, title: str, summary: str, width: int, draw: Drawing) -> Markup:
    height, drawn = draw(width)
    return element(
        "svg",
        element("title", escape(title), id=f"{name}-title"),
        element("desc", escape(summary), id=f"{name}-desc"),
        drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
