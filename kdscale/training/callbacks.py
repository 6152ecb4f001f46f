"""What follows a training step: progress, log, evaluation, checkpoint, an orderly stop."""

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kdscale.data.loader import DeviceImages
from kdscale.distributed import StopPoll, means_over_processes
from kdscale.errors import DivergedError, PrunedError
from kdscale.evaluation.embeddings import by_neighbours, embed
from kdscale.evaluation.evaluator import evaluate, evaluated
from kdscale.models.weights import save_weights
from kdscale.progress import Progress
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import MetricsLog
from kdscale.signals import StopRequest
from kdscale.training.averaged_weights import PREFIX
from kdscale.training.early_stopping import PlateauTracker
from kdscale.training.feature_student import unwrap_student
from kdscale.training.resume import save_checkpoint
from kdscale.training.trackers import Trackers
from kdscale.training.trainer import Trainer, due

log = logging.getLogger(__name__)

Watch = Callable[[float, Mapping[str, Mapping[str, float]]], bool]
"""Called after each evaluation with epochs and metrics by split; returning False ends the run."""

Splits = dict[str, tuple[DeviceImages, Tensor]]
"""Images and positions of the samples, by name of the split."""
NEVER = sys.maxsize
_STOP_EVERY, _STOP_EVERY_ON_GPUS = 10, 5
"""Steps between polls whether another process was stopped. On GPUs a poll costs no wait, and
returns what the one before exchanged."""


@dataclass(frozen=True, slots=True)
class EvaluationHook:
    """Evaluates a loop's model on the test split, and on the validation split if there is one."""

    test: DeviceImages
    num_classes: int
    training: DeviceImages
    validation: Tensor
    """int64 indices into `training`."""
    bank: Tensor | None = None
    """Of a model without a classifier: int64 indices into `training` of the labelled samples that
    k-NN compares with; none are there: test images are compared with one another."""

    def __call__(
        self, loop: Trainer, between_batches: Callable[[], None] | None = None
    ) -> dict[str, dict[str, float]]:
        """Metrics by split, of averaged weights as `ema_...`.

        `between_batches` may end it by raising, in all processes alike.
        """
        splits = {"test": (self.test, torch.arange(len(self.test.labels)))}
        if len(self.validation):
            splits["validation"] = (self.training, self.validation)
        models = {"": loop.model}
        if loop.average is not None:
            models[PREFIX] = loop.average.model
        measure = self._by_logits if self.bank is None else self._by_neighbours
        found: dict[str, dict[str, float]] = {name: {} for name in splits}
        for prefix, model in models.items():
            for name, metrics in measure(loop, model, splits, between_batches).items():
                found[name] |= {f"{prefix}{metric}": value for metric, value in metrics.items()}
        return found

    def _by_logits(
        self,
        loop: Trainer,
        model: nn.Module,
        splits: Splits,
        between_batches: Callable[[], None] | None,
    ) -> dict[str, dict[str, float]]:
        return {
            name: evaluate(
                model, loop.forward.preprocess, images, samples, self.num_classes,
                loop.accelerator, loop.forward.precision, between_batches,
            )
            for name, (images, samples) in splits.items()
        }  # fmt: skip

    def _by_neighbours(
        self,
        loop: Trainer,
        model: nn.Module,
        splits: Splits,
        between_batches: Callable[[], None] | None,
    ) -> dict[str, dict[str, float]]:
        """Embed all splits, and classify by the embeddings of the bank."""
        assert self.bank is not None, "k-NN compares with a bank"
        forward, accelerator = loop.forward, loop.accelerator
        known = {"bank": (self.training, self.bank)} if len(self.bank) else {}
        with evaluated(model, forward.preprocess, accelerator, forward.precision) as embedding_of:
            found = {
                name: embed(embedding_of, *split, accelerator, between_batches)
                for name, split in (known | splits).items()
            }
        bank = found.get("bank")
        return {
            name: by_neighbours(found[name], bank, self.num_classes, accelerator) for name in splits
        }


@dataclass(frozen=True, slots=True)
class Intervals:
    """Optimizer steps between things that happen now and then; all happen at the last step."""

    log: int
    evaluate: int
    checkpoint: int
    last: int


