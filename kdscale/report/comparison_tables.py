"""The tables of a report."""

from collections.abc import Callable, Sequence

from kdscale.formatting import NOTHING, bytes_text, duration_text, number_of, percent_text, spread
from kdscale.report.entry import Entry
from kdscale.report.evaluation_file import ModelEvaluation
from kdscale.report.model import Comparison, SweepResults, SweepTrial, value_text
from kdscale.report.table import Table

Cell = Callable[[Entry], str]


def _percent(metric: str) -> Cell:
    return lambda entry: _spread([100 * value for value in entry.values(metric)], 2)


def _seconds(metric: str) -> Cell:
    return lambda entry: _spread(entry.values(metric), 1)


def _spread(values: Sequence[float], digits: int) -> str:
    return spread(values, digits) if values else NOTHING


def _largest(metric: str, words: Callable[[float], str]) -> Cell:
    def cell(entry: Entry) -> str:
        values = entry.values(metric)
        return words(max(values)) if values else NOTHING

    return cell


def _latency(batch: int) -> Cell:
    def cell(entry: Entry) -> str:
        median = entry.latencies(batch, "median_seconds")
        if not median:
            return NOTHING
        p95 = max(entry.latencies(batch, "p95_seconds"))
        return f"{_milliseconds(sum(median) / len(median))} ({_milliseconds(p95)})"

    return cell


