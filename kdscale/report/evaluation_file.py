"""`evaluation.json`, the measurements of `kdscale evaluate`, as a type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdscale.documents import DAMAGE, check_as
from kdscale.formatting import reason_of
from kdscale.report.fields import dicts, name_text, read_json, sound_metrics
from kdscale.runs.run_spec import Share

_VERSION = 1
_METRICS = (
    "model", "num_samples", "top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall",
    "calibration_error", "agreement", "knn_top1_accuracy", "probe_top1_accuracy",
    "non_finite_samples", "tied_samples", "num_parameters", "flops", "weight_bytes",
)  # fmt: skip
_LARGEST_MATRIX = 1000
_MOST_CONFUSED = 100

Count = Annotated[int, Field(ge=0, lt=1 << 60)]
Seconds = Annotated[float, Field(ge=0, lt=1e18)]
Mistake = tuple[int, int, int]
"""(label, prediction, number of samples)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBins:
    """The bins of a reliability diagram, lowest confidence first."""

    confidence: list[Share]
    """Mean confidence of each bin's samples, 0..1."""
    accuracy: list[Share]
    """Top-1 accuracy of each bin's samples, 0..1."""
    samples: list[Count]
    """Number of samples in each bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of a forward pass, without data loading."""

    median_seconds: Seconds
    """Median of all rounds."""
    p95_seconds: Seconds
    """95th percentile of all rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """Numbers of samples by class."""

    samples: Sequence[int]
    """Number of samples with each label."""
    correct: Sequence[int]
    """Number of samples with each label that are predicted correctly."""
    predicted: Sequence[int]
    """Number of samples predicted as each class, whatever their label."""


@dataclass(frozen=True, slots=True)
class TestSet:
    """The images that a model was evaluated on."""

    fingerprint: str | None
    """Fingerprint of pixels, labels and class names; None in files without one."""
    source: str = ""
    """Data set and split of the images; empty in files of kdscale 0.1."""
    is_own: bool | None = None
    """Whether the images are the run's own test split; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """Quality of a model on a test split, and its cost on a device."""

    metrics: Mapping[str, Any]
    """Metrics of the whole test split, under the names of `result.json`."""
    test_set: TestSet
    class_names: Sequence[str]
    classes: ClassCounts
    confusion: Sequence[Sequence[int]] | None
    """Samples by label (row) and prediction (column); None with more than 1,000 classes."""
    most_confused: Sequence[Mistake]
    """The most frequent wrong predictions."""
    calibration: CalibrationBins
    activation_bytes: Mapping[int, int]
    """Peak memory of activations in a forward pass, by batch size."""
    latency: Mapping[int, Latency]
    """Latency by batch size."""
    environment: Mapping[str, Any]
    """Device, threads, precision and library versions of the measurement."""


@dataclass(frozen=True, slots=True)
class _ClassRow:
    samples: Count
    correct: Count | None = None
    """None in files of kdscale 0.1, which have a confusion matrix; likewise `predicted`."""
    predicted: Count | None = None


@dataclass(frozen=True, slots=True)
class _Confused:
    label: Count
    predicted: Count
    samples: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """The lists and tables of the file, by its keys."""

    class_names: list[str | int]
    confusion: list[list[Count]] | None
    calibration: CalibrationBins
    per_class: list[_ClassRow] = field(default_factory=list)
    most_confused: list[_Confused] = field(default_factory=list)
    peak_activation_bytes: dict[int, Count] | None = None
    latency: dict[int, Latency] | None = None
    test_fingerprint: str | None = None
    test_source: str | None = None
    test_split: str | None = None
    own_test_set: bool | None = None


def read_evaluation(path: Path) -> tuple[ModelEvaluation | None, list[str]]:
    """Return the evaluation in a file, if there is one, and messages about what is wrong with it.

    A report is made of what can be read, so nothing is raised.
    """
    table, problems = read_json(path)
    if table is None:
        return None, problems
    try:
        if table["version"] > _VERSION:
            return None, [f"{path} was written by a newer kdscale: update this one"]
        metrics, problems = sound_metrics({key: table.get(key) for key in _METRICS}, path)
        known = {one.name: table[one.name] for one in fields(_Stored) if one.name in table}
        return _parse(check_as(_Stored, known), metrics, _environment(table)), problems
    except DAMAGE as error:
        return None, [f"{path} cannot be read ({type(error).__name__}: {reason_of(error)})"]


