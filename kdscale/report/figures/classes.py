"""Class by class: recall, precision, what is taken for what, and how sure."""

from collections.abc import Sequence

from kdscale.formatting import number_of
from kdscale.report.charts.axes import Axis, Scale, scale_over
from kdscale.report.charts.chart import Chart, Table, chart
from kdscale.report.charts.dots import Dot, Dots
from kdscale.report.charts.lines import Line, Plane, Point
from kdscale.report.charts.matrix import matrix_drawing
from kdscale.report.entry import Entry
from kdscale.report.figures.styles import PER_CENT, with_styles
from kdscale.report.headlines import sentence
from kdscale.report.model import Study

_MOST_CLASSES = 20
_FEWEST_SAMPLES = 20
"""Of a bin whose accuracy is drawn: with fewer, chance moves it by more than 11 points."""


def by_class(study: Study, prefix: str) -> list[Chart]:
    """Recall and precision of each class, or of those that are recalled least."""
    main = study.examined
    if main is None:
        return []
    recall = main.recall
    tested = [label for label, samples in enumerate(main.classes.samples) if samples]
    order = sorted(tested, key=lambda label: recall[label])[:_MOST_CLASSES]
    if not order:
        return []
    alike = [
        entry for entry in study.entries
        if entry.evaluations and len(entry.evaluations[0].class_names) == len(recall)
    ]  # fmt: skip
    return [
        _by_class(study, main, alike, order, metric, f"{prefix}{metric}-by-class")
        for metric in ("recall", "precision")
    ]


def _by_class(
    study: Study,
    main: Entry,
    entries: Sequence[Entry],
    order: Sequence[int],
    metric: str,
    name: str,
) -> Chart:
    names = main.evaluations[0].class_names
    shown = [(style, e, _of_classes(e, metric)) for style, e in with_styles(study, entries)]
    rows = [
        (
            names[label],
            [Dot(style, f"{names[label]}, {entry.label}: {values[label]:.1f} %", values[label])
             for style, entry, values in shown],
        )
        for label in order
    ]  # fmt: skip
    every = [dot.value for _, dots in rows for dot in dots]
    ours = _of_classes(main, metric)
    lowest = min(order, key=lambda label: ours[label])
    return chart(
        name,
        f"{metric.capitalize()} by class",
        f"{metric.capitalize()} of {len(order)} of {number_of(len(names), 'class', 'classes')}; "
        f"lowest of {main.phrase}: {names[lowest]}, {ours[lowest]:.1f} %.",
        Dots(rows, Axis(f"{metric}, %", scale_over(every, within=PER_CENT))),
        series=[(style, entry.label) for style, entry, _ in shown],
        note=_which(main, len(order)),
        table=Table(
            ["class", *[entry.label for _, entry, _ in shown]],
            [[names[n], *[f"{values[n]:.1f}" for *_, values in shown]] for n in order],
        ),
    )


def _which(main: Entry, shown: int) -> str:
    """Which classes are shown, where it is not all of them."""
    tested = sum(samples > 0 for samples in main.classes.samples)
    words = []
    if shown < tested:
        words.append(f"The {shown} of {tested} classes that {main.phrase} recalls least.")
    if tested < len(main.classes.samples):
        without = len(main.classes.samples) - tested
        words.append(f"Classes without test samples are left out: {without:,}.")
    return " ".join(words)


def _of_classes(entry: Entry, metric: str) -> list[float]:
    return entry.recall if metric == "recall" else entry.precision


def confusion(entry: Entry, prefix: str) -> Chart | None:
    """The matrix, as a square of names and numbers or as a map; None with too many classes."""
    names, matrix = entry.evaluations[0].class_names, entry.confusion
    if not matrix:
        return None
    samples, correct = sum(entry.classes.samples), sum(entry.classes.correct)
    seeds = len(entry.evaluations)
    of_seeds = f", {number_of(seeds, 'seed')} together" if seeds > 1 else ""
    num_classes = len(names)
    note = (
        "Per cent of the true class; rows add up to 100. No number: less than half a per cent, "
        "or no room for one."
    )
    if num_classes > _MOST_CLASSES:
        note = (
            "Each dot is a true class (down) and what it was taken for (across), by the class's "
            "number: the stronger, the larger the share of the class. Empty: never."
        )
    return chart(
        f"{prefix}confusion",
        "What is taken for what",
        f"Confusion matrix of {entry.phrase}{of_seeds}: {samples - correct:,} of {samples:,} "
        "answers are wrong.",
        matrix_drawing(names, matrix),
        note=f"{sentence(entry.phrase)}{of_seeds}. {note}",
        table=Table(
            ["true \\ predicted", *[str(label) for label in range(num_classes)]],
            [
                [f"{label} {names[label]}", *[str(cell) for cell in row]]
                for label, row in enumerate(matrix)
            ],
        )
        if num_classes <= _MOST_CLASSES
        else None,
    )


def calibration(study: Study, prefix: str) -> Chart | None:
    """Accuracy against confidence: whoever is sure to 80 % should be right in 80 of 100 cases."""
    shown = with_styles(study, [entry for entry in study.entries if entry.evaluations])
    if not shown:
        return None
    lines, points, rows, errors = [], [], [], []
    for style, entry in shown:
        everything = _bins(entry)
        rows += [[entry.label, f"{x:.1f}", f"{y:.1f}", f"{n:,}"] for x, y, n in everything]
        bins = [one for one in everything if one[2] >= _FEWEST_SAMPLES]
        total = sum(samples for _, _, samples in bins) or 1
        lines.append(Line(style, entry.label, [(x, y) for x, y, _ in bins]))
        for x, y, samples in bins:
            words = f"{entry.label}: sure to {x:.1f} %, right in {y:.1f} % of {samples:,}"
            points.append(Point(style, words, x, y, size=2.2 + 4 * (samples / total) ** 0.5))
        if (error := entry.mean("calibration_error")) is not None:
            errors.append(f"{entry.label} {100 * error:.2f} %")
    plane = Plane(
        Axis("confidence, %", Scale(0, 100)),
        Axis("accuracy, %", Scale(0, 100)),
        lines,
        points,
        guides=[[(0, 0), (100, 100)]],
        height=340,
    )
    return chart(
        f"{prefix}calibration",
        "Is it right as often as it is sure?",
        "Accuracy by confidence; calibration error: " + ("; ".join(errors) or "unknown") + ".",
        plane,
        series=[(style, entry.label) for style, entry in shown],
        lines=True,
        note="Below the thin diagonal a model is too sure of itself. Signs grow with the samples; "
        f"what holds fewer than {_FEWEST_SAMPLES} is left to the table.",
        table=Table(["model", "confidence %", "accuracy %", "samples"], rows),
    )


def _bins(entry: Entry) -> list[tuple[float, float, int]]:
    """Mean confidence and accuracy, per cent, and samples of each bin, all seeds together."""
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
