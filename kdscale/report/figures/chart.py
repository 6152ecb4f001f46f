"""A chart with its words, as inline SVG for the page and as PNG and PDF for papers."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kdscale.report.figures.style import (
    COLOURS,
    SETTINGS,
    compact_number,
    letters_of,
    shortened_label,
)
from kdscale.report.table import Table

WIDTH = 328
"""Pixels across a chart; a telephone shows it at that size, wider screens up to 1.25 times it."""
_DPI = 72  # one point of matplotlib is one pixel of the page
_LEGEND_LETTERS = 38
_RIGHT = 12  # pixels beside the axes
_LETTER = 8.2  # pixels of a letter, rather too many than too few
FEW_NAMES = 3
"""Names along the bottom that stand upright; more of them are slanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of a report: how it is drawn, and its words."""

    name: str
    """Identifier that is unique on the page: letters, digits and hyphens."""
    title: str
    summary: str
    """Description for screen readers."""
    draw: Callable[[Axes], None]
    """Draws the data on empty axes."""
    height: int = 260
    """Pixels."""
    wide: int | None = None
    """Pixels across the version for wide screens, where there are two versions; else None."""
    note: str = ""
    """Text below the chart."""
    table: Table | None = None
    """The values."""


def svg_of(chart: Chart, width: int = WIDTH) -> Markup:
    """Return a chart as inline SVG whose colours are the page's CSS variables."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _settings():
        _figure(chart, width).savefig(buffer, format="svg", dpi=_DPI, metadata=nothing)
    name = f"{chart.name}-{width}"
    svg = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))

    def adapt(tag: re.Match[str]) -> str:
        return _adapted(tag[0], name, referred)

    height = round(width * chart.height / WIDTH) if chart.wide else chart.height
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">'
        f'{escape(chart.title)}</title><desc id="{name}-desc">{escape(chart.summary)}</desc>'
    )
    return Markup(head + re.sub(r"<[^>]*>", adapt, svg).strip())  # noqa: S704 matplotlib escapes


_VARIABLES = {light: f"var(--{name})" for name, (light, _) in reversed(COLOURS.items())}


def _adapted(tag: str, name: str, referred: set[str]) -> str:
    """Return a tag of matplotlib's SVG as it can stand on a page with other drawings."""
    tag = tag.replace("xlink:href=", "href=").replace("\n", " ")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"#[0-9a-f]{6}\b(?=[;\"])", lambda one: _VARIABLES.get(one[0], one[0]), tag)
    tag = re.sub(
        r' id="([^"]*)"', lambda one: f' id="{name}-{one[1]}"' if one[1] in referred else "", tag
    )
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", tag)


def image_of(chart: Chart, kind: Literal["png", "pdf"]) -> bytes:
    """Return a chart for papers, without its title: PNG at 300 dots per inch, PDF with fonts."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with _settings():
        figure = _figure(chart, chart.wide or WIDTH)
        figure.savefig(buffer, format=kind, dpi=300, metadata=metadata, facecolor="white")
    return buffer.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcParams.update(SETTINGS)
        warnings.simplefilter("ignore", UserWarning)  # letters that its font lacks; browsers have
        yield


def _figure(chart: Chart, width: int) -> Figure:
    height = round(width * chart.height / WIDTH) if chart.wide else chart.height
    figure = Figure(figsize=(width / _DPI, height / _DPI), facecolor="none")
    axes = figure.add_subplot()
    chart.draw(axes)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        short = [shortened_label(label, _LEGEND_LETTERS) for label in labels]
        figure.legend(handles, short, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    _set_margins(axes, width, height, top=18 * len(labels) + (24 if axes.axison else 4))
    return figure


def _set_margins(axes: Axes, width: int, height: int, top: int) -> None:
    """Leave room for the labels of the axes: quicker than a layout that measures all text."""
    left = bottom = 4.0
    if axes.axison:
        names = _names(axes.yaxis)
        left = 14 + _LETTER * max(map(letters_of, names)) if names else 54
        bottom = 44 if len(_names(axes.xaxis)) <= FEW_NAMES else 88
    size = (width - left - _RIGHT, height - top - bottom)
    axes.set_position((left / width, bottom / height, size[0] / width, size[1] / height))


def _names(axis: Axis) -> list[str]:
    """Return the tick labels that are names; empty for an axis of numbers."""
    fixed = isinstance(axis.get_major_locator(), FixedLocator)
    if not (fixed and isinstance(axis.get_major_formatter(), FuncFormatter)):
        return []
    return [label.get_text() for label in axis.get_ticklabels()]


# --------------------------------------------------------------------------- axes


def set_scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Give an axis round numbers: by factors where the largest value is 20 times the smallest."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = min(values), max(values)
    if low > 0 and high / low >= 20:
        axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high / low < 500 else (1.0,)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if high >= 10_000 or axis.get_scale() == "log":
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact_number(value)))


def set_title_above(axes: Axes, text: str) -> None:
    """Write what the vertical axis measures above it, where it takes no width."""
    axes.set_title(shortened_label(text, 44))