def _parse(
    stored: _Stored, metrics: Mapping[str, Any], environment: Mapping[str, Any]
) -> ModelEvaluation:
    confusion, bins = stored.confusion, stored.calibration
    if len({len(bins.confidence), len(bins.accuracy), len(bins.samples)}) > 1:
        raise ValueError("the calibration's lists differ in length")
    if confusion is None:
        classes = _by_class(stored)
    else:  # samples without a prediction are in `per_class` alone
        samples = [one.samples for one in stored.per_class]
        classes = _of_matrix(confusion, samples if metrics.get("non_finite_samples") else None)
    num_classes = len(classes.samples)
    names = [name_text(str(name)) for name in stored.class_names]
    names += [f"class {label}" for label in range(len(names), num_classes)]
    source = f"{stored.test_source}, split {stored.test_split}" if stored.test_source else ""
    return ModelEvaluation(
        metrics=metrics,
        test_set=TestSet(stored.test_fingerprint, name_text(source), stored.own_test_set),
        class_names=names[:num_classes],
        classes=classes,
        confusion=confusion if num_classes <= _LARGEST_MATRIX else None,
        most_confused=_listed(stored) if confusion is None else mistakes_in(confusion),
        calibration=bins,
        activation_bytes=stored.peak_activation_bytes or {},
        latency=stored.latency or {},
        environment=environment,
    )


def _of_matrix(confusion: Sequence[Sequence[int]], samples: Sequence[int] | None) -> ClassCounts:
    """Count by class.

    Args:
        confusion: samples by label (row) and prediction (column).
        samples: number of samples with each label; None where all of them have a prediction.
    """
    if not confusion or any(len(row) != len(confusion) for row in confusion):
        raise ValueError("the confusion matrix is not square")
    if samples is not None and len(samples) != len(confusion):
        raise ValueError("per_class and the confusion matrix are of different classes")
    return ClassCounts(
        samples=[sum(row) for row in confusion] if samples is None else samples,
        correct=[row[label] for label, row in enumerate(confusion)],
        predicted=[sum(column) for column in zip(*confusion, strict=True)],
    )


def _by_class(stored: _Stored) -> ClassCounts:
    counts = [(one.samples, one.correct or 0, one.predicted or 0) for one in stored.per_class]
    if not counts or any(None in (one.correct, one.predicted) for one in stored.per_class):
        raise ValueError("per_class has no counts, and there is no confusion matrix")
    samples, correct, predicted = zip(*counts, strict=True)
    return ClassCounts(samples=samples, correct=correct, predicted=predicted)


def mistakes_in(confusion: Sequence[Sequence[int]]) -> list[Mistake]:
    """Return the most frequent wrong predictions of a matrix; of equals, the first labels first."""
    found = [
        (label, prediction, count)
        for label, row in enumerate(confusion)
        for prediction, count in enumerate(row)
        if count and label != prediction
    ]
    return sorted(found, key=lambda one: -one[2])[:_MOST_CONFUSED]


def _listed(stored: _Stored) -> list[Mistake]:
    rows = [(one.label, one.predicted, one.samples) for one in stored.most_confused]
    if any(max(label, prediction) >= len(stored.per_class) for label, prediction, _ in rows):
        raise ValueError("most_confused names classes that do not exist")
    return rows


def _environment(table: Mapping[str, Any]) -> dict[str, Any]:
    texts = ("device", "device_name", "num_threads", "precision")
    found: dict[str, Any] = {
        key: name_text(str(table[key])) for key in texts if isinstance(table.get(key), str | int)
    }
    for versions in dicts([table.get("library_versions")]):
        found["library_versions"] = {
            name_text(name): name_text(str(number)) for name, number in versions.items()
        }
    return found
