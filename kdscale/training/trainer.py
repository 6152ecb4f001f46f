"""The training loop: one for teachers and students, for all losses and all sources of targets."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from kdscale.data.loader import Batch, BatchLoader
from kdscale.distributed import wait_for_device
from kdscale.losses.objective import Objective, WeightedLosses
from kdscale.models.preprocess import Preprocess
from kdscale.precision import autocast
from kdscale.runs.folder import Share
from kdscale.target_sources.base import TargetSource
from kdscale.training.optim import Schedule


@dataclass(slots=True)
class TrainerState:
    """All state of the loop that a checkpoint saves, beside weights, optimizer and random state."""

    step: NonNegativeInt = 0
    """Optimizer steps done."""
    train_seconds: NonNegativeFloat = 0.0
    """Time in steps; start-up, evaluation and checkpoints are left out."""
    best_top1_accuracy: Share = 0.0
    """Largest over evaluations on the test split; reported only."""
    best_validation_accuracy: float = -1.0
    """Largest over evaluations on the validation split; chooses the best weights."""
    chosen_step: int = -1
    """The step of those weights."""
    chosen_top1_accuracy: Share = 0.0
    """Theirs on the test split."""
    smallest_validation_loss: float | None = None
    """Over evaluations, but for falls too small to count."""
    waited_for_plateau: NonNegativeInt = 0
    """Evaluations since it or the learning rate fell."""
    waited_for_end: NonNegativeInt = 0
    """Evaluations since it fell."""
    plateaus: NonNegativeInt = 0
    """How often the learning rate fell for it."""
    ended_early: bool = False
    """Whether training ended for it."""
    wait_seconds: NonNegativeFloat = 0.0
    """Spent waiting for views that were not built yet; no part of `train_seconds`."""
    evaluation_due: bool = False
    """Whether the model of this step is still to be evaluated."""
    metrics_bytes: NonNegativeInt = 0
    """Size of the metrics log."""

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)


@dataclass(slots=True)
class Throughput:
    """Images of all processes, and seconds in steps, since the last `take`."""

    images: int = 0
    seconds: float = 0.0

    def add(self, images: int, seconds: float) -> None:
        """Count one optimizer step."""
        self.images += images
        self.seconds += seconds

    def take(self) -> float:
        """Return images per second since the last call, and count anew."""
        rate = self.images / self.seconds if self.seconds else 0.0
        self.images, self.seconds = 0, 0.0
        return rate


class Trainer:
    """Trains a model for as many steps as it is asked to.

    Args:
        model: gives logits; as `accelerator.prepare` returned it.
        preprocess: the model's.
        loader: batches of views.
        source: their targets.
        objective: the loss of both.
        optimizer: of the model's parameters. Not wrapped by Accelerate, whose optimizer and
            `backward` cost 0.3 ms a step, a quarter of a small student's, and add nothing here.
        schedule: learning rate of a step.
        accelerator: devices and processes.
        precision: of forward and backward.
        accumulation: forward passes a step.
        gradient_clip: largest norm of all gradients; None = any.
        state: where to begin.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        loader: BatchLoader,
        source: TargetSource,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        accelerator: Accelerator,
        *,
        precision: str = "float32",
        accumulation: int = 1,
        gradient_clip: float | None = None,
        state: TrainerState | None = None,
    ) -> None:
        self.model, self.preprocess, self.objective = model, preprocess, objective
        self.loader, self.source = loader, source
        self.optimizer, self.schedule, self.accelerator = optimizer, schedule, accelerator
        self.precision = precision
        self.accumulation, self.gradient_clip = accumulation, gradient_clip
        self.state = state or TrainerState()
        self.loss = torch.zeros(())
        """Loss of the newest step, on the device."""
        self.gradient_norm: Tensor | None = None
        """Norm of all gradients of the newest step before clipping; None without clipping."""
        self.throughput = Throughput()
        self.learning_rate = 0.0
        """Of the newest step."""
        self._epoch = -1
        self._parts: list[tuple[float, dict[str, Tensor]]] = []

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.state.step / self.loader.steps_per_epoch

    def run(
        self,
        until: int,
        after_step: "AfterStep | None" = None,
        before_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train up to optimizer step `until`, or to an early end; `after_step` logs, saves, ...

        `before_epoch` may wait for what an epoch needs, which is no time of training.
        """
        self.model.train()
        while self.state.step < until and not self.state.ended_early:
            if before_epoch is not None and self._next_epoch() != self._epoch:
                before_epoch(self._next_epoch())
            began = perf_counter()
            self._start_epoch()
            batch = self.loader.batch(self.state.step)
            self._set_learning_rate(self.schedule(self.state.step, self.state.plateaus))
            self.loss = self._forward_backward(batch)
            self._update()
            self.state.step += 1
            if after_step is not None and after_step.waits(self.state.step):
                wait_for_device(
                    self.accelerator.device
                )  # or the steps' work would count as what follows them
                self.source.finish_checks()
            seconds = perf_counter() - began
            self.state.train_seconds += seconds
            self.throughput.add(len(batch.index) * self.accelerator.num_processes, seconds)
            if after_step is not None:
                after_step(self)

    def loss_parts(self) -> dict[str, Tensor]:
        """Return the weighted terms of the newest step's loss by name, on the device."""
        found: dict[str, Tensor] = {}
        for share, parts in self._parts:
            for name, value in parts.items():
                found[name] = found.get(name, 0.0) + value * share
        return found

    def losses_of(self, batch: Batch) -> WeightedLosses:
        """Return the loss terms of one batch: targets, forward pass, losses."""
        targets = self.source.targets(batch)
        with autocast(self.precision, self.accelerator.device):
            answer = self.model(self.preprocess(batch.pixels))
        logits, features = answer if isinstance(answer, tuple) else (answer, ())
        epoch = self.state.step // self.loader.steps_per_epoch
        return self.objective(logits, targets, batch.labels, batch.mix, epoch, features)

    def _next_epoch(self) -> int:
        """That of the step that comes next."""
        return self.state.step // self.loader.steps_per_epoch

    def _start_epoch(self) -> None:
        epoch = self._next_epoch()
        if epoch != self._epoch:
            self.loader.start_epoch(epoch)
            self.source.start_epoch(epoch)
            self._epoch = epoch

    def _forward_backward(self, batch: Batch) -> Tensor:
        self._parts = []
        if self.accumulation == 1:
            return self._backward_part(batch, batch)
        total = torch.zeros((), device=self.accelerator.device)
        parts = list(batch.split(min(self.accumulation, max(1, len(batch.index) // 2))))
        for part in parts[:-1]:
            with self.accelerator.no_sync(self.model):
                total += self._backward_part(part, batch)
        return total + self._backward_part(parts[-1], batch)

    def _backward_part(self, part: Batch, whole: Batch) -> Tensor:
        losses, share = self.losses_of(part), len(part.index) / len(whole.index)
        loss = losses.total() if share == 1 else losses.total() * share
        loss.backward()
        self._parts.append((share, losses.by_name()))
        return loss.detach()

    def _set_learning_rate(self, rate: float) -> None:
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self) -> None:
        if self.gradient_clip is not None:
            parameters = self.model.parameters()
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip).detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class AfterStep(Protocol):
    """What follows a step."""

    def __call__(self, loop: Trainer) -> None:
        """Do what is due."""
        ...

    def waits(self, step: int) -> bool:
        """Whether it will wait for the device after `step`."""
        ...


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, happens now."""
    return step % every == 0 or step == last
