"""Train a model: load, views, targets, forward, loss, backward, step, log, checkpoint, evaluate."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from kdscale import config
from kdscale.collectives import all_gather_rows
from kdscale.data.loader import BatchLoader
from kdscale.data.rng import derive_seed
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import expect_unused_parameters, main_process_first
from kdscale.experiment import target_source
from kdscale.experiment.checks import check_loss, check_trackers, mention_loss, mention_steps
from kdscale.experiment.datasets import (
    check_splits,
    sample_indices,
    two_views,
)
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.model_checks import Classifier
from kdscale.experiment.model_line import log_model
from kdscale.experiment.pretrained_init import (
    PretrainedInit,
    find_pretrained_init,
    given_init,
)
from kdscale.experiment.results import reading_of, result_of, weights_metadata
from kdscale.experiment.saved_runs import inputs_of, keep_content, of_caches, open_run
from kdscale.experiment.training_setup import (
    averaged_weights,
    forward_pass,
    intervals,
    optimizer_step,
    patience,
    section_of,
    supervised,
    tracked_run,
)
from kdscale.losses.objective import Objective
from kdscale.models.weights import save_weights
from kdscale.progress import progress
from kdscale.run_identity import stated_run
from kdscale.runs.folder import RunFolder
from kdscale.runs.lock import run_lock
from kdscale.runs.log import MetricsLog
from kdscale.runs.run_spec import RunInputs, RunSpec
from kdscale.signals import orderly_stop
from kdscale.target_sources.base import LiveTeacher, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.training.batch_norm import with_whole_batches
from kdscale.training.callbacks import EvaluationHook, StepCallback, Watch
from kdscale.training.feature_student import unwrap_student, with_features
from kdscale.training.resume import restore, restore_best, save_checkpoint
from kdscale.training.trackers import Trackers, start_trackers
from kdscale.training.trainer import Trainer
from kdscale.training.trial_step import mention_unused, unused_parameters
from kdscale.training.unsaved_state import check_state_is_saved
from kdscale.training.wait_for_build import Turn


@dataclass(frozen=True, slots=True)
class _Training:
    """An experiment, the model that is trained in it, and how."""

    experiment: Experiment
    spec: RunSpec
    loss: Objective
    check_lock: Callable[[], None]
    """Raises if another command has taken the run's folder over; called before each write."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.experiment.locations.run_folder

    @property
    def accelerator(self) -> Accelerator:
        """Device and processes."""
        return self.experiment.accelerator

    @property
    def section(self) -> config.ModelSection:
        """The recipe's section of the model."""
        return section_of(self.experiment.recipe, self.spec)[0]

    @property
    def settings(self) -> config.TrainSection:
        """The recipe's training settings of the model."""
        return section_of(self.experiment.recipe, self.spec)[1]


