"""The training loop: one for teachers and students, for all losses and all sources of targets."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.nn import Module

from kdscale.compilation import CompiledModel, compile_errors
from kdscale.data.loader import Batch, BatchLoader
from kdscale.distributed import wait_for_device
from kdscale.losses.objective import Objective, WeightedLosses
from kdscale.models.preprocess import Preprocess
from kdscale.precision import autocast, tf32
from kdscale.runs.run_spec import Share
from kdscale.target_sources.base import TargetSource
from kdscale.training.averaged_weights import AveragedWeights
from kdscale.training.optim import OptimizerStep


@dataclass(slots=True)
class TrainerState:
    """All state of the loop that a checkpoint saves, beside weights, optimizer and random state."""

    step: NonNegativeInt = 0
    """Optimizer steps done."""
    train_seconds: NonNegativeFloat = 0.0
    """Time in steps; start-up, compilation, evaluation and checkpoints are left out."""
    compile_seconds: NonNegativeFloat = 0.0
    """Time of the first step after each start of a compiled model; no part of `train_seconds`."""
    best_top1_accuracy: Share = 0.0
    """Largest top-1 of all evaluations on the test split; reported only."""
    best_validation_accuracy: float = -1.0
    """Largest top-1 of all evaluations on the validation split; chooses the best weights."""
    chosen_step: int = -1
    """Step of the best weights; -1 = none yet."""
    chosen_top1_accuracy: Share = 0.0
    """Top-1 of the best weights on the test split."""
    chosen_average: bool = False
    """Whether the best weights are averaged ones."""
    smallest_validation_loss: float | None = None
    """Smallest validation loss of all evaluations, but for falls too small to count."""
    waited_for_plateau: NonNegativeInt = 0
    """Evaluations since the smallest validation loss or the learning rate fell."""
    waited_for_end: NonNegativeInt = 0
    """Evaluations since the smallest validation loss fell."""
    plateaus: NonNegativeInt = 0
    """Number of times that a plateau of the validation loss lowered the learning rate."""
    ended_early: bool = False
    """Whether the validation loss ended training before its last epoch."""
    wait_seconds: NonNegativeFloat = 0.0
    """Time spent waiting for views that were not built yet; no part of `train_seconds`."""
    evaluation_due: bool = False
    """Whether the model of this step is still to be evaluated."""
    metrics_bytes: NonNegativeInt = 0
    """Size of the metrics log."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """Loss scale of float16 as `OptimizerStep.scale_state` describes it; empty without one."""

    def to_json(self) -> dict[str, Any]:
        """Return the state as a checkpoint stores it."""
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


class ForwardPass:
    """Forward pass of a model in training: preprocess, autocast, compiled or not.

    Args:
        model: as `accelerator.prepare` returned it, never compiled: it is saved and evaluated.
        preprocess: turns pixels into what the model takes.
        device: device of the model.
        precision: of the forward and backward pass: float32, bfloat16 or float16.
        allow_tf32: whether float32 products may be rounded to TF32, which is off elsewhere.
        compiled: the model compiled; None where it is not.
    """

    def __init__(
        self,
        model: Module,
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "float32",
        *,
        allow_tf32: bool = False,
        compiled: CompiledModel | None = None,
    ) -> None:
        self.model, self.preprocess, self.precision = model, preprocess, precision
        self.compiled = compiled
        self._autocast = autocast(precision, device)
        self._tf32 = tf32 if allow_tf32 else nullcontext

    def __call__(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [B, C] of uint8 pixels [B, C, H, W], and features if the model gives any.

        Raises:
            ModelError: the model cannot be compiled here.
        """
        with self._tf32(), self._autocast:
            output = (self.compiled or self.model)(self.preprocess(pixels))
        return output if isinstance(output, tuple) else (output, ())


