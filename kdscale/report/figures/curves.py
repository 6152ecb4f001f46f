"""What happened while models trained."""

import math
from collections.abc import Callable, Sequence
from statistics import mean

from kdscale.formatting import number_of
from kdscale.report.charts.axes import Axis, Scale, factors, plain, scale_over
from kdscale.report.charts.chart import Chart, Table, chart
from kdscale.report.charts.lines import Line, Plane
from kdscale.report.charts.svg import style_of
from kdscale.report.figures.styles import PER_CENT, with_styles
from kdscale.report.model import Study, Sweep
from kdscale.report.runs import Run
from kdscale.report.training_log import Curve


def training_curves(study: Study, prefix: str) -> list[Chart]:
    """Loss and accuracy by epoch: the mean of seeds, and each of them lightly."""
    found = [_loss(study, prefix), _accuracy(study, prefix)]
    return [one for one in found if one is not None]


def curves_of_sweep(sweep: Sweep, prefix: str) -> list[Chart]:
    """Accuracy of each trial on the split that chooses, the best one strong."""
    curves = {
        id(trial): [(x, 100 * y) for x, y in trial.run.validation_accuracy]
        for trial in sweep.trials
    }
    best = sweep.best
    others = [curves[id(trial)] for trial in sweep.trials if len(curves[id(trial)]) > 1]
    if best is None or not others:
        return []
    name = (
        f"trial {best.run.trial}, the best; thin: the {number_of(len(sweep.trials) - 1, 'other')}"
    )
    line = Line(style_of("cache"), name, curves[id(best)], others)
    scale = scale_over(_values([line]), within=PER_CENT)
    axis = Axis("top-1 on the validation split, %", scale)
    of = f", {sweep.among}" if sweep.among else ""
    return [_chart(f"{prefix}curve-accuracy", f"Accuracy while training{of}", [line], axis, None)]


def _loss(study: Study, prefix: str) -> Chart | None:
    lines = _lines(study, lambda run: run.loss)
    values = _values(lines)
    if not values:
        return None
    scale = scale_over(values, logarithmic=None, within=(0, math.inf))
    axis = Axis("loss", scale, factors if scale.logarithmic else plain)
    note = "Losses of different kinds are not to be compared in height."
    return _chart(f"{prefix}curve-loss", "Loss while training", lines, axis, note)


def _accuracy(study: Study, prefix: str) -> Chart | None:
    lines = _lines(study, lambda run: [(x, 100 * y) for x, y in run.test_accuracy])
    values = _values(lines)
    if not values:
        return None
    axis = Axis("top-1 on the test split, %", scale_over(values, within=PER_CENT))
    return _chart(f"{prefix}curve-accuracy", "Accuracy while training", lines, axis, "")


def _lines(study: Study, curve_of: Callable[[Run], Curve]) -> list[Line]:
    lines = []
    for style, entry in with_styles(study, study.entries):
        seeds = [curve for run in entry.runs if (curve := curve_of(run))]
        if seeds:
            middle = _mean_curve(seeds)
            thin = seeds if len(seeds) > 1 else []
            lines.append(Line(style, entry.label, middle, thin, marked=len(middle) <= 30))
    evaluated_once = all(len(one.points) < 2 for one in lines)
    return [] if evaluated_once else lines


def _values(lines: Sequence[Line]) -> list[float]:
    return [y for one in lines for points in (one.points, *one.thin) for _, y in points]


def _chart(name: str, title: str, lines: Sequence[Line], axis: Axis, note: str | None) -> Chart:
    last = max(x for one in lines for points in (one.points, *one.thin) for x, _ in points)
    ends = "; ".join(f"{one.name} ends at {one.points[-1][1]:.4g}" for one in lines)
    if note is not None and any(one.thin for one in lines):
        note = f"Strong: the mean of seeds; thin: each seed. {note}".strip()
    rows = [
        [one.name, f"{x:.4g}", f"{y:.4g}"] for one in lines for x, y in _at_most(one.points, 12)
    ]
    return chart(
        name,
        title,
        f"{axis.title} by epoch: {ends}.",
        Plane(Axis("epochs", Scale(0, last or 1)), axis, lines),
        series=[(one.style, one.name) for one in lines],
        lines=True,
        note=note or "",
        table=Table(["model", "epoch", axis.title], rows),
    )


def _mean_curve(seeds: Sequence[Curve]) -> Curve:
    """Means at the epochs that all have; the curve that goes farthest where most have not."""
    values: dict[float, list[float]] = {}
    for curve in seeds:
        for x, y in curve:
            values.setdefault(x, []).append(y)
    common = [(x, mean(ys)) for x, ys in sorted(values.items()) if len(ys) == len(seeds)]
    if len(common) < len(values) / 2:
        return max(seeds, key=lambda curve: curve[-1][0])
    return common


def _at_most(points: Curve, most: int) -> Curve:
    """Some of the points, evenly, with the last."""
    every = -(-len(points) // most)
    return [*points[:-1:every], points[-1]]
