"""`metrics.jsonl`: the curves of a training, as far as they can be read."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError, RunError
from kdscale.formatting import reason_of
from kdscale.report.fields import excerpt, is_number
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import TORN, read_sound_metrics

Curve = Sequence[tuple[float, float]]
"""(epoch, value), in order."""

_SPLITS = ("test", "validation")
_OF_STEPS = (
    "soft_loss", "hard_loss", "feature_loss", "gradient_norm", "images_per_second", "learning_rate",
)  # fmt: skip
"""Quantities of a training step beside its loss; a log may lack any of them."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The content of `metrics.jsonl`."""

    curves: Mapping[str, Curve]
    """Curves by name: `loss` and other quantities of steps, `test` and `validation` top-1, 0..1."""
    reached: Mapping[str, Any]
    """Metrics of a model whose training is not finished."""
    problems: Sequence[str]
    """Messages about lines that cannot be read."""


def read_log(folder: Path, *, is_finished: bool) -> TrainingLog:
    """Read as much as can be read: the last line of an unfinished run may be torn."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    reached: dict[str, Any] = {}
    path = RunFolder(folder).metrics_file
    if not path.exists():
        missing = [f"{path} is missing: there are no curves"] if is_finished else []
        return TrainingLog(curves, reached, missing)
    number = 0
    try:
        records, problems = read_sound_metrics(folder)
        for number, record in enumerate(records, 1):  # noqa: B007
            _add(record, curves, reached)
    except RunError as error:
        problems = [str(error)]
    except (KdscaleError, *DAMAGE) as error:
        problems = [f"{path} cannot be read after line {number} ({reason_of(error)})"]
    if not is_finished:  # its last line may be half written
        problems = [one for one in problems if not one.endswith(TORN)]
    return TrainingLog(dict(curves), reached, problems)


def _add(
    record: Mapping[str, Any], curves: dict[str, list[tuple[float, float]]], reached: dict[str, Any]
) -> None:
    """Add a record of the log to the curves.

    Raises:
        ValueError: its epoch, loss or accuracy is outside of what it can be.
    """
    is_step = "loss" in record
    curve, name = ("loss", "loss") if is_step else (record.get("split"), "top1_accuracy")
    if not is_step and curve not in _SPLITS:
        return
    epoch, value = record["epoch"], record[name]
    if not is_number(epoch) or not is_number(value, -1e9, 1e9 if is_step else 1):
        raise ValueError(f"epoch {excerpt(epoch)}, {name} {excerpt(value)}")
    curves[str(curve)].append((float(epoch), float(value)))
    if is_step:
        for other in _OF_STEPS:
            if is_number(record.get(other), -1e9, 1e12):
                curves[other].append((float(epoch), float(record[other])))
        seconds = {"steps": record.get("step"), "train_seconds": record.get("train_seconds")}
        reached |= {key: one for key, one in seconds.items() if is_number(one)}
    elif curve == "test":
        reached["top1_accuracy"] = float(value)