class Trainer:
    """Trains a model, one optimizer step after another.

    Args:
        forward: forward pass of the model.
        loader: batches of views.
        source: targets of the batches.
        objective: the loss.
        optimizer_step: backward pass and update.
        accelerator: devices and processes.
        accumulation: forward passes a step.
        average: of the model's weights; None = they are not averaged.
    """

    def __init__(
        self,
        forward: ForwardPass,
        loader: BatchLoader,
        source: TargetSource,
        objective: Objective,
        optimizer_step: OptimizerStep,
        accelerator: Accelerator,
        *,
        accumulation: int = 1,
        average: AveragedWeights | None = None,
    ) -> None:
        self.forward, self.objective, self.optimizer_step = forward, objective, optimizer_step
        self.model = forward.model
        self.loader, self.source, self.accelerator = loader, source, accelerator
        self.accumulation, self.average = accumulation, average
        self.state = TrainerState()
        self.loss = torch.zeros((), device=accelerator.device)
        """Loss of the newest step, on the device."""
        self.throughput = Throughput()
        self._epoch = -1
        self._parts: list[tuple[float, dict[str, Tensor]]] = []

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.state.step / self.loader.steps_per_epoch

    def module_to_save(self) -> Module:
        """Return the module whose tensors a checkpoint contains."""
        model: Module = self.accelerator.unwrap_model(self.model)
        return model if self.average is None else self.average.beside(model)

    def state_to_save(self) -> TrainerState:
        """Return the state with the loss scale, which is read from the device."""
        return replace(self.state, loss_scale=self.optimizer_step.scale_state())

    def restore(self, state: TrainerState) -> None:
        """Go on from the state of a checkpoint."""
        self.state = state
        self.optimizer_step.restore_scale(state.loss_scale)

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
            began, compiled = perf_counter(), self.forward.compiled
            compiles = compiled is not None and not compiled.is_ready
            self._start_epoch()
            batch = self.loader.batch(self.state.step)
            self.loss = self._forward_backward(batch)
            self._update()
            self.state.step += 1
            waits = after_step is not None and after_step.waits(self.state.step)
            if waits or compiles:  # or its work would count as what follows
                wait_for_device(self.accelerator.device)
            if waits:
                self.source.finish_checks()
            compiles = compiles and compiled is not None and compiled.calls > 0
            self._count_time(len(batch.index), perf_counter() - began, compiles=compiles)
            if after_step is not None:
                after_step(self)

    def _update(self) -> None:
        rate = self.optimizer_step.schedule(self.state.step, self.state.plateaus)
        self.optimizer_step.apply(self.model.parameters(), rate)
        if self.average is not None:
            self.average.update(self.accelerator.unwrap_model(self.model), self.state.step + 1)

    def _count_time(self, images: int, seconds: float, *, compiles: bool) -> None:
        """Count the time of a step; of one that compiles the model apart."""
        if compiles:
            self.state.compile_seconds += seconds
        else:
            self.state.train_seconds += seconds
            self.throughput.add(images * self.accelerator.num_processes, seconds)

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
        logits, features = self.forward(batch.pixels)
        epoch = self.state.step // self.loader.steps_per_epoch
        return self.objective(logits, targets, batch.labels, batch.mix, epoch, features)

    def _next_epoch(self) -> int:
        """Return the epoch of the next step."""
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
        self._backward(loss)
        self._parts.append((share, losses.by_name()))
        return loss.detach()

    def _backward(self, loss: Tensor) -> None:
        compiled = self.forward.compiled
        with nullcontext() if compiled is None else compile_errors(compiled.what):
            self.optimizer_step.backward(loss)


class AfterStep(Protocol):
    """Called after each step."""

    def __call__(self, loop: Trainer) -> None:
        """Do what is due."""
        ...

    def waits(self, step: int) -> bool:
        """Return whether the callback waits for the device after `step`."""
        ...


def due(step: int, every: int, last: int) -> bool:
    """Return whether what happens every so many steps, and at the last one, happens now."""
    return step % every == 0 or step == last
