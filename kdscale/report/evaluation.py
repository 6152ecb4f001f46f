"""`evaluation.json`: what `kdscale evaluate` measured of a model, as a type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale import run_folder
from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError

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
    "num_parameters",
    "weight_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """By bin of confidence, from low to high."""

    confidence: Sequence[float]
    """Mean of the bin's samples, 0..1."""
    accuracy: Sequence[float]
    samples: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of a forward pass, without data loading."""

    median_seconds: float
    p95_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model on the test split, and on its device."""

    metrics: Mapping[str, Any]
    """Those of the model as a whole, under the names that results use."""
    class_names: Sequence[str]
    confusion: Sequence[Sequence[int]]
    """Rows are labels, columns are predictions."""
    calibration: Calibration
    activation_bytes: Mapping[int, int]
    """Peak of a forward pass, by batch size."""
    latency: Mapping[int, Latency]
    """By batch size."""
    environment: Mapping[str, Any]
    """Device, threads, precision, library versions."""


def read_evaluation(path: Path) -> tuple[Evaluation | None, list[str]]:
    """The evaluation in a file, if it is there, or what is wrong with it.

    A report is made of what can be read, so nothing is raised.
    """
    try:
        table = run_folder.read_evaluation(path)
        if table["version"] > _VERSION:
            return None, [f"{path} was written by a newer kdscale: update this one"]
        return _parse(table), []
    except FileNotFoundError:
        return None, []
    except (KdscaleError, *DAMAGE) as error:
        return None, [f"{path} cannot be read ({type(error).__name__}: {error})"]


def _parse(table: Mapping[str, Any]) -> Evaluation:
    names, confusion = [str(name) for name in table["class_names"]], table["confusion"]
    if any(len(row) != len(confusion) for row in confusion):
        raise ValueError("the confusion matrix is not square")
    names += [f"class {label}" for label in range(len(names), len(confusion))]
    bins = table["calibration"]
    environment = ("device", "device_name", "num_threads", "precision", "library_versions")
    return Evaluation(
        metrics={key: table[key] for key in _METRICS if table.get(key) is not None},
        class_names=names,
        confusion=confusion,
        calibration=Calibration(
            confidence=bins["confidence"], accuracy=bins["accuracy"], samples=bins["samples"]
        ),
        activation_bytes={
            int(k): int(v) for k, v in (table.get("peak_activation_bytes") or {}).items()
        },
        latency={
            int(batch): Latency(
                median_seconds=one["median_seconds"], p95_seconds=one["p95_seconds"]
            )
            for batch, one in (table.get("latency") or {}).items()
        },
        environment={key: table[key] for key in environment if table.get(key) is not None},
    )
