"""The sections of a report, in the order of the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kdscale.formatting import number_of
from kdscale.report.comparison_tables import (
    ACCURACY,
    COST,
    classes_table,
    classes_title,
    comparison,
    confused_pairs,
    other_test_sets,
    trials_table,
)
from kdscale.report.environment import Fact, cache_facts, environment
from kdscale.report.figures.chart import Chart
from kdscale.report.figures.class_charts import calibration_chart, confusion_chart, per_class_charts
from kdscale.report.figures.comparison_charts import (
    accuracy_charts,
    sweep_time_charts,
    training_time_charts,
)
from kdscale.report.figures.sweep_charts import parameter_charts
from kdscale.report.figures.training_charts import sweep_curves, training_charts
from kdscale.report.model import Comparison
from kdscale.report.table import Table
from kdscale.report.training_cost import cost_of, cost_of_sweep

_MOST_COSTS = 3
"""Kinds of students whose training time is drawn."""


@dataclass(frozen=True, slots=True)
class ViewsImage:
    """A preview of a cache's views for a wide and for a narrow screen, as WebP."""

    wide: bytes
    narrow: bytes
    words: str
    """Description for screen readers."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Width and height of both, pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSection:
    """A heading and what stands below it."""

    name: str
    """Identifier that is unique on the page."""
    title: str
    words: str = ""
    tables: Sequence[Table] = ()
    """Tables that are always open."""
    charts: Sequence[Chart] = ()
    folded: Mapping[str, Table] = field(default_factory=dict)
    """Long tables by the text that opens them."""
    opened: bool = False
    """Whether folded tables are open at first, whatever their length."""
    picture: ViewsImage | None = None
    facts: Sequence[Fact] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """Files as they are, by the text that opens them."""


def sections_of(study: Comparison, views: ViewsImage | None, prefix: str) -> list[ReportSection]:
    """Return the sections for which there is anything to show.

    Args:
        study: the runs and their results.
        views: a preview of the cache's views; None where there is none.
        prefix: of identifiers, which must be unique on the page.
    """
    found = [make(study, prefix) for make in _SECTIONS]
    if views is not None:
        found.append(
            ReportSection(
                name=f"{prefix}views",
                title="Augmented views",
                words="Images as the student sees them, with the teacher's predictions.",
                picture=views,
            )
        )
    found.append(_environment(study, prefix))
    return [section for section in found if section is not None]


def _comparison(study: Comparison, prefix: str) -> ReportSection | None:
    if not study.entries:
        return None
    tables = [comparison(study, ACCURACY), comparison(study, COST)]
    seeds = any(entry.num_seeds > 1 for entry in study.entries)
    words = "Mean ± standard deviation over seeds, on the test split. " if seeds else ""
    return ReportSection(
        name=f"{prefix}comparison",
        title="Comparison",
        words=words + "Latency is a forward pass on the device, without data loading: median "
        "(95th percentile).",
        tables=[table for table in tables if len(table.header) > 1],
        charts=accuracy_charts(study, prefix),
    )


def _sweep_trials(study: Comparison, prefix: str) -> ReportSection | None:
    if not study.sweeps:
        return None
    charts: list[Chart] = []
    for number, sweep in enumerate(study.sweeps):
        charts += parameter_charts(study, sweep, f"{prefix}sweep{number}-")
        charts += sweep_curves(sweep, f"{prefix}sweep{number}-")
    return ReportSection(
        name=f"{prefix}sweep",
        title="Sweep trials",
        words="Best first, by top-1 on the validation split; the test split selects nothing.",
        folded={
            f"{number_of(len(sweep.trials), 'trial')} of {sweep.folder}": trials_table(sweep)
            for sweep in study.sweeps
        },
        opened=True,
        charts=charts,
    )


def _training_time(study: Comparison, prefix: str) -> ReportSection | None:
    charts: list[Chart] = []
    for number, entry in enumerate(study.of_kind("cache")[:_MOST_COSTS]):
        cost = cost_of(study, entry)
        if cost is not None:
            place, students = f"{prefix}{number}-", len(entry.finished)
            charts += training_time_charts(cost, place, students, entry.setting)
    for number, sweep in enumerate(study.sweeps):
        place, trials = f"{prefix}sweep{number}-", len(sweep.trials)
        charts += sweep_time_charts(cost_of_sweep(study, sweep), place, trials, sweep.among)
    return _of_charts(f"{prefix}time", "Training time", charts)


def _training_curves(study: Comparison, prefix: str) -> ReportSection | None:
    return _of_charts(f"{prefix}training", "Training curves", training_charts(study, prefix))


def _of_charts(name: str, title: str, charts: Sequence[Chart]) -> ReportSection | None:
    return ReportSection(name=name, title=title, charts=charts) if charts else None


def _per_class(study: Comparison, prefix: str) -> ReportSection | None:
    main = study.examined
    if main is None:
        return None
    pairs, table = confused_pairs(main), classes_table(main)
    charts = [confusion_chart(main, prefix), calibration_chart(study, prefix)]
    return ReportSection(
        name=f"{prefix}classes",
        title="Per-class results",
        charts=[*[one for one in charts if one is not None], *per_class_charts(study, prefix)],
        folded={
            f"Most confused pairs of classes of {main.phrase}": pairs,
            classes_title(main, table): table,
        },
    )


def _other_test_sets(study: Comparison, prefix: str) -> ReportSection | None:
    table = other_test_sets(study)
    if not table.rows:
        return None
    return ReportSection(
        name=f"{prefix}elsewhere",
        title="Other test sets",
        words="Evaluations on images that are not the runs' own test split. No other table or "
        "chart holds these figures.",
        tables=[table],
    )


def _environment(study: Comparison, prefix: str) -> ReportSection:
    return ReportSection(
        name=f"{prefix}environment",
        title="Recipe and environment",
        facts=[
            *environment(study),
            *[(f"cache: {name}", words) for name, words in cache_facts(study)],
        ],
        texts={f"Recipe of {place}": text for place, text in study.recipes.items()},
    )


_SECTIONS: tuple[Callable[[Comparison, str], ReportSection | None], ...] = (
    _comparison,
    _sweep_trials,
    _training_time,
    _training_curves,
    _per_class,
    _other_test_sets,
)
