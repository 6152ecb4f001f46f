"""What students cost: seconds of one, and of any number until the cache has paid for itself."""

from collections.abc import Sequence

from kdscale.formatting import duration_text, number_of
from kdscale.report.charts.axes import Axis, Scale, scale_over
from kdscale.report.charts.bars import Bar, Bars
from kdscale.report.charts.chart import Chart, Table, chart
from kdscale.report.charts.lines import Line, Plane
from kdscale.report.charts.svg import style_of
from kdscale.report.cost import Cost, SweepCost

_UNITS = {"s": (1.0, "seconds"), "min": (60.0, "minutes"), "h": (3600.0, "hours")}
_MOST_STUDENTS = 50


def times_of(cost: Cost, prefix: str, num_students: int, setting: str) -> list[Chart]:
    """Seconds of one student of each kind, and of many.

    Args:
        cost: of students from one cache.
        prefix: of the charts' names.
        num_students: that there are.
        setting: what tells them from others on the page.
    """
    which = f" ({setting})" if setting else ""
    found = [_one_student(cost, prefix, which), _many_students(cost, prefix, num_students, which)]
    return [one for one in found if one is not None]


def times_of_sweep(cost: SweepCost, prefix: str, num_trials: int, among: str) -> list[Chart]:
    """Seconds of a sweep, with one cache and with the teacher at every step.

    Args:
        cost: of its trials.
        prefix: of the chart's name.
        num_trials: that were begun.
        among: what tells it from other sweeps; may be empty.
    """
    if cost.online_seconds is None:
        return []
    bars = [
        Bar(style_of("cache"), "from one cache, with its build",
            [cost.build_seconds, cost.train_seconds]),
        Bar(style_of("online"), "the teacher at every step, reckoned", [cost.online_seconds]),
    ]  # fmt: skip
    note = (
        "The first part of the bar is the build. Trials that ended early count as far as they came."
    )
    title = f"Time of {number_of(num_trials, 'trial')}{f', {among}' if among else ''}"
    return [_bars(f"{prefix}times", title, bars, note)]


def _one_student(cost: Cost, prefix: str, which: str) -> Chart:
    online = "with the teacher at every step" + ("" if cost.measured else ", reckoned")
    known = [
        ("alone", "student alone", cost.alone_seconds),
        ("cache", "student from the cache", cost.cached_seconds),
        ("online", online, cost.online_seconds),
        ("teacher", "the build, once", cost.build_seconds),
    ]
    bars = [Bar(style_of(kind), words, [seconds]) for kind, words, seconds in known if seconds]
    return _bars(f"{prefix}times", f"Time of one student{which}", bars, _reckoning(cost))


def _bars(name: str, title: str, bars: Sequence[Bar], note: str) -> Chart:
    said = [(bar.words, duration_text(sum(bar.parts))) for bar in bars]
    return chart(
        name,
        title,
        "; ".join(f"{words}: {time}" for words, time in said) + ".",
        Bars([(bar, time) for bar, (_, time) in zip(bars, said, strict=True)]),
        note=note,
        table=Table(["what", "time"], said),
    )


def _many_students(cost: Cost, prefix: str, num_students: int, which: str) -> Chart | None:
    even = cost.break_even
    last = max(num_students, 5, min((even or 0) * 2, _MOST_STUDENTS))
    named = [
        ("cache", "from the cache, with its build", cost.build_seconds, cost.cached_seconds),
        ("online", "online teacher" + ("" if cost.measured else ", reckoned"), 0.0,
         cost.online_seconds),
        ("alone", "alone", 0.0, cost.alone_seconds),
    ]  # fmt: skip
    known = [(kind, name, once, each) for kind, name, once, each in named if each is not None]
    if len(known) < 2:
        return None
    highest = max(once + last * each for *_, once, each in known)
    unit = "s" if highest < 600 else "min" if highest < 36_000 else "h"
    size, word = _UNITS[unit]
    lines = [
        Line(style_of(kind), name,
             [(n, (once + n * each) / size) for n in range(last + 1)], marked=last <= 20)
        for kind, name, once, each in known
    ]  # fmt: skip
    rows = [
        [str(n), *[f"{one.points[n][1]:.1f}" for one in lines]]
        for n in range(0, last + 1, max(last // 10, 1))
    ]
    up = Axis(f"{word}, added up", scale_over([highest / size], from_zero=True))
    return chart(
        f"{prefix}break-even",
        f"{'Until the cache has paid for itself' if even else 'Time of any number'}{which}",
        _meeting(cost),
        Plane(Axis("students trained", Scale(0, last)), up, lines),
        series=[(one.style, one.name) for one in lines],
        lines=True,
        note=f"{_meeting(cost)} The teacher's own training is not counted: all need it.",
        table=Table(["students", *[f"{one.name}, {unit}" for one in lines]], rows),
    )


def _meeting(cost: Cost) -> str:
    if cost.online_seconds is None:
        return "No time with the teacher at every step is known, to compare with."
    if cost.break_even is None:
        return "The cache costs more than the teacher at every step: the lines do not cross."
    return f"From student {cost.break_even} on, the cache has cost no more than it has saved."


def _reckoning(cost: Cost) -> str:
    if cost.measured or cost.ratio is None:
        return ""
    return (
        f"Reckoned: no online student was trained; kdscale bench measured that its steps take "
        f"{cost.ratio:.2f} times as long as those from the cache."
    )
