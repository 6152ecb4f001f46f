"""Per-class results: recall and precision, confusion matrix, calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kdscale.formatting import number_of
from kdscale.report.entry import Entry
from kdscale.report.figures.chart import Chart, set_title_above
from kdscale.report.figures.style import LIGHT, shortened_label, styled_entries
from kdscale.report.headlines import sentence
from kdscale.report.model import Comparison
from kdscale.report.table import Table

_MOST_CLASSES = 20
_MOST_ROWS = 250
_FEWEST_SAMPLES = 20
"""Samples of a bin whose accuracy is drawn: with fewer, chance moves it by more than 11 points."""


def per_class_charts(study: Comparison, prefix: str) -> list[Chart]:
    """Return recall and precision of each class, or of those with the lowest recall."""
    main = study.examined
    if main is None:
        return []
    tested = [label for label, samples in enumerate(main.classes.samples) if samples]
    order = sorted(tested, key=lambda label: main.recall[label])[:_MOST_CLASSES]
    return [_per_class(study, main, order, metric, prefix) for metric in _METRICS if order]


_METRICS = ("recall", "precision")


def _per_class(
    study: Comparison, main: Entry, order: Sequence[int], metric: str, prefix: str
) -> Chart:
    names = main.evaluations[0].class_names
    series = [
        (style, entry.label, entry.recall if metric == "recall" else entry.precision)
        for style, entry in styled_entries(study, study.entries)
        if entry.evaluations and len(entry.evaluations[0].class_names) == len(names)
    ]
    places = range(len(order))

    def draw(axes: Axes) -> None:
        for style, model, values in series:
            axes.plot(
                [values[label] for label in order], places, linestyle="none",
                color=style.colour, marker=style.marker, label=model,
            )  # fmt: skip
        for place, label in zip(places, order, strict=True):
            found = [values[label] for *_, values in series]
            axes.hlines(place, min(found), max(found), LIGHT["base"], linewidth=0.8, zorder=1)
        axes.set_yticks(places, [shortened_label(names[label], 14) for label in order])
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(f"{metric}, %")

    ours = main.recall if metric == "recall" else main.precision
    lowest = min(order, key=lambda label: ours[label])
    return Chart(
        name=f"{prefix}{metric}-by-class",
        title=f"{metric.capitalize()} by class",
        summary=f"{metric.capitalize()} of {len(order)} of "
        f"{number_of(len(names), 'class', 'classes')}; lowest of {main.phrase}: "
        f"{names[lowest]}, {ours[lowest]:.1f} %.",
        draw=draw,
        height=60 + 18 * len(series) + 22 * len(order),
        note=_which(main, len(order)),
        table=Table(
            ["class", *[label for _, label, _ in series]],
            [[names[n], *[f"{values[n]:.1f}" for *_, values in series]] for n in order],
        ),
    )


def _which(main: Entry, number: int) -> str:
    """Return which classes are drawn, where it is not all of them."""
    tested = sum(samples > 0 for samples in main.classes.samples)
    words = []
    if number < tested:
        words.append(f"The {number} of {tested} classes with the lowest recall of {main.phrase}.")
    if tested < len(main.classes.samples):
        without = len(main.classes.samples) - tested
        words.append(f"Classes without test samples are left out: {without:,}.")
    return " ".join(words)


# --------------------------------------------------------------------------- confusion matrix


def confusion_chart(entry: Entry, prefix: str) -> Chart | None:
    """Return the confusion matrix; None where it is not known or has more than 1,000 classes."""
    names, matrix = entry.evaluations[0].class_names, entry.confusion
    if not matrix:
        return None
    few = len(names) <= _MOST_CLASSES
    samples, correct = sum(entry.classes.samples), sum(entry.classes.correct)
    seeds = len(entry.evaluations)
    of_seeds = f", {seeds} seeds together" if seeds > 1 else ""
    note = (
        "Per cent of the true class; rows add up to 100, shares below half a per cent have no "
        "number."
        if few
        else "The stronger a point, the larger the share of the true class."
    )

    def draw(axes: Axes) -> None:
        (_draw_cells if few else _draw_map)(axes, names, matrix)

    header = ["true \\ predicted", *[str(label) for label in range(len(names))]]
    rows = [
        [f"{label} {names[label]}", *[str(cell) for cell in row]]
        for label, row in enumerate(matrix)
    ]
    return Chart(
        name=f"{prefix}confusion",
        title="Confusion matrix",
        summary=f"Confusion matrix of {entry.phrase}{of_seeds}: {samples - correct:,} of "
        f"{samples:,} predictions are wrong.",
        draw=draw,
        height=300,
        wide=540,
        note=f"{sentence(entry.phrase)}{of_seeds}. {note}",
        table=Table(header, rows) if few else None,
    )


def step_of(share: float) -> int:
    """Return the colour of a share, 0 (none) to 7: small shares differ most in colour."""
    if share <= 0:
        return 0
    return 1 + sum(share >= edge for edge in (0.01, 0.03, 0.1, 0.3, 0.6, 0.9))


def _draw_cells(axes: Axes, names: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    """Draw each cell in the colour of its share of the row, with the per cent where it fits."""
    number = len(names)
    figure = axes.get_figure()
    assert figure is not None, "axes that are drawn on are a figure's"
    room = (72 * figure.get_figwidth() - 110) / number  # type: ignore[union-attr]
    for row, cells in enumerate(matrix):
        for column, count in enumerate(cells):
            share = count / (sum(cells) or 1)
            step = step_of(share)
            axes.add_patch(_cell(column, row, LIGHT[f"step-{step}"]))
            text = f"{100 * share:.0f}"
            if text != "0" and room >= 8 * len(text) + 2:
                ink = LIGHT["ink" if step < 5 else "ink-high"]
                axes.text(column, row, text, ha="center", va="center", color=ink)
    every = 1 if room >= 18 else 2 if room >= 11 else 5
    axes.set_xticks(range(0, number, every))
    axes.set_yticks(range(number), [_row_name(label, name) for label, name in enumerate(names)])
    _frame(axes, number)


def _cell(x: int, y: int, colour: str) -> Rectangle:
    return Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, edgecolor="none")


def _row_name(label: int, name: str) -> str:
    return name if name == str(label) else shortened_label(f"{label} {name}", 14)


def _draw_map(axes: Axes, names: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    """Draw many classes as an image: of each block the largest share, so that none is lost."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = -(-len(names) // _MOST_ROWS)
    padded = np.pad(shares, (0, -len(names) % size))
    blocks = padded.reshape(len(padded) // size, size, -1, size).max(axis=(1, 3))
    steps = np.vectorize(step_of)(blocks) / 7
    image = np.empty((*steps.shape, 4))
    image[..., :3] = to_rgb(LIGHT["many-5"])  # stands out on light and on dark paper
    image[..., 3] = steps
    edge = len(blocks) * size - 0.5
    axes.imshow(image, interpolation="none", extent=(-0.5, edge, edge, -0.5), aspect="auto")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _frame(axes, len(names))


def _frame(axes: Axes, number: int) -> None:
    axes.set_xlim(-0.5, number - 0.5)
    axes.set_ylim(number - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("predicted class")
    set_title_above(axes, "true class")


# --------------------------------------------------------------------------- calibration


def calibration_chart(study: Comparison, prefix: str) -> Chart | None:
    """Return the reliability diagram; None where no model has two bins with enough samples."""
    series, rows, errors = [], [], []
    for style, entry in styled_entries(study, study.entries):
        every = _bins(entry)
        rows += [[entry.label, f"{x:.1f}", f"{y:.1f}", f"{n:,}"] for x, y, n in every]
        bins = [one for one in every if one[2] >= _FEWEST_SAMPLES]
        if len(bins) > 1:
            series.append((style, entry.label, bins))
        if entry.evaluations and (error := entry.mean("calibration_error")) is not None:
            errors.append(f"{entry.label} {100 * error:.2f} %")
    if not series:
        return None

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=LIGHT["base"], linewidth=1)
        for style, label, bins in series:
            axes.plot([x for x, *_ in bins], [y for _, y, _ in bins], **style.line, label=label)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence, %")
        set_title_above(axes, "accuracy, %")

    return Chart(
        name=f"{prefix}calibration",
        title="Calibration",
        summary="Accuracy by confidence; expected calibration error: "
        + ("; ".join(errors) or "unknown")
        + ".",
        draw=draw,
        height=290 + 18 * len(series),
        note="Below the thin diagonal a model is overconfident. Bins with fewer than "
        f"{_FEWEST_SAMPLES} samples are in the table only.",
        table=Table(["model", "confidence %", "accuracy %", "samples"], rows),
    )


def _bins(entry: Entry) -> list[tuple[float, float, int]]:
    """Return mean confidence and accuracy, per cent, and samples of each bin, over all seeds."""
    sums: dict[int, list[float]] = {}
    for evaluation in entry.evaluations:
        bins = evaluation.calibration
        rows = zip(bins.confidence, bins.accuracy, bins.samples, strict=True)
        for number, (confidence, accuracy, samples) in enumerate(rows):
            if samples:
                one = sums.setdefault(number, [0.0, 0.0, 0])
                one[0] += confidence * samples
                one[1] += accuracy * samples
                one[2] += samples
    return [(100 * c / n, 100 * a / n, int(n)) for _, (c, a, n) in sorted(sums.items())]