def _milliseconds(seconds: float) -> str:
    """Return three digits: `0.043`, `1.25`, `130`."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def flops_text(count: float) -> str:
    """Return `81.2 M` or `4.09 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


def _activations(entry: Entry) -> str:
    found = [e.activation_bytes[64] for e in entry.evaluations if 64 in e.activation_bytes]
    return bytes_text(max(found)) if found else NOTHING


def _runs(entry: Entry) -> str:
    """Return `3`, `2 of 3`, `2 (1 seed)`: runs of one seed count once in all other columns."""
    done, all_of_them = len(entry.finished), len(entry.runs)
    words = str(done) if done == all_of_them else f"{done} of {all_of_them}"
    return f"{words} ({number_of(entry.num_seeds, 'seed')})" if entry.num_seeds < done else words


def _non_finite(entry: Entry) -> str:
    values = entry.values("non_finite_samples")
    return f"{max(values):,.0f}" if values and max(values) > 0 else NOTHING


ACCURACY: dict[str, Cell] = {
    "runs": _runs,
    "top-1 %": _percent("top1_accuracy"),
    "EMA top-1 %": _percent("ema_top1_accuracy"),
    "top-5 %": _percent("top5_accuracy"),
    "precision %": _percent("macro_precision"),
    "recall %": _percent("macro_recall"),
    "calibration error %": _percent("calibration_error"),
    "agreement with teacher %": _percent("agreement"),
    "k-NN %": _percent("knn_top1_accuracy"),
    "linear probe %": _percent("probe_top1_accuracy"),
    "images with NaN logits": _non_finite,
}
"""Columns of the first table: quality on the test split."""
COST: dict[str, Cell] = {
    "parameters": _largest("num_parameters", lambda count: f"{count:,.0f}"),
    "FLOPs": _largest("flops", flops_text),
    "weights": _largest("weight_bytes", lambda count: bytes_text(int(count))),
    "activations, batch 64": _activations,
    "latency ms, batch 1": _latency(1),
    "latency ms, batch 64": _latency(64),
    "training s": _seconds("train_seconds"),
    "build s": _largest("build_seconds", lambda seconds: f"{seconds:.1f}"),
}
"""Columns of the second table: what the models cost to run and to train."""


def comparison(study: Comparison, columns: dict[str, Cell]) -> Table:
    """Return a row for each entry; columns of which nothing is known are left out."""
    cells = {title: [cell(entry) for entry in study.entries] for title, cell in columns.items()}
    known = {title: column for title, column in cells.items() if set(column) != {NOTHING}}
    rows = [
        [entry.label, *[column[place] for column in known.values()]]
        for place, entry in enumerate(study.entries)
    ]
    return Table(["model", *known], rows)


def classes_table(entry: Entry, most: int = 1000) -> Table:
    """Return precision and recall by class; of more than `most`, those with the lowest recall."""
    names, classes = entry.evaluations[0].class_names, entry.classes
    labels = list(range(len(names)))
    if len(labels) > most:
        tested = [label for label in labels if classes.samples[label]]
        labels = sorted(tested, key=lambda label: entry.recall[label])[:most]
    rows = [
        [names[label], f"{entry.precision[label]:.1f}",
         f"{entry.recall[label]:.1f}" if classes.samples[label] else NOTHING,
         f"{classes.samples[label]:,}"]
        for label in labels
    ]  # fmt: skip
    return Table(["class", "precision %", "recall %", "samples"], rows)


def classes_title(entry: Entry, table: Table) -> str:
    """Return which classes `classes_table` holds."""
    number = len(entry.evaluations[0].class_names)
    if len(table.rows) == number:
        return f"All {number_of(number, 'class', 'classes')} of {entry.phrase}"
    return f"The {len(table.rows):,} of {number:,} classes with the lowest recall of {entry.phrase}"


def confused_pairs(entry: Entry, most: int = 12) -> Table:
    """Return the most frequent wrong predictions."""
    names, samples = entry.evaluations[0].class_names, entry.classes.samples
    rows = [
        [
            names[label],
            names[prediction],
            f"{count:,}",
            f"{100 * count / (samples[label] or 1):.1f}",
        ]
        for label, prediction, count in entry.mistakes[:most]
    ]
    return Table(["true", "predicted", "samples", "% of class"], rows)


def other_test_sets(study: Comparison) -> Table:
    """Return evaluations on images that are not the runs' own test split."""
    found = [
        (run, entry, evaluation)
        for entry in study.entries
        for run in entry.runs
        for evaluation in run.elsewhere.values()
    ]
    known = {
        title: name
        for title, name in _ON_OTHERS.items()
        if any(evaluation.metrics.get(name) is not None for *_, evaluation in found)
    }
    rows = [
        [str(run.folder), entry.label, _images_of(evaluation),
         *[percent_text(evaluation.metrics.get(name), NOTHING) for name in known.values()]]
        for run, entry, evaluation in found
    ]  # fmt: skip
    return Table(["run", "model", "images", *known], rows)


_ON_OTHERS = {
    "top-1 %": "top1_accuracy",
    "top-5 %": "top5_accuracy",
    "calibration error %": "calibration_error",
    "agreement with teacher %": "agreement",
    "k-NN %": "knn_top1_accuracy",
    "linear probe %": "probe_top1_accuracy",
}


def _images_of(evaluation: ModelEvaluation) -> str:
    """Return `64 of SOURCE, split test (3f9a12bc34de)`."""
    test_set, number = evaluation.test_set, evaluation.metrics.get("num_samples")
    words = [
        f"{number:,}" if number is not None else "",
        f"of {test_set.source}" if test_set.source else "",
        f"({test_set.fingerprint[:12]})" if test_set.fingerprint else "",
    ]
    return " ".join(word for word in words if word)


def trials_table(sweep: SweepResults) -> Table:
    """Return the trials, best validation accuracy first."""
    header = ["trial", *sweep.trials[0].parameters, "validation top-1 %", "test top-1 %"]
    rows = [_trial_row(trial) for trial in sweep.ranked]
    return Table([*header, "training", "state"], rows)


def _trial_row(trial: SweepTrial) -> list[str]:
    metrics, seconds = trial.run.metrics, trial.run.metrics.get("train_seconds")
    return [
        str(trial.run.trial),
        *[value_text(value) for value in trial.parameters.values()],
        percent_text(trial.score, NOTHING),
        percent_text(metrics.get("top1_accuracy"), NOTHING),
        NOTHING if seconds is None else duration_text(seconds),
        trial.state,
    ]
