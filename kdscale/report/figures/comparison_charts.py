"""Charts of accuracy against parameters, FLOPs and latency, and of training time with a cache."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from kdscale.formatting import NOTHING, duration_text
from kdscale.report.entry import Entry
from kdscale.report.figures.chart import Chart, set_scale, set_title_above
from kdscale.report.figures.style import (
    LIGHT,
    SeriesStyle,
    compact_number,
    style_of_kind,
    styled_entries,
)
from kdscale.report.model import Comparison
from kdscale.report.table import Table
from kdscale.report.training_cost import SweepCost, TrainingCost

_LEAST_RATIO = 1.2
"""Largest over smallest value below which an axis would show noise."""
_MOST_STUDENTS = 50


def accuracy_charts(study: Comparison, prefix: str) -> list[Chart]:
    """Return top-1 against parameters, FLOPs and latency, where models differ in them."""

    def latency(entry: Entry) -> float | None:
        seconds = entry.latencies(1, "median_seconds")
        return 1000 * mean(seconds) if seconds else None

    costs: dict[str, tuple[str, Callable[[Entry], float | None]]] = {
        "parameters": ("parameters", lambda entry: entry.mean("num_parameters")),
        "FLOPs": ("FLOPs of one image", lambda entry: entry.mean("flops")),
        "latency": ("latency at batch 1, ms", latency),
    }
    found = [
        _accuracy_chart(study, f"{prefix}accuracy-{name.lower()}", name, axis, cost)
        for name, (axis, cost) in costs.items()
    ]
    return [chart for chart in found if chart is not None]


def _accuracy_chart(
    study: Comparison, name: str, cost: str, axis: str, cost_of: Callable[[Entry], float | None]
) -> Chart | None:
    known = [
        (style, entry, x, [100 * value for value in entry.values("top1_accuracy")])
        for style, entry in styled_entries(study, study.entries)
        if (x := cost_of(entry)) and entry.values("top1_accuracy")
    ]
    places = [x for _, _, x, _ in known]
    if len(known) < 2 or max(places) < _LEAST_RATIO * min(places):
        return None
    points = [
        (style, entry.label, x, mean(top1), stdev(top1) if len(top1) > 1 else 0.0)
        for style, entry, x, top1 in known
    ]

    def draw(axes: Axes) -> None:
        set_scale(axes, "x", places)
        for (style, label, x, top1, spread), aside in zip(points, _beside(places), strict=True):
            figure = axes.get_figure()
            assert figure is not None, "axes that are drawn on are a figure's"
            moved = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
            axes.errorbar(
                x, top1, yerr=spread or None, color=style.colour, marker=style.marker,
                linestyle="none", markersize=8, capsize=3, transform=moved, label=label,
            )  # fmt: skip
            axes.update_datalim([(x, top1 - spread), (x, top1 + spread)])
        axes.margins(0.16, 0.12)
        axes.autoscale_view()
        axes.set_xlabel(axis)
        set_title_above(axes, "test top-1, %")

    best = max(points, key=lambda point: point[3])
    several = any(spread for *_, spread in points)
    return Chart(
        name=name,
        title=f"Accuracy vs. {cost}",
        summary=f"{len(points)} models; highest: {best[1]}, {best[3]:.2f} %, "
        f"{compact_number(best[2])} {axis}.",
        draw=draw,
        height=240 + 18 * len(points),
        note="Error bars: standard deviation over seeds." if several else "",
        table=Table(
            ["model", axis, "top-1 %", "± over seeds"],
            [
                [label, compact_number(x), f"{top1:.2f}", f"{spread:.2f}" if spread else NOTHING]
                for _, label, x, top1, spread in points
            ],
        ),
    )


def _beside(places: Sequence[float]) -> list[float]:
    """Return pixels to move points by, so that none hides another at the same place."""
    moved = []
    for number, place in enumerate(places):
        near = [other for other, x in enumerate(places) if abs(x - place) < 0.03 * place]
        moved.append(12.0 * (near.index(number) - (len(near) - 1) / 2))
    return moved


# --------------------------------------------------------------------------- time


def training_time_charts(
    cost: TrainingCost, prefix: str, num_students: int, setting: str
) -> list[Chart]:
    """Return the time of one student of each kind, and of many.

    Args:
        cost: seconds of students trained from one cache.
        prefix: of the charts' names.
        num_students: number of students that were trained.
        setting: what distinguishes them from others on the page; may be empty.
    """
    which = f" ({setting})" if setting else ""
    estimated = "" if cost.measured else ", estimated"
    known = [
        ("alone", "student alone", cost.alone_seconds),
        ("cache", "student, cached teacher", cost.cached_seconds),
        ("online", f"student, online teacher{estimated}", cost.online_seconds),
        ("teacher", "cache build, once", cost.build_seconds),
    ]
    bars = {label: (kind, seconds) for kind, label, seconds in known if seconds}
    if not (cost.alone_seconds or cost.online_seconds):  # nothing to compare with
        return []
    title = f"Training time of one student{which}"
    found = [
        _bar_chart(f"{prefix}times", title, bars, _estimate(cost)),
        _break_even_chart(cost, f"{prefix}break-even", num_students, which),
    ]
    return [one for one in found if one is not None]


def sweep_time_charts(cost: SweepCost, prefix: str, num_trials: int, among: str) -> list[Chart]:
    """Return the time of a sweep from one cache and with an online teacher, where both are known.

    Args:
        cost: of the sweep's trials.
        prefix: of the chart's name.
        num_trials: number of trials that were started.
        among: what distinguishes the sweep from others on the page; may be empty.
    """
    if cost.online_seconds is None:
        return []
    bars = {
        "cache build and all trials": ("cache", cost.build_seconds + cost.train_seconds),
        "online teacher, estimated": ("online", cost.online_seconds),
    }
    title = f"Time of {num_trials} trials" + (f", {among}" if among else "")
    chart = _bar_chart(f"{prefix}times", title, bars, "")
    return [] if chart is None else [chart]


def _bar_chart(
    name: str, title: str, bars: Mapping[str, tuple[str, float]], note: str
) -> Chart | None:
    if len(bars) < 2:
        return None
    times = {label: duration_text(seconds) for label, (_, seconds) in bars.items()}

    def draw(axes: Axes) -> None:
        longest = max(seconds for _, seconds in bars.values())
        for place, (label, (kind, seconds)) in enumerate(bars.items()):
            axes.barh(place, seconds, 0.42, color=style_of_kind(kind).colour)
            axes.text(0, place - 0.36, label, va="center")
            axes.text(seconds + 0.02 * longest, place, times[label], va="center")
        axes.set_xlim(0, 1.28 * longest)
        axes.set_ylim(len(bars) - 0.5, -0.7)
        axes.set_axis_off()

    return Chart(
        name=name,
        title=title,
        summary="; ".join(f"{label}: {time}" for label, time in times.items()) + ".",
        draw=draw,
        height=20 + 56 * len(bars),
        note=note,
        table=Table(["what", "time"], list(times.items())),
    )


def _break_even_chart(cost: TrainingCost, name: str, num_students: int, which: str) -> Chart | None:
    online = "online teacher" + ("" if cost.measured else ", estimated")
    named = [
        ("cache", "cached teacher, with the build", cost.build_seconds, cost.cached_seconds),
        ("online", online, 0.0, cost.online_seconds),
        ("alone", "student alone", 0.0, cost.alone_seconds),
    ]
    lines = [
        (style_of_kind(kind), label, once, each)
        for kind, label, once, each in named if each is not None
    ]  # fmt: skip
    if cost.online_seconds is None or not cost.build_seconds:
        return None
    even = cost.break_even
    last = max(num_students, 5, min((even or 0) * 2, _MOST_STUDENTS))
    highest = max(once + last * each for *_, once, each in lines)
    unit, size = next(
        (unit, size) for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0))
        if highest > 10 * size or size == 1
    )  # fmt: skip

    def hours(once: float, each: float, number: int) -> float:
        return (once + number * each) / size

    def draw(axes: Axes) -> None:
        for style, label, once, each in lines:
            _line(axes, style, label, [hours(once, each, number) for number in range(last + 1)])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, 1.03 * last)
        axes.set_ylim(0)
        axes.set_xlabel("students trained")
        set_title_above(axes, f"total time, {unit}")
        if even is not None and even <= last:
            axes.axvline(even, color=LIGHT["base"], linewidth=1, linestyle=":")

    words = _break_even_text(even)
    return Chart(
        name=name,
        title=f"Break-even of the cache{which}",
        summary=words,
        draw=draw,
        height=250 + 18 * len(lines),
        note=f"{words} The teacher's own training is not counted: every way needs it.",
        table=Table(
            ["students", *[f"{label}, {unit}" for _, label, *_ in lines]],
            [
                [str(number), *[f"{hours(once, each, number):.1f}" for *_, once, each in lines]]
                for number in range(0, last + 1, max(last // 10, 1))
            ],
        ),
    )


def _line(axes: Axes, style: SeriesStyle, label: str, values: Sequence[float]) -> None:
    few = len(values) <= 20
    axes.plot(range(len(values)), values, **style.line, markevery=1 if few else 5, label=label)


def _break_even_text(even: int | None) -> str:
    if even is None:
        return "The cache costs more than an online teacher: the lines do not cross."
    return f"From student {even} on, the cache has cost no more than it has saved."


def _estimate(cost: TrainingCost) -> str:
    if cost.measured or cost.ratio is None:
        return ""
    return (
        "Estimated: no online student was trained; kdscale bench measured that its steps take "
        f"{cost.ratio:.2f} times as long as those from the cache."
    )
