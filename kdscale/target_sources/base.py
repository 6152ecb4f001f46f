"""Sources of targets: none, a live teacher, or a cache (`cached.py`), with one interface."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kdscale.data.loader import Batch
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.targets import DenseTargets, FeatureTargets, Targets
from kdscale.teacher.frozen_teacher import FrozenTeacher


class TargetSource(Protocol):
    """Gives the targets of each batch."""

    @property
    def schedule(self) -> ViewSchedule:
        """View that an epoch uses."""
        ...

    @property
    def windows(self) -> Windows | None:
        """Windows that the order of training must follow; None: any order will do."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, before its first batch."""
        ...

    def finish_checks(self) -> None:
        """Wait for checks of earlier batches that a device still computes; raise their errors."""
        ...

    def targets(self, batch: Batch) -> Targets | None:
        """Return the targets of a batch, on the device; None in supervised training."""
        ...


@dataclass(frozen=True, slots=True)
class NoTargets:
    """Plain supervised training."""

    schedule: ViewSchedule
    windows: None = None

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: there is nothing to prepare."""

    def finish_checks(self) -> None:
        """Do nothing: nothing is checked."""

    def targets(self, batch: Batch) -> None:
        """Return None."""


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Online distillation: a forward pass of the teacher at every step."""

    teacher: FrozenTeacher
    schedule: ViewSchedule
    windows: None = None

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: there is nothing to prepare."""

    def finish_checks(self) -> None:
        """Do nothing: nothing is checked."""

    def targets(self, batch: Batch) -> DenseTargets | FeatureTargets:
        """Return the teacher's logits, if it gives any, and the requested features of a batch."""
        # A clone outside inference mode: autograd may save what was computed inside it.
        output = self.teacher.outputs(batch.pixels).with_each(Tensor.clone)
        if self.teacher.headless:
            return FeatureTargets(output.features)
        return DenseTargets(output.logits_BC, output.features)
