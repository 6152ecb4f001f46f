"""Training curves: losses, accuracy, learning rate, gradient norm, throughput."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from kdscale.report.figures.chart import Chart, set_scale, set_title_above
from kdscale.report.figures.style import style_of_kind, style_of_number, styled_entries
from kdscale.report.model import Comparison, SweepResults
from kdscale.report.table import Table
from kdscale.report.training_log import Curve

_FEWEST_POINTS = 3
"""Points of a curve below which there is nothing to see."""
_MOST_POINTS = 500
_CURVES = {
    "loss": ("Training loss", "loss"),
    "test": ("Test accuracy", "test top-1, %"),
    "validation": ("Validation accuracy", "validation top-1, %"),
    "learning_rate": ("Learning rate", "learning rate"),
    "gradient_norm": ("Gradient norm", "norm of all gradients before clipping"),
    "images_per_second": ("Throughput", "images/s"),
}
"""Title and axis by curve of the log."""
_PARTS = {"soft_loss": "soft loss", "hard_loss": "hard loss", "feature_loss": "feature loss"}


@dataclass(frozen=True, slots=True)
class _Series:
    """A line of a chart: the mean of several curves, and these."""

    label: str
    style: dict[str, Any]
    curve: Curve
    thin: Sequence[Curve] = field(default=())


def training_charts(study: Comparison, prefix: str) -> list[Chart]:
    """Return one chart for each quantity of the logs, each a line for each kind of model."""
    found = [
        _chart(f"{prefix}curve-{name.replace('_', '-')}", title, axis, _series_of(study, name))
        for name, (title, axis) in _CURVES.items()
    ]
    found.insert(1, _loss_parts(study, f"{prefix}curve-loss-parts"))
    return [chart for chart in found if chart is not None]


def _series_of(study: Comparison, name: str) -> list[_Series]:
    percent = 100.0 if name in ("test", "validation") else 1.0
    series = []
    for style, entry in styled_entries(study, study.entries):
        curves = [
            [(x, percent * y) for x, y in curve]
            for run in entry.runs
            if len(curve := run.curves.get(name, ())) >= _FEWEST_POINTS
        ]
        if curves:
            thin = curves if len(curves) > 1 else []
            series.append(_Series(entry.label, style.line, mean_curve(curves), thin))
    return series


def _loss_parts(study: Comparison, name: str) -> Chart | None:
    """The parts of the loss that the main student was trained with."""
    main = study.main
    series = []
    for number, (part, label) in enumerate(_PARTS.items()):
        curves = [
            curve for run in (main.runs if main else ())
            if len(curve := run.curves.get(part, ())) >= _FEWEST_POINTS
        ]  # fmt: skip
        if curves:
            thin = curves if len(curves) > 1 else []
            series.append(_Series(label, style_of_number(number).line, mean_curve(curves), thin))
    if len(series) < 2 or main is None:  # a loss of one part is the training loss
        return None
    return _chart(name, "Parts of the loss", f"loss of {main.phrase}", series)


def sweep_curves(sweep: SweepResults, prefix: str) -> list[Chart]:
    """Return the validation accuracy of each trial while it trained, the best one strong."""
    curves = {
        id(trial): [(x, 100 * y) for x, y in trial.run.curves.get("validation", ())]
        for trial in sweep.trials
    }
    best = sweep.best
    long = [curve for curve in curves.values() if len(curve) >= _FEWEST_POINTS]
    if best is None or len(curves[id(best)]) < _FEWEST_POINTS:
        return []
    label = f"trial {best.run.trial} (best)"
    series = [_Series(label, style_of_kind("cache").line, curves[id(best)], long)]
    title = "Validation accuracy of trials" + (f", {sweep.among}" if sweep.among else "")
    name, axis = f"{prefix}curve-validation", "validation top-1, %"
    chart = _chart(name, title, axis, series, "Thin: all trials.")
    return [] if chart is None else [chart]


def _chart(
    name: str,
    title: str,
    axis: str,
    series: Sequence[_Series],
    note: str = "Strong: mean over seeds; thin: each seed.",
) -> Chart | None:
    values = [y for one in series for curve in (one.curve, *one.thin) for _, y in curve]
    if not values or len(set(values)) == 1:
        return None

    def draw(axes: Axes) -> None:
        for one in series:
            for curve in one.thin:
                axes.plot(*_axes_of(curve), color=one.style["color"], linewidth=0.8, alpha=0.4)
            every = max(len(one.curve) // 12, 1)
            axes.plot(*_axes_of(one.curve), **one.style, markevery=every, label=one.label)
        if axis.startswith("loss"):  # by factors where it falls by many
            set_scale(axes, "y", values)
        axes.set_xlim(0)
        axes.set_xlabel("epoch")
        set_title_above(axes, axis)

    ends = "; ".join(f"{one.label} ends at {one.curve[-1][1]:.4g}" for one in series)
    rows = [
        [one.label, f"{x:.4g}", f"{y:.4g}"] for one in series for x, y in at_most(one.curve, 12)
    ]
    return Chart(
        name=name,
        title=title,
        summary=f"{axis} by epoch: {ends}.",
        draw=draw,
        height=240 + 18 * len(series),
        note=note if any(one.thin for one in series) else "",
        table=Table(["model", "epoch", re.sub(", %$", " %", axis)], rows),
    )


def _axes_of(curve: Curve) -> tuple[list[float], list[float]]:
    points = at_most(curve, _MOST_POINTS)
    return [x for x, _ in points], [y for _, y in points]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves where all have a point, or the longest where that is rare."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            values.setdefault(x, []).append(y)
    common = [(x, mean(ys)) for x, ys in sorted(values.items()) if len(ys) == len(curves)]
    if len(common) < max(len(values) / 2, 1):
        return max(curves, key=lambda curve: curve[-1][0])
    return common


def at_most(points: Curve, most: int) -> Curve:
    """Return at most about `most` of the points, evenly, with the last."""
    every = -(-len(points) // most)
    return [*points[:-1:every], points[-1]]