@dataclass(slots=True)
class StepCallback:
    """Called after each step. `last` is the newest evaluation on the test split."""

    run: Path
    cadence: Intervals
    evaluator: EvaluationHook | None
    metrics: MetricsLog
    stop: StopRequest
    bar: Progress
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Of weights: model, preprocessing, classes."""
    patience: PlateauTracker = field(default_factory=PlateauTracker)
    last: dict[str, float] | None = None
    watch: Watch | None = None
    """See `Watch`; in trainings of one process. A run that it ends can be resumed."""
    given_up: bool = False
    still_ours: Callable[[], None] = lambda: None
    """Raises if another command has taken the run's folder over; called before each write."""
    trackers: Trackers = field(default_factory=Trackers)
    """Trackers that get each record of the log."""
    _poll: StopPoll | None = field(default=None, init=False)

    def __call__(self, loop: Trainer) -> None:
        """Do what is due.

        A checkpoint is written before an evaluation, and notes that it is due: a resumed run starts
        with it, so a stop never waits for one.

        Raises:
            Interrupted: a signal stopped the run; the state is saved.
            PrunedError: `watch` ended the run; the state is saved.
            DivergedError: the loss is not finite.
            RunError: another command has taken the run over.
        """
        step, cadence = loop.state.step, self.cadence
        self.bar.update()
        if due(step, cadence.log, cadence.last):
            self._log(loop)
        has_evaluator = self.evaluator is not None
        loop.state.evaluation_due = has_evaluator and due(step, cadence.evaluate, cadence.last)
        if self._is_stopping(loop):
            self._save_and_stop(loop)
        if due(step, cadence.checkpoint, cadence.last):
            self.save(loop)
        self.evaluate_if_due(loop)

    def evaluate_if_due(self, loop: Trainer) -> None:
        """The evaluation of this step, here or where its checkpoint is resumed.

        Raises:
            Interrupted: a signal stopped the run; the state before the step is saved.
            PrunedError: `watch` ended the run; the state is saved.
        """
        if loop.state.evaluation_due:
            self._evaluate(loop)
            loop.state.evaluation_due = False
            if loop.state.ended_early or self.given_up:
                self.save(loop)
        if self.given_up and loop.state.step < self.cadence.last and not loop.state.ended_early:
            raise PrunedError(
                f"{self.run} was given up after step {loop.state.step} of {self.cadence.last}"
            )

    def waits(self, step: int) -> bool:
        """Whether something is due that waits for the device."""
        cadence = self.cadence
        often = (cadence.log, cadence.evaluate, cadence.checkpoint)
        return any(due(step, every, cadence.last) for every in often)

    def _is_stopping(self, loop: Trainer) -> bool:
        if loop.accelerator.num_processes == 1:
            return self.stop.received is not None
        on_gpus = loop.accelerator.device.type == "cuda"
        every = _STOP_EVERY_ON_GPUS if on_gpus else _STOP_EVERY
        polls = due(loop.state.step, every, self.cadence.last)
        return polls and self._any_process_stopped(loop)

    def _any_process_stopped(self, loop: Trainer) -> bool:
        if self._poll is None:
            self._poll = StopPoll(self.stop, loop.accelerator)
        return self._poll()

    def save(self, loop: Trainer) -> None:
        """A checkpoint to resume from.

        Raises:
            DivergedError: the loss is not finite.
            RunError: another command has taken the run over.
        """
        loop.source.finish_checks()  # no checkpoint of a batch whose pixels turn out to be others
        self._check_finite(loop, self._means(loop)["loss"])
        self.still_ours()
        save_checkpoint(self.run, loop, self.metrics)

    def _save_and_stop(self, loop: Trainer) -> NoReturn:
        self.save(loop)
        raise self.stop.interrupted(
            f"stopped after step {loop.state.step} of {self.cadence.last}; state saved in "
            f"{self.run}: run the same command with --resume to go on"
        )

    def _means(self, loop: Trainer, **more: Tensor) -> dict[str, float]:
        """Return the loss of the step, and more scalars of the device, as means over processes."""
        return means_over_processes({"loss": loop.loss, **more}, loop.accelerator)

    def _check_finite(self, loop: Trainer, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {loop.state.step}: lower the learning rate, clip "
                f"gradients (gradient_clip) or use float32; {self.run} keeps the last checkpoint"
            )

    def _log(self, loop: Trainer) -> None:
        """Log the step: what lies on the device is read here alone."""
        update = loop.optimizer_step
        norm = {} if update.gradient_norm is None else {"gradient_norm": update.gradient_norm}
        means = self._means(loop, **loop.loss_parts(), **norm)
        self._check_finite(loop, means["loss"])
        update.check_scale(loop.state.step)
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        seconds = {"train_seconds": round(loop.state.train_seconds, 3)}
        if loop.forward.compiled is not None:
            seconds["compile_seconds"] = round(loop.state.compile_seconds, 3)
        self._record(
            loop,
            **means,
            learning_rate=update.learning_rate,
            images_per_second=round(loop.throughput.take(), 1),
            **update.describe_scale(),
            **seconds,
        )

    def _evaluate(self, loop: Trainer) -> None:
        assert self.evaluator is not None, "without an evaluator, evaluation is never due"

        def stop_if_requested() -> None:
            if self._any_process_stopped(loop):
                self._save_and_stop(loop)

        found = self.evaluator(loop, stop_if_requested)
        for split, values in found.items():
            self._record(loop, split=split, **values)
        self.last = found["test"]
        best = max(loop.state.best_top1_accuracy, self.last["top1_accuracy"])
        loop.state.best_top1_accuracy = best
        by = "" if self.evaluator.bank is None else "k-NN "
        log.info("epoch %.0f: %stop-1 %.2f %%", loop.epoch, by, 100 * self.last["top1_accuracy"])
        if validation := found.get("validation"):
            self._keep_best(loop, validation)
            self.patience.note(loop.state, validation["cross_entropy"])
        self.given_up = self.watch is not None and not self.watch(loop.epoch, found)

    def _keep_best(self, loop: Trainer, validation: Mapping[str, float]) -> None:
        """Save weights, averaged or not, that are better on validation than all before them.

        The test split never chooses.
        """
        state, test = loop.state, self.last or {}
        averaged = validation.get(f"{PREFIX}top1_accuracy", -1.0) > validation["top1_accuracy"]
        top1 = f"{PREFIX}top1_accuracy" if averaged else "top1_accuracy"
        if validation[top1] <= state.best_validation_accuracy:
            return
        state.best_validation_accuracy, state.chosen_average = validation[top1], averaged
        state.chosen_step, state.chosen_top1_accuracy = state.step, test[top1]
        if loop.accelerator.is_main_process:
            model = unwrap_student(loop.accelerator.unwrap_model(loop.model))
            if averaged and loop.average is not None:
                model = loop.average.model
            metadata = {**self.metadata, "step": state.step}
            save_weights(RunFolder(self.run).weights_file("best"), model, metadata=metadata)

    def _record(self, loop: Trainer, **values: Any) -> None:
        self.still_ours()
        where = {"step": loop.state.step, "epoch": round(loop.epoch, 4)}
        self.metrics.append({**where, **values})
        self.trackers.log({**where, **values})