def train(
    experiment: Experiment,
    spec: RunSpec,
    *,
    resume: bool = False,
    wait: bool = False,
    watch: Watch | None = None,
    check_lock: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train one model into the run folder of the experiment.

    Args:
        experiment: recipe and locations, with a run folder; with `targets = 'cache'`, with a cache.
        spec: which model, from which targets, with which seed.
        resume: continue from the newest checkpoint.
        wait: train while the cache is being built, on the views that are finished.
        watch: called after each evaluation; may end the run.
        check_lock: of a caller that has locked the run folder: raises if the lock is lost. None =
            the folder is locked here.

    Returns:
        The object in `result.json`.

    Raises:
        KdscaleError: see `kdscale.errors`.
        Interrupted: by a signal; the state is saved.
        PrunedError: `watch` ended it; the state is saved.
    """
    settings = section_of(experiment.recipe, spec)[1]
    check_trackers(experiment.recipe)
    loss = supervised(settings) if spec.targets == "none" else experiment.loss
    experiment = replace(experiment, require_labels=loss.hard_weight > 0)
    run, accelerator = experiment.locations.run_folder, experiment.accelerator
    with nullcontext(check_lock) if check_lock else run_lock(run, accelerator) as locked:
        training = _Training(experiment, spec, loss, locked)
        pretrained = _open(training, resume=resume)
        with target_source.opened_caches(experiment, spec, wait=wait) as caches:
            source = target_source.make_target_source(experiment, spec, caches)
            inputs = _inputs(experiment, source, caches)
            keep_content(run, inputs, main=accelerator.is_main_process)
            headless = training.section.headless
            mention_loss(loss, settings.epochs, settings.accumulation, headless=headless)
            trainer = _trainer(training, source, pretrained)
            mention_steps(settings, trainer.loader.num_samples, trainer.loader.steps_per_epoch)
            metrics, resumed = restore(run, trainer)
            seconds_before = trainer.state.train_seconds
            turn = _turn(training, trainer, caches) if wait else None
            with metrics, _trackers(training, trainer, metrics, resumed=resumed) as trackers:
                if not resumed:
                    save_checkpoint(run, trainer, metrics)
                last = _run(training, trainer, metrics, trackers, turn=turn, watch=watch)
        result = result_of(trainer, spec, training.section, settings, last)
        if pretrained is not None:
            result["pretrained"] = pretrained.to_json()
        if caches:
            result |= target_source.describe_caches(caches, experiment.recipe)
            result |= reading_of(caches, trainer, trainer.state.train_seconds - seconds_before)
        if wait:
            result["wait_seconds"] = round(trainer.state.wait_seconds, 3)
        _write(training, trainer, result)
    return result


def _open(training: _Training, *, resume: bool) -> PretrainedInit | None:
    """Open the run's folder, check the splits, and find the weights that the model starts from."""
    experiment, main = training.experiment, training.accelerator.is_main_process
    run, spec = training.run, training.spec
    with main_process_first(training.accelerator):
        open_run(run, experiment.recipe, spec, resume=resume, main=main)
        student = experiment.given.student
        pretrained = (
            find_pretrained_init(run, training.section, spec.model, main=main)
            if student is None
            else given_init(run, student, main=main)
        )
        check_loss(training.loss, experiment.train_set, _views(training))
        _ = experiment.test_set  # decoded by the main process
    check_splits(experiment.train_set, experiment.test_set)
    return pretrained


def _views(training: _Training) -> Pipeline:
    """Return the views that the model is trained on."""
    return training.experiment.training_views(training.settings)


def _inputs(
    experiment: Experiment, source: TargetSource, caches: Sequence[CachedTargets]
) -> RunInputs:
    """Return the identity of all that the run learns from."""
    windows = None if source.windows is None else source.windows.describe()
    splits = replace(inputs_of(experiment.train_set, experiment.test_set), windows=windows)
    if isinstance(source, LiveTeacher):
        return replace(splits, teacher=source.teacher.weights_sha256)
    return of_caches(splits, [cached.manifest for cached in caches]) if caches else splits


def _trainer(
    training: _Training, source: TargetSource, pretrained: PretrainedInit | None
) -> Trainer:
    """Create the trainer, and all that it uses."""
    settings, accelerator, loss = training.settings, training.accelerator, training.loss
    experiment, spec = training.experiment, training.spec
    loader = _loader(training, source)
    classifier = experiment.model_to_train(training.section, spec.seed, spec.model)
    log_model(
        spec.model, training.section.model, classifier.model, experiment.train_set,
        device=accelerator.device, precision=settings.precision,
    )  # fmt: skip
    model = _student(training, classifier, loader, source, pretrained).to(accelerator.device)
    _check_trainable(training, model, classifier, loader)
    model = accelerator.prepare(model)
    if accelerator.process_index:  # other dropout than the main process
        torch.manual_seed(derive_seed(spec.seed, accelerator.process_index) >> 1)
    device, batch_size = accelerator.device, settings.global_batch_size // accelerator.num_processes
    return Trainer(
        forward_pass(settings, model, classifier.preprocess, device, batch_size, spec.model),
        loader,
        source,
        replace(loss, gather=all_gather_rows) if accelerator.num_processes > 1 else loss,
        optimizer_step(settings, accelerator.unwrap_model(model), device, loader.steps_per_epoch),
        accelerator,
        accumulation=settings.accumulation,
        average=averaged_weights(settings, accelerator.unwrap_model(model)),
    )


def _check_trainable(
    training: _Training, model: nn.Module, classifier: Classifier, loader: BatchLoader
) -> None:
    """Take a trial step, and stop where a checkpoint would not save all of the model's state."""
    experiment, what = training.experiment, training.spec.model
    inputs = classifier.preprocess(two_views(experiment.train_images, loader.pipeline))
    check_state_is_saved(model, inputs, what)
    headless = training.section.headless
    unused = unused_parameters(
        model, inputs, num_classes=None if headless else experiment.train_set.num_classes,
        precision=training.settings.precision, what=what,
    )  # fmt: skip
    check_state_is_saved(model, inputs, what)
    if unused:
        mention_unused(unused, what)
        expect_unused_parameters(training.accelerator)


def _loader(training: _Training, source: TargetSource) -> BatchLoader:
    """Return batches of the training split, without the validation samples."""
    experiment = training.experiment
    samples, _ = sample_indices(experiment.recipe, experiment.train_set)
    return BatchLoader(
        experiment.train_images,
        samples,
        _views(training),
        source.schedule,
        seed=training.spec.seed,
        global_batch_size=training.settings.global_batch_size,
        process=(training.accelerator.process_index, training.accelerator.num_processes),
        windows=source.windows,
    )


def _student(
    training: _Training,
    classifier: Classifier,
    loader: BatchLoader,
    source: TargetSource,
    pretrained: PretrainedInit | None,
) -> nn.Module:
    """Return the model as it is trained: pretrained, over all processes, with feature losses."""
    student, loss, accelerator = classifier.model, training.loss, training.accelerator
    if pretrained is not None:
        pretrained.put_into(student, training.section, training.spec.model)
    if training.settings.sync_batch_norm and accelerator.num_processes > 1:
        student = with_whole_batches(student, accelerator.device)
    if not loss.features:
        return student
    pixels = loader.batch(0).pixels[:2]
    inputs = classifier.preprocess(pixels).cpu()
    shapes = target_source.feature_shapes(source, pixels)
    seed, with_logits = training.spec.seed, loss.with_logits
    return with_features(student, loss.features, inputs, shapes, seed, with_logits=with_logits)


BeforeEpoch = Callable[[StepCallback], Turn]


def _turn(training: _Training, trainer: Trainer, caches: Sequence[CachedTargets]) -> BeforeEpoch:
    """Return what creates the wait for views that are still being built."""

    def turn(callback: StepCallback) -> Turn:
        save = partial(callback.save, trainer)
        return Turn(caches, trainer, training.run, save, callback.stop)

    return turn


def _trackers(
    training: _Training, trainer: Trainer, metrics: MetricsLog, *, resumed: bool
) -> Trackers:
    """Start the trackers of the run, in the main process."""
    accelerator, recipe, spec = training.accelerator, training.experiment.recipe, training.spec
    trackers = Trackers()
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            trackers = start_trackers(
                training.settings.log_with, tracked_run(recipe, spec, training.run), metrics,
                resumed_at=trainer.state.step if resumed else None,
            )  # fmt: skip
    return trackers


def _run(
    training: _Training,
    trainer: Trainer,
    metrics: MetricsLog,
    trackers: Trackers,
    *,
    turn: BeforeEpoch | None,
    watch: Watch | None,
) -> Mapping[str, float]:
    """Train to the end, and return the last evaluation on the test split of the final weights.

    Without a test split, it is empty.
    """
    run, settings, accelerator = training.run, training.settings, training.accelerator
    evaluator = _evaluator(training)
    steps = intervals(settings, trainer.loader.steps_per_epoch)
    metadata = _metadata(training, trainer)
    drawn = accelerator.is_main_process
    bars = progress(steps.last, "steps", done=trainer.state.step, visible=drawn)
    with orderly_stop() as stop, bars as bar:
        callback = StepCallback(
            run, steps, evaluator, metrics, stop, bar, metadata, patience(settings), watch=watch,
            still_ours=training.check_lock, trackers=trackers,
        )  # fmt: skip
        callback.evaluate_if_due(trainer)
        before_epoch = turn(callback) if turn else None
        trainer.run(steps.last, after_step=callback, before_epoch=before_epoch)
    if evaluator is None:
        return {}
    last = callback.last or evaluator(trainer)["test"]  # None: evaluated before it was last saved
    if not settings.restore_best:
        return last
    restore_best(run, trainer)
    return evaluator(trainer)["test"] | {"last_top1_accuracy": last["top1_accuracy"]}


def _evaluator(training: _Training) -> EvaluationHook | None:
    """Return the evaluation on the test split; None without one."""
    experiment = training.experiment
    if experiment.test_set is None:
        return None
    known, validation = sample_indices(experiment.recipe, experiment.train_set)
    tested = experiment.on_device(experiment.test_set)
    bank = None
    if training.section.headless:
        bank = known if experiment.train_set.labelled else known[:0]
    return EvaluationHook(
        tested, experiment.test_set.num_classes, experiment.train_images, validation, bank
    )


def _metadata(training: _Training, trainer: Trainer) -> dict[str, object]:
    train_set, test_set = training.experiment.train_set, training.experiment.test_set
    stated = weights_metadata(training.section, train_set, test_set, trainer)
    return {**stated, **stated_run(training.run)}


def _write(training: _Training, trainer: Trainer, result: dict[str, Any]) -> None:
    """Write weights, then the result, which marks the run as finished."""
    accelerator = training.accelerator
    training.check_lock()
    if accelerator.is_main_process:
        model = unwrap_student(accelerator.unwrap_model(trainer.model))
        metadata = _metadata(training, trainer)
        folder = RunFolder(training.run)
        save_weights(folder.weights_file(), model, metadata=metadata | {"metrics": result})
        if trainer.average is not None:
            average = trainer.average.model
            save_weights(folder.weights_file("ema"), average, metadata=metadata)
        folder.write_result(result)
    accelerator.wait_for_everyone()
