"""Effect of a sweep's parameters on validation accuracy, beside teacher and baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from kdscale.report.entry import Entry
from kdscale.report.figures.chart import FEW_NAMES, Chart, set_scale, set_title_above
from kdscale.report.figures.style import LIGHT, shortened_label, style_of_kind
from kdscale.report.model import Comparison, SweepResults, SweepTrial, value_text
from kdscale.report.table import Table

_MOST_NAMES = 12


@dataclass(frozen=True, slots=True)
class _Scored:
    """A finished trial with its value of one parameter and its top-1, per cent."""

    trial: SweepTrial
    value: Any
    top1: float


def parameter_charts(study: Comparison, sweep: SweepResults, prefix: str) -> list[Chart]:
    """Return, for each parameter, the top-1 of all finished trials by its value."""
    scores = {id(trial): trial.score for trial in sweep.finished}
    split = "test" if None in scores.values() else "validation"
    if split == "test":
        scores = {id(t): t.run.metrics.get("top1_accuracy") for t in sweep.finished}
    lines = [
        (entry, 100 * top1)
        for entry in study.entries
        if not entry.is_trial and (top1 := _reference(entry, split)) is not None
    ]
    charts = []
    for number, name in enumerate(sweep.trials[0].parameters):
        scored = [
            _Scored(trial, trial.parameters[name], 100 * score)
            for trial in sweep.finished
            if (score := scores[id(trial)]) is not None
        ]
        title = f"{name}, {sweep.among}" if sweep.among else name
        charts.append(
            _chart(f"{prefix}parameter-{number}", title, scored, split, lines, sweep.best)
        )
    return [one for one in charts if one is not None]


def _reference(entry: Entry, split: str) -> float | None:
    """Return the top-1 of a teacher or baseline on the split that trials are compared on."""
    if split == "test":
        return entry.mean("top1_accuracy")
    reached = [max(y for _, y in curve) for run in entry.finished
               if (curve := run.curves.get("validation"))]  # fmt: skip
    return sum(reached) / len(reached) if reached else None


def _chart(
    place: str,
    title: str,
    scored: Sequence[_Scored],
    split: str,
    lines: Sequence[tuple[Entry, float]],
    best: SweepTrial | None,
) -> Chart | None:
    texts = list(dict.fromkeys(sorted(value_text(one.value) for one in scored)))
    numeric = all(
        isinstance(one.value, int | float) and not isinstance(one.value, bool) for one in scored
    )
    if len(scored) < 2 or len(texts) < 2 or (not numeric and len(texts) > _MOST_NAMES):
        return None

    def draw(axes: Axes) -> None:
        for entry, top1 in lines:
            style = style_of_kind(entry.kind)
            axes.axhline(
                top1, color=style.colour, linestyle=style.dashes, linewidth=1.2, label=entry.label
            )
        for group, colour, marker, label in (
            ([one for one in scored if one.trial is not best], LIGHT["cache"], "o", "trial"),
            ([one for one in scored if one.trial is best], LIGHT["alone"], "s", "best trial"),
        ):
            x = [float(one.value) if numeric else texts.index(value_text(one.value))
                 for one in group]  # fmt: skip
            axes.plot(x, [one.top1 for one in group], color=colour, marker=marker,
                      linestyle="none", label=label if group else None)  # fmt: skip
        if numeric:
            set_scale(axes, "x", [float(one.value) for one in scored])
        else:
            axes.set_xticks(range(len(texts)), [shortened_label(text, 12) for text in texts])
            axes.tick_params(axis="x", rotation=30 if len(texts) > FEW_NAMES else 0)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        axes.set_xlabel(shortened_label(title, 44))
        set_title_above(axes, f"{split} top-1, %")

    first = max(scored, key=lambda one: one.top1)
    several = len(first.trial.parameters) > 1
    return Chart(
        name=place,
        title=f"{split.capitalize()} accuracy by {title}",
        summary=f"Top-1 of {len(scored)} trials by {title}; highest: trial "
        f"{first.trial.run.trial}, {value_text(first.value)}: {first.top1:.2f} %.",
        draw=draw,
        height=250 + 18 * (2 + len(lines)),
        note="Other parameters vary as well." if several else "",
        table=Table(
            ["trial", title, f"{split} top-1 %"],
            [[str(one.trial.run.trial), value_text(one.value), f"{one.top1:.2f}"]
             for one in scored],
        ),
    )  # fmt: skip
