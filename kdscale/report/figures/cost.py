"""What accuracy costs whoever runs the model: parameters and latency."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from kdscale.formatting import NOTHING
from kdscale.report.charts.axes import Axis, compact, factors_text, scale_over
from kdscale.report.charts.chart import Chart, Table, chart
from kdscale.report.charts.lines import Plane, Point
from kdscale.report.figures.styles import PER_CENT, with_styles
from kdscale.report.model import Study

_NOTE = "Whiskers: one standard deviation over seeds. Models of one size stand side by side."


def accuracy_by_parameters(study: Study, prefix: str) -> Chart | None:
    """Top-1 against the number of parameters."""
    places = {id(entry): size for entry in study.entries if (size := entry.mean("num_parameters"))}
    return _accuracy_against(study, prefix, places, _Cost("parameters", "parameters", compact))


def accuracy_by_latency(study: Study, prefix: str) -> Chart | None:
    """Top-1 against the time of one image."""
    places = {
        id(entry): 1000 * mean(seconds)
        for entry in study.entries
        if (seconds := entry.latencies(1, "median_seconds"))
    }
    words = _Cost("latency", "latency of one image, ms, median", factors_text)
    return _accuracy_against(study, prefix, places, words)


@dataclass(frozen=True, slots=True)
class _Cost:
    """What accuracy is set against."""

    name: str
    title: str
    """Of the axis, with its unit."""
    words: Callable[[float], str]
    """For one of its values."""


def _accuracy_against(
    study: Study, prefix: str, places: Mapping[int, float], cost: _Cost
) -> Chart | None:
    """Top-1 of the entries that have a place on another axis, by their identity."""
    shown = [
        (style, entry)
        for style, entry in with_styles(study, study.entries)
        if id(entry) in places and entry.values("top1_accuracy")
    ]
    if len(shown) < 2:
        return None
    points, rows = [], []
    for style, entry in shown:
        values = [100 * value for value in entry.values("top1_accuracy")]
        spread = stdev(values) if len(values) > 1 else 0.0
        x, y = places[id(entry)], mean(values)
        label = f"{entry.label}: {y:.2f} %, {cost.words(x)}"
        points.append(Point(style, label, x, y, spread))
        rows.append(
            [entry.label, cost.words(x), f"{y:.2f}", f"{spread:.2f}" if spread else NOTHING]
        )
    heights = [h for p in points for h in (p.y - p.spread, p.y + p.spread)]
    places_x = [point.x for point in points]
    across = scale_over(places_x, logarithmic=None, within=(0, math.inf), room=0.14)
    plane = Plane(
        Axis(cost.title, across, lambda _: cost.words),
        Axis("top-1 on the test split, %", scale_over(heights, within=PER_CENT)),
        points=points,
        dodge=True,
    )
    best = max(points, key=lambda point: point.y)
    return chart(
        f"{prefix}accuracy-{cost.name}",
        f"Accuracy against {cost.name}",
        f"{len(points)} models; highest: {best.words}.",
        plane,
        series=[(style, entry.label) for style, entry in shown],
        note=_NOTE if any(point.spread for point in points) else "",
        table=Table(["model", cost.title, "top-1 %", "± over seeds"], rows),
    )
