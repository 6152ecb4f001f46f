"""What a run trains, what it learns from, and the fields of its result: as types with ranges."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt

from kdscale.documents import check_as

Role = Literal["teacher", "student"]
Targets = Literal["none", "cache", "teacher"]
Weights = Literal["last", "best", "ema"]
"""Weights of the last step, those that are best on the validation split, or the moving average."""

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Model, targets and seed of a run, as stored in `run.json`."""

    model: Role
    targets: Targets
    seed: Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Data, teacher and cache that a run was trained on, as stored in `content.json`."""

    dataset: str
    """Fingerprint of the training split."""
    test: str | None
    """Fingerprint of the test split; None without one."""
    teacher: str | None = None
    """SHA-256 of the teacher's weights; several with + between them; None without one."""
    cache: str | None = None
    """Identity of the cache; several with + between them; None without one."""
    windows: str | None = None
    """The windows that the order of samples follows; None where all fits in memory.

    A cache laid out anew has the same identity, but other shards and so other windows: half an
    epoch in the old order and half in the new one would show samples twice.
    """


@dataclass(frozen=True, slots=True)
class TrackerState:
    """What a tracker has of a run, as stored in `trackers.json`."""

    id: str
    """Name under which the tracker knows the run."""
    repeated: list[tuple[int, str]] = field(default_factory=list)
    """Steps and parts (train, test, validation) that the tracker got before a stop, and that the
    resumed run computes again."""


class _Row(BaseModel):
    label: Literal["teacher", "alone", "online", "cache"]
    results: Annotated[list[dict[str, Any]], Field(min_length=1)]


class _Result(BaseModel):
    """Fields of `result.json` that kdscale reads again; it may hold others."""

    role: Role
    targets: Targets
    seed: int
    top1_accuracy: Share | None = None
    top5_accuracy: Share | None = None
    macro_precision: Share | None = None
    macro_recall: Share | None = None
    calibration_error: Share | None = None
    best_top1_accuracy: Share | None = None
    last_top1_accuracy: Share | None = None
    ema_top1_accuracy: Share | None = None
    best_validation_accuracy: Share | None = None
    train_seconds: NonNegativeFloat | None = None
    build_seconds: NonNegativeFloat | None = None
    num_parameters: NonNegativeInt | None = None
    epochs: NonNegativeInt | None = None
    steps: NonNegativeInt | None = None
    model: str | None = None
    cache: str | None = None
    cache_path: str | None = None
    rows: list[_Row] | None = None


def check_result(table: dict[str, Any]) -> dict[str, Any]:
    """Return the object in `result.json` after checking the fields that kdscale reads again.

    Raises:
        ValueError: a field is missing, or has another type or range.
    """
    check_as(_Result, table)
    return table
