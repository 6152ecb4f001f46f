"""Where targets come from: nowhere, a live teacher, or a cache (`cached.py`).

The loop cannot tell them apart.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kdscale.data.loader import Batch
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.targets import DenseTargets, Targets
from kdscale.teacher.frozen_teacher import FrozenTeacher


class TargetSource(Protocol):
    """What answers a batch with targets."""

    @property
    def schedule(self) -> ViewSchedule:
        """Which views epochs show."""
        ...

    @property
    def windows(self) -> Windows | None:
        """What the order of training has to follow; None where any order will do."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Get ready for an epoch."""
        ...

    def finish_checks(self) -> None:
        """Wait for checks of earlier batches that a device still computes; raise their errors."""
        ...

    def targets(self, batch: Batch) -> Targets | None:
        """The targets of a batch, on the device; None where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class NoTargets:
    """Plain supervised training."""

    schedule: ViewSchedule
    windows: None = None

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def finish_checks(self) -> None:
        """Nothing is checked."""

    def targets(self, batch: Batch) -> None:
        """None."""


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Online distillation: the teacher answers at every step."""

    teacher: FrozenTeacher
    schedule: ViewSchedule
    windows: None = None

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def finish_checks(self) -> None:
        """Nothing is checked."""

    def targets(self, batch: Batch) -> DenseTargets:
        """Return the teacher's logits of the batch's pixels, and the requested features."""
        # A clone outside inference mode: autograd may save what was computed inside it.
        output = self.teacher.outputs(batch.pixels).with_each(Tensor.clone)
        return DenseTargets(output.logits_BC, output.features)
