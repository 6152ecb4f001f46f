"""`metrics.jsonl`: the curves of a training, as far as they can be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError
from kdscale.report.fields import is_number, shown, shown_error
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import TORN, read_sound_metrics

Curve = Sequence[tuple[float, float]]
"""(epochs, value), in order."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What `metrics.jsonl` tells."""

    curves: Mapping[str, list[tuple[float, float]]]
    """Loss by epoch, and top-1 by epoch on the splits."""
    reached: Mapping[str, Any]
    """Metrics of a model that is still being trained."""
    problems: Sequence[str]


def read_log(folder: Path, *, is_finished: bool) -> TrainingLog:
    """As much as can be read: the last line of a run that is going on may be torn."""
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "test": [], "validation": []}
    reached: dict[str, Any] = {}
    path = RunFolder(folder).metrics_file
    if not path.exists():
        missing = [f"{path} is missing: there are no curves"] if is_finished else []
        return TrainingLog(curves, reached, missing)
    number = 0
    try:
        records, problems = read_sound_metrics(folder)
        for number, record in enumerate(records, 1):  # noqa: B007
            _note(record, curves, reached)
    except (KdscaleError, *DAMAGE) as error:
        problems = [f"{path} cannot be read after line {number} ({shown_error(error)})"]
    if not is_finished:  # its last line may be half written
        problems = [one for one in problems if not one.endswith(TORN)]
    return TrainingLog(curves, reached, problems)


def _note(
    record: Mapping[str, Any], curves: dict[str, list[tuple[float, float]]], reached: dict[str, Any]
) -> None:
    """Add a record of the log to what is known.

    Raises:
        ValueError: its numbers cannot be meant.
    """
    curve, name = ("loss", "loss") if "loss" in record else (record.get("split"), "top1_accuracy")
    if curve not in curves:
        return
    epoch, value = record["epoch"], record[name]
    if not is_number(epoch) or not is_number(value, -1e9, 1e9 if curve == "loss" else 1):
        raise ValueError(f"epoch {shown(epoch)}, {name} {shown(value)}")
    curves[curve].append((float(epoch), float(value)))
    if curve == "loss":
        seconds = {"steps": record.get("step"), "train_seconds": record.get("train_seconds")}
        reached |= {key: one for key, one in seconds.items() if is_number(one)}
    elif curve == "test":
        reached["top1_accuracy"] = float(value)
