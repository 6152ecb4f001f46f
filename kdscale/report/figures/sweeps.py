"""What a sweep's parameters did to its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdscale.report.charts.axes import Axis, factors, scale_over
from kdscale.report.charts.chart import Chart, Drawing, chart
from kdscale.report.charts.dots import Dot, Dots
from kdscale.report.charts.lines import Plane, Point
from kdscale.report.charts.svg import Style, style_of
from kdscale.report.figures.styles import PER_CENT
from kdscale.report.model import Sweep, Trial, value_text

_MOST_NAMES = 12
_ANY, _BEST = style_of("cache"), style_of("alone")


@dataclass(frozen=True, slots=True)
class _Scored:
    """A trial with its top-1, per cent."""

    trial: Trial
    top1: float
    best: bool

    @property
    def style(self) -> Style:
        return _BEST if self.best else _ANY

    @property
    def size(self) -> float:
        return 7.0 if self.best else 4.5


def by_parameter(sweep: Sweep, prefix: str) -> list[Chart]:
    """For each parameter, the accuracy of each trial over its value."""
    scores = {id(trial): trial.score for trial in sweep.finished}
    split = "test" if None in scores.values() else "validation"
    if split == "test":
        scores = {id(t): t.run.metrics.get("top1_accuracy") for t in sweep.finished}
    scored = [
        _Scored(trial, 100 * score, trial is sweep.best)
        for trial in sweep.finished
        if (score := scores[id(trial)]) is not None
    ]
    scored.sort(key=lambda one: one.best)  # drawn last, so on top
    if len(scored) < 2:
        return []
    up = Axis(
        f"top-1 on the {split} split, %", scale_over([s.top1 for s in scored], within=PER_CENT)
    )
    of = f", {sweep.among}" if sweep.among else ""
    charts = [
        _chart(name, of, scored, up, f"{prefix}parameter-{number}")
        for number, name in enumerate(sweep.trials[0].parameters)
    ]
    return [one for one in charts if one is not None]


def _chart(name: str, of: str, scored: Sequence[_Scored], up: Axis, place: str) -> Chart | None:
    draw = _over_numbers(name, scored, up) or _by_name(name, scored, up)
    if draw is None:
        return None
    first = max(scored, key=lambda one: one.top1)
    series = [(_ANY, "a trial")]
    if any(one.best for one in scored):
        series.append((_BEST, "the best on the validation split"))
    return chart(
        place,
        f"{name}{of}",
        f"Top-1 of {len(scored)} trials over {name}; highest: {_words(name, first)}.",
        draw,
        series=series,
        note="Other parameters differ as well." if len(first.trial.parameters) > 1 else "",
    )


def _words(name: str, one: _Scored) -> str:
    value = value_text(one.trial.parameters[name])
    return f"trial {one.trial.run.trial}, {name} {value}: {one.top1:.2f} %"


def _over_numbers(name: str, scored: Sequence[_Scored], up: Axis) -> Drawing | None:
    """Points on a plane, where all values are numbers."""
    points = []
    for one in scored:
        x = one.trial.parameters[name]
        if isinstance(x, bool) or not isinstance(x, int | float):
            return None
        points.append(Point(one.style, _words(name, one), float(x), one.top1, size=one.size))
    places = [point.x for point in points]
    if len(set(places)) < 2:
        return None
    whole = all(isinstance(one.trial.parameters[name], int) for one in scored)
    scale = scale_over(places, logarithmic=None, whole=whole)
    return Plane(Axis(name, scale, factors), up, points=points, height=260)


def _by_name(name: str, scored: Sequence[_Scored], up: Axis) -> Drawing | None:
    """A row a value, where they are words."""
    rows: dict[str, list[Dot]] = {}
    for one in scored:
        value = value_text(one.trial.parameters[name])
        dot = Dot(one.style, _words(name, one), one.top1, one.size)
        rows.setdefault(value, []).append(dot)
    return Dots(_sorted(rows), up) if 1 < len(rows) <= _MOST_NAMES else None


def _sorted(rows: Mapping[str, Sequence[Dot]]) -> list[tuple[str, Sequence[Dot]]]:
    return sorted(rows.items())
