"""The comparison as tables of text: the same for the page, for Markdown and for people's eyes."""

from collections.abc import Callable, Sequence

from kdscale.formatting import NOTHING, bytes_text, duration_text, number_of, percent_text, spread
from kdscale.report.charts.chart import Table
from kdscale.report.entry import Entry
from kdscale.report.evaluation import Evaluation
from kdscale.report.model import Study, Sweep, Trial, value_text

Cell = Callable[[Entry], str]


def _per_cent(metric: str) -> Cell:
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
        return f"{milliseconds(sum(median) / len(median))} ({milliseconds(p95)})"

    return cell


def milliseconds(seconds: float) -> str:
    """Three digits: `0.043`, `1.25`, `130`."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _activations(entry: Entry) -> str:
    found = [e.activation_bytes[64] for e in entry.evaluations if 64 in e.activation_bytes]
    return bytes_text(max(found)) if found else NOTHING


def _runs(entry: Entry) -> str:
    """`3`, `2 of 3`, `2 (1 seed)`: runs of one seed count once in all other columns."""
    done, all_of_them = len(entry.finished), len(entry.runs)
    words = str(done) if done == all_of_them else f"{done} of {all_of_them}"
    return f"{words} ({number_of(entry.num_seeds, 'seed')})" if entry.num_seeds < done else words


def _without_prediction(entry: Entry) -> str:
    values = entry.values("non_finite_samples")
    return f"{max(values):,.0f}" if values and max(values) > 0 else NOTHING


ACCURACY: dict[str, Cell] = {
    "runs": _runs,
    "top-1 %": _per_cent("top1_accuracy"),
    "top-5 %": _per_cent("top5_accuracy"),
    "precision %": _per_cent("macro_precision"),
    "recall %": _per_cent("macro_recall"),
    "calibration error %": _per_cent("calibration_error"),
    "agrees with teacher %": _per_cent("agreement"),
    "images with NaN logits": _without_prediction,
}
COST: dict[str, Cell] = {
    "parameters": _largest("num_parameters", lambda count: f"{count:,.0f}"),
    "weights": _largest("weight_bytes", lambda count: bytes_text(int(count))),
    "activations, batch 64": _activations,
    "latency ms, batch 1": _latency(1),
    "latency ms, batch 64": _latency(64),
    "training s": _seconds("train_seconds"),
    "build s": _largest("build_seconds", lambda seconds: f"{seconds:.1f}"),
}


def comparison(study: Study, columns: dict[str, Cell]) -> Table:
    """A line an entry; columns of which nothing is known are left out."""
    cells = {title: [cell(entry) for entry in study.entries] for title, cell in columns.items()}
    known = {title: column for title, column in cells.items() if set(column) != {NOTHING}}
    rows = [
        [entry.label, *[column[place] for column in known.values()]]
        for place, entry in enumerate(study.entries)
    ]
    return Table(["model", *known], rows)


def classes_table(entry: Entry, most: int = 1000) -> Table:
    """Precision and recall of each class; of more than `most`, those that are recalled least."""
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
    """Which classes `classes_table` holds."""
    number = len(entry.evaluations[0].class_names)
    if len(table.rows) == number:
        return f"All {number_of(number, 'class', 'classes')} of {entry.phrase}"
    return f"The {len(table.rows):,} of {number:,} classes that {entry.phrase} recalls least"


def confused_pairs(entry: Entry, most: int = 12) -> Table:
    """The mistakes made most often."""
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
    return Table(["true class", "taken for", "times", "% of the class"], rows)


def other_test_sets(study: Study) -> Table:
    """Evaluations on images that the runs were not tested on: never in a line with the others."""
    rows = [
        [str(run.folder), entry.label, _images_of(evaluation),
         *[percent_text(evaluation.metrics.get(name), NOTHING) for name in _ON_OTHERS.values()]]
        for entry in study.entries
        for run in entry.runs
        for evaluation in run.elsewhere.values()
    ]  # fmt: skip
    return Table(["run", "model", "images", *_ON_OTHERS], rows)


_ON_OTHERS = {
    "top-1 %": "top1_accuracy",
    "top-5 %": "top5_accuracy",
    "calibration error %": "calibration_error",
    "agrees with teacher %": "agreement",
}


def _images_of(evaluation: Evaluation) -> str:
    """`64 of SOURCE, split test (3f9a12bc34de)`."""
    test_set, number = evaluation.test_set, evaluation.metrics.get("num_samples")
    words = [
        f"{number:,}" if number is not None else "",
        f"of {test_set.source}" if test_set.source else "",
        f"({test_set.fingerprint[:12]})" if test_set.fingerprint else "",
    ]
    return " ".join(word for word in words if word)


def trials_table(sweep: Sweep) -> Table:
    """The trials, best first by what chooses."""
    header = ["trial", *sweep.trials[0].parameters, "validation top-1 %", "test top-1 %"]
    rows = [_trial_row(sweep, trial) for trial in sweep.ranked]
    return Table([*header, "training", "state"], rows)


def _trial_row(sweep: Sweep, trial: Trial) -> list[str]:
    metrics, score = trial.run.metrics, trial.score
    tested, seconds = metrics.get("top1_accuracy"), metrics.get("train_seconds")
    return [
        str(trial.run.trial),
        *[value_text(value) for value in trial.parameters.values()],
        NOTHING if score is None else f"{100 * score:.2f}",
        NOTHING if tested is None else f"{100 * tested:.2f}",
        NOTHING if seconds is None else duration_text(seconds),
        trial.state,
    ]
