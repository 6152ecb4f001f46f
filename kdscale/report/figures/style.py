"""Colours, markers and matplotlib settings of all charts."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdscale.report.entry import Entry
from kdscale.report.model import Comparison

COLOURS = {
    "paper": ("#fbfbf9", "#0f1318"),
    "ink": ("#1c2128", "#e8ebef"),
    "soft": ("#545d68", "#a3adb8"),
    "grid": ("#e9ebee", "#262d36"),
    "base": ("#848d97", "#6b7682"),
    "cache": ("#0067b1", "#5fb2ee"),
    "online": ("#008060", "#35c99b"),
    "alone": ("#c04a00", "#f29b54"),
    "teacher": ("#2b323b", "#b6bfc9"),
    "many-3": ("#a3367f", "#e58cc4"),
    "many-4": ("#8a6500", "#e0c04c"),
    "many-5": ("#2b83a8", "#9ad7e8"),
    "many-6": ("#4b5563", "#b6c0cc"),
    "step-0": ("#f3f5f7", "#1d242c"),
    "step-1": ("#dfeaf5", "#1b2f44"),
    "step-2": ("#c3d9ee", "#1c3f60"),
    "step-3": ("#9cc1e3", "#1f527f"),
    "step-4": ("#5f9bd0", "#2a6ba3"),
    "step-5": ("#1f6fb5", "#5c9fd6"),
    "step-6": ("#0d5596", "#8fc3ec"),
    "step-7": ("#083c6d", "#c3e1f8"),
    "ink-high": ("#ffffff", "#0b1118"),
}
"""Light and dark colour of each CSS variable; charts are drawn with the light one."""
LIGHT = {name: light for name, (light, _) in COLOURS.items()}

FONT_SIZE = 12
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdscale",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["base"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.titlecolor": LIGHT["soft"],
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["base"],
    "ytick.color": LIGHT["base"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.0,
    "path.simplify": True,
    "axes.formatter.useoffset": False,
}
"""matplotlib's settings while a chart is drawn and written."""


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """Colour, marker and dashes of a series: no two series agree in colour and marker."""

    colour: str
    marker: str
    dashes: str

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a line with markers."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dashes}


_KINDS = {
    "cache": SeriesStyle(LIGHT["cache"], "o", "-"),
    "online": SeriesStyle(LIGHT["online"], "D", "--"),
    "alone": SeriesStyle(LIGHT["alone"], "s", "-."),
    "teacher": SeriesStyle(LIGHT["teacher"], "^", ":"),
}
_MANY = ("cache", "alone", "online", "many-3", "many-4", "many-5", "many-6")
_MARKERS, _DASHES = "osD^vP", ("-", "--", "-.", ":")


def style_of_kind(kind: str) -> SeriesStyle:
    """Return the style of a kind of model, where each kind has one series."""
    return _KINDS[kind]


def style_of_number(number: int) -> SeriesStyle:
    """Return the style of one series among many: colours repeat after seven, with other markers."""
    turn = number % len(_MANY) + number // len(_MANY)
    colour = LIGHT[_MANY[number % len(_MANY)]]
    return SeriesStyle(colour, _MARKERS[turn % 6], _DASHES[turn % 4])


def styled_entries(study: Comparison, wanted: Iterable[Entry]) -> list[tuple[SeriesStyle, Entry]]:
    """Return the wanted entries in the study's order, each with its style in all charts."""
    kinds = [entry.kind for entry in study.entries]
    if len(set(kinds)) == len(kinds):
        styles = [style_of_kind(kind) for kind in kinds]
    else:
        styles = [style_of_number(number) for number in range(len(kinds))]
    chosen = {id(entry) for entry in wanted}
    pairs = zip(styles, study.entries, strict=True)
    return [(style, entry) for style, entry in pairs if id(entry) in chosen]


def letters_of(text: str) -> int:
    """Return the width of a text in Latin letters: East Asian ones count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shortened_label(text: str, width: int) -> str:
    """Cut a text to the width of about `width` Latin letters, with an ellipsis."""
    used = 0
    for place, letter in enumerate(text):
        used += letters_of(letter)
        if used > width:
            return f"{text[:place].rstrip()}…"
    return text


def compact_number(value: float) -> str:
    """Return a number in few letters: `0.002`, `5`, `270k`, `1.2M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}"
