"""What stands on the page, heading by heading."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kdscale.formatting import number_of
from kdscale.report.charts.chart import Chart, Table
from kdscale.report.compared import (
    ACCURACY,
    COST,
    classes_table,
    classes_title,
    comparison,
    confused_pairs,
    other_test_sets,
    trials_table,
)
from kdscale.report.cost import cost_of, cost_of_sweep
from kdscale.report.environment import Fact, cache_facts, environment
from kdscale.report.figures.classes import by_class, calibration, confusion
from kdscale.report.figures.cost import accuracy_by_latency, accuracy_by_parameters
from kdscale.report.figures.curves import curves_of_sweep, training_curves
from kdscale.report.figures.sweeps import by_parameter
from kdscale.report.figures.time import times_of, times_of_sweep
from kdscale.report.model import Study


@dataclass(frozen=True, slots=True)
class Picture:
    """A sheet of views, for a wide and for a narrow screen: WebP."""

    wide: bytes
    narrow: bytes
    words: str
    """What is to be seen, for who cannot see it."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Pixels of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    name: str
    title: str
    words: str = ""
    tables: Sequence[Table] = ()
    """Shown as they are."""
    listed: Mapping[str, Table] = field(default_factory=dict)
    """Long tables, open, by what closes them."""
    charts: Sequence[Chart] = ()
    folded: Mapping[str, Table] = field(default_factory=dict)
    """Tables by what opens them; short ones are open."""
    picture: Picture | None = None
    facts: Sequence[Fact] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """Files as they are, by what opens them."""


def sections_of(study: Study, sheet: Picture | None, prefix: str) -> list[Section]:
    """All that there is to show.

    Args:
        study: what is known.
        sheet: its views.
        prefix: of names, which must be unique on the page.
    """
    made = [make(study, prefix) for make in _SECTIONS]
    views = Section(
        name=f"{prefix}views",
        title="Views",
        words="What the students are shown, and what the teacher said of it.",
        picture=sheet,
    )
    made.append(views if sheet is not None else None)
    made.append(_origin(study, prefix))
    return [section for section in made if section is not None]


def _compared(study: Study, prefix: str) -> Section | None:
    if not study.entries:
        return None
    tables = [comparison(study, ACCURACY), comparison(study, COST)]
    charts = [accuracy_by_parameters(study, prefix), accuracy_by_latency(study, prefix)]
    seeds = any(entry.num_seeds > 1 for entry in study.entries)
    words = "Mean ± standard deviation over seeds, on the test split. " if seeds else ""
    return Section(
        name=f"{prefix}compared",
        title="Side by side",
        words=words + "Latency is a forward pass on the device, without data loading: median "
        "(95th percentile).",
        tables=[table for table in tables if len(table.header) > 1],
        charts=_known(charts),
    )


def _known(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _time(study: Study, prefix: str) -> Section | None:
    charts: list[Chart] = []
    for number, entry in enumerate(study.of_kind("cache")[:_MOST_COSTS]):
        cost = cost_of(study, entry)
        if cost is not None:
            charts += times_of(cost, f"{prefix}{number}-", len(entry.finished), entry.setting)
    for number, sweep in enumerate(study.sweeps):
        place = f"{prefix}sweep{number}-"
        charts += times_of_sweep(cost_of_sweep(study, sweep), place, len(sweep.trials), sweep.among)
    return Section(name=f"{prefix}time", title="What it costs", charts=charts) if charts else None


def _training(study: Study, prefix: str) -> Section | None:
    charts = training_curves(study, prefix)
    return Section(name=f"{prefix}training", title="Training", charts=charts) if charts else None


def _classes(study: Study, prefix: str) -> Section | None:
    main = study.examined
    if main is None:
        return None
    pairs, table = confused_pairs(main), classes_table(main)
    return Section(
        name=f"{prefix}classes",
        title="Class by class",
        charts=[
            *by_class(study, prefix),
            *_known([confusion(main, prefix), calibration(study, prefix)]),
        ],
        folded={
            f"Most frequent mistakes of {main.phrase}": pairs,
            classes_title(main, table): table,
        },
    )


def _elsewhere(study: Study, prefix: str) -> Section | None:
    table = other_test_sets(study)
    if not table.rows:
        return None
    return Section(
        name=f"{prefix}elsewhere",
        title="On other images",
        words="Evaluated on images that these runs were not tested on while they trained. No "
        "other table or drawing holds these figures.",
        tables=[table],
    )


def _sweeps(study: Study, prefix: str) -> Section | None:
    if not study.sweeps:
        return None
    charts: list[Chart] = []
    for number, sweep in enumerate(study.sweeps):
        charts += by_parameter(sweep, f"{prefix}sweep{number}-")
        charts += curves_of_sweep(sweep, f"{prefix}sweep{number}-")
    return Section(
        name=f"{prefix}sweep",
        title="Trials",
        words="Best first, by top-1 on the validation split: the test split chooses nothing.",
        listed={
            f"{number_of(len(sweep.trials), 'trial')} of {sweep.folder}": trials_table(sweep)
            for sweep in study.sweeps
        },
        charts=charts,
    )


def _origin(study: Study, prefix: str) -> Section:
    return Section(
        name=f"{prefix}origin",
        title="Recipe and machine",
        facts=[
            *environment(study),
            *[(f"cache: {name}", words) for name, words in cache_facts(study)],
        ],
        texts={f"Recipe of {place}": text for place, text in study.recipes.items()},
    )


_MOST_COSTS = 3
_SECTIONS: tuple[Callable[[Study, str], Section | None], ...] = (
    _compared,
    _sweeps,
    _time,
    _training,
    _classes,
    _elsewhere,
)
