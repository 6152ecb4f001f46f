"""`evaluation.json`, the measurements of `kdscale evaluate`, as a type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.documents import DAMAGE
from kdscale.report.fields import (
    dicts,
    error_text,
    is_number,
    is_whole,
    name_text,
    names_text,
    numbers,
    read_json,
    sound_metrics,
    whole_numbers,
)

_VERSION = 1
_METRICS = (
    "model",
    "num_samples",
    "top1_accuracy",
    "top5_accuracy",
    "macro_precision",
    "macro_recall",
    "calibration_error",
    "agreement",
    "non_finite_samples",
    "tied_samples",
    "num_parameters",
    "flops",
    "weight_bytes",
)
_LARGEST_MATRIX = 1000
_MOST_CONFUSED = 100

Mistake = tuple[int, int, int]
"""(label, prediction, number of samples)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBins:
    """The bins of a reliability diagram, lowest confidence first."""

    confidence: Sequence[float]
    """Mean confidence of each bin's samples, 0..1."""
    accuracy: Sequence[float]
    """Top-1 accuracy of each bin's samples, 0..1."""
    samples: Sequence[int]
    """Number of samples in each bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of a forward pass, without data loading."""

    median_seconds: float
    """Median of all rounds."""
    p95_seconds: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
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
        return _parse(table, metrics), problems
    except DAMAGE as error:
        return None, [f"{path} cannot be read ({type(error).__name__}: {error_text(error)})"]


def _parse(table: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelEvaluation:
    confusion = None if table["confusion"] is None else _matrix(table["confusion"])
    classes = _by_class(table) if confusion is None else _of_matrix(table, confusion)
    names = names_text(table["class_names"])
    names += [f"class {label}" for label in range(len(names), len(classes.samples))]
    return ModelEvaluation(
        metrics=metrics,
        test_set=_test_set(table),
        class_names=names[: len(classes.samples)],
        classes=classes,
        confusion=confusion if len(classes.samples) <= _LARGEST_MATRIX else None,
        most_confused=_listed(table) if confusion is None else mistakes_in(confusion),
        calibration=_calibration(table["calibration"]),
        activation_bytes={
            int(k): v for k, v in (table.get("peak_activation_bytes") or {}).items() if is_whole(v)
        },
        latency={
            int(batch): Latency(
                median_seconds=one["median_seconds"], p95_seconds=one["p95_seconds"]
            )
            for batch, one in (table.get("latency") or {}).items()
            if is_number(one["median_seconds"]) and is_number(one["p95_seconds"])
        },
        environment=_environment(table),
    )


def _matrix(values: object) -> list[list[int]]:
    rows = values if isinstance(values, list) else []
    if not rows or any(not isinstance(row, list) or len(row) != len(rows) for row in rows):
        raise ValueError("the confusion matrix is not square")
    return [whole_numbers(row) for row in rows]


def _of_matrix(table: Mapping[str, Any], confusion: Sequence[Sequence[int]]) -> ClassCounts:
    """Count by class; samples without a prediction are not in a matrix, so `per_class` has them."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    samples = [sum(row) for row in confusion]
    if table.get("non_finite_samples"):
        samples = whole_numbers([one["samples"] for one in table["per_class"]])
    if len(samples) != len(predicted):
        raise ValueError("per_class and the confusion matrix are of different classes")
    correct = [row[label] for label, row in enumerate(confusion)]
    return ClassCounts(samples=samples, correct=correct, predicted=predicted)


def _by_class(table: Mapping[str, Any]) -> ClassCounts:
    columns = {
        name: whole_numbers([one[name] for one in table["per_class"]])
        for name in ("samples", "correct", "predicted")
    }
    if not columns["samples"]:
        raise ValueError("per_class has no class")
    return ClassCounts(**columns)


def mistakes_in(confusion: Sequence[Sequence[int]]) -> list[Mistake]:
    """Return the most frequent wrong predictions of a matrix; of equals, the first labels first."""
    found = [
        (label, prediction, count)
        for label, row in enumerate(confusion)
        for prediction, count in enumerate(row)
        if count and label != prediction
    ]
    return sorted(found, key=lambda one: -one[2])[:_MOST_CONFUSED]


def _listed(table: Mapping[str, Any]) -> list[Mistake]:
    last = len(table["per_class"]) - 1
    rows = [(one["label"], one["predicted"], one["samples"]) for one in table["most_confused"]]
    if not all(
        is_whole(label, 0, last) and is_whole(prediction, 0, last) and is_whole(count, 1)
        for label, prediction, count in rows
    ):
        raise ValueError("most_confused names classes that do not exist")
    return rows


def _calibration(bins: Mapping[str, Any]) -> CalibrationBins:
    found = CalibrationBins(
        confidence=numbers(bins["confidence"], 1),
        accuracy=numbers(bins["accuracy"], 1),
        samples=whole_numbers(bins["samples"]),
    )
    if len({len(found.confidence), len(found.accuracy), len(found.samples)}) > 1:
        raise ValueError("the calibration's lists differ in length")
    return found


def _test_set(table: Mapping[str, Any]) -> TestSet:
    fingerprint, own = table.get("test_fingerprint"), table.get("own_test_set")
    named = isinstance(table.get("test_source"), str)
    source = f"{table['test_source']}, split {table.get('test_split')}" if named else ""
    return TestSet(
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        source=name_text(source),
        is_own=own if isinstance(own, bool) else None,
    )


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
