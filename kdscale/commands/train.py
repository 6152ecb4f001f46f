"""Train a model: load, views, targets, forward, loss, backward, step, log, checkpoint, evaluate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from kdscale import config, experiment
from kdscale.cache.stores.base import Place
from kdscale.cache.stores.read_through import Copies
from kdscale.collectives import all_gather_rows
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.rng import derive_seed
from kdscale.distributed import create_accelerator, expect_unused_parameters, main_process_first
from kdscale.experiment import target_source
from kdscale.experiment.checks import check_loss, mention_loss, mention_steps
from kdscale.experiment.pretrained_init import PretrainedInit, find_pretrained_init
from kdscale.experiment.results import reading_of, result_of, weights_metadata
from kdscale.experiment.saved_runs import keep_content, of_caches, open_run
from kdscale.losses.objective import Objective
from kdscale.models.weights import save_weights
from kdscale.runs.folder import RunFolder, RunInputs, RunSpec
from kdscale.runs.lock import run_lock
from kdscale.runs.log import MetricsLog
from kdscale.signals import orderly_stop
from kdscale.target_sources.base import LiveTeacher, NoTargets, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.teacher.checks import inspect_teacher
from kdscale.teacher.frozen_teacher import OomSafeTeacher
from kdscale.training.batch_norm import with_whole_batches
from kdscale.training.callbacks import EvaluationHook, Intervals, StepCallback, Watch, progress_bar
from kdscale.training.feature_student import unwrap_student, with_features
from kdscale.training.resume import restore_best, restore_or_begin
from kdscale.training.trainer import Trainer
from kdscale.training.trial_step import mention_unused, unused_parameters
from kdscale.training.unsaved_state import check_state_is_saved
from kdscale.training.wait_for_build import Turn


@dataclass(frozen=True, slots=True)
class _Training:
    """What the steps of a training share: what is trained, where, and on what."""

    recipe: config.Recipe
    job: RunSpec
    run: Path
    cache_root: Path
    teacher_weights: str | None
    loss: Objective
    accelerator: Accelerator
    still_ours: Callable[[], None]
    """Raises where another command has taken the run's folder over; asked before it is written."""

    @property
    def section(self) -> config.ModelSection:
        """The recipe's, of the model."""
        return self.job.section(self.recipe)[0]

    @property
    def settings(self) -> config.TrainSection:
        """How it is trained."""
        return self.job.section(self.recipe)[1]


@dataclass(frozen=True, slots=True)
class _Data:
    """The splits, and the training split where steps take it from."""

    images: ImageDataset
    test: ImageDataset
    resident: DeviceImages


def train(
    recipe: config.Recipe,
    job: RunSpec,
    *,
    run: Path,
    cache_root: Path,
    cache: Place | None = None,
    copies: Copies | None = None,
    teacher_weights: str | None = None,
    resume: bool = False,
    wait: bool = False,
    watch: Watch | None = None,
    still_ours: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train one model into the folder `run`.

    Args:
        recipe: the recipe.
        job: which model, from which targets, with which seed.
        run: the run's folder; gets recipe, metrics, checkpoints, weights and result.
        cache_root: where decoded images lie.
        cache: the recipe's cache, folder or URL, for `targets == "cache"`.
        copies: local ones of remote caches' objects; none are kept when None.
        teacher_weights: used where the recipe names none.
        resume: go on from the newest checkpoint.
        wait: train while the cache is being built, on the views that are finished.
        watch: told of each evaluation; may end the run.
        still_ours: of a caller who sees to it that nobody else trains into `run`: raises where it
            has lost it, and is asked before anything is written. None: seen to here.

    Returns:
        What `result.json` holds.

    Raises:
        KdscaleError: see `kdscale.errors`.
        Interrupted: asked to stop; the state is saved.
        PrunedError: `watch` ended it; the state is saved.
    """
    settings = job.section(recipe)[1]
    alone = job.targets == "none"
    loss = experiment.supervised(settings) if alone else experiment.objective(recipe)
    accelerator = create_accelerator()
    with nullcontext(still_ours) if still_ours else run_lock(run, accelerator) as ours:
        training = _Training(recipe, job, run, cache_root, teacher_weights, loss, accelerator, ours)
        data, begun = _open(training, resume=resume)
        with _opened_caches(training, data, cache, copies, wait=wait) as caches:
            source = _source(training, data, caches)
            keep_content(run, _content(data, source, caches), main=accelerator.is_main_process)
            mention_loss(loss, training.settings.epochs, training.settings.accumulation)
            loop = _loop(training, data, source, begun)
            mention_steps(training.settings, loop.loader.steps_per_epoch)
            metrics = restore_or_begin(run, loop)
            before_seconds = loop.state.train_seconds
            last = _run(training, data, loop, metrics, caches, wait=wait, watch=watch)
        result = result_of(loop, job, training.section, training.settings, last)
        if begun is not None:
            result["pretrained"] = begun.to_json()
        if caches:
            result |= target_source.describe_caches(caches, recipe)
            result |= reading_of(caches, loop, loop.state.train_seconds - before_seconds)
        if wait:
            result["wait_seconds"] = round(loop.state.wait_seconds, 3)
        _write(training, data, loop, result)
    return result


def _open(training: _Training, *, resume: bool) -> tuple[_Data, PretrainedInit | None]:
    """The run's folder, the splits, and what the model begins from, once all of them will do."""
    recipe, loss, accelerator = training.recipe, training.loss, training.accelerator
    run, main = training.run, accelerator.is_main_process
    with main_process_first(accelerator):
        open_run(run, recipe, training.job, resume=resume, main=main)
        begun = find_pretrained_init(run, training.section, training.job.model, main=main)
        images = experiment.training_images(
            recipe, training.cache_root, labelled=loss.hard_weight > 0
        )
        shown = experiment.training_pipeline(recipe, training.settings, images.num_samples)
        check_loss(loss, images, shown)
        test = experiment.test_images(recipe, training.cache_root)
    experiment.check_same_classes(images, test)
    experiment.mention_other_shape(images, test)
    return _Data(images, test, DeviceImages(images, accelerator.device)), begun


@contextmanager
def _opened_caches(
    training: _Training, data: _Data, cache: Place | None, copies: Copies | None, *, wait: bool
) -> Iterator[list[CachedTargets]]:
    """The caches that teach, read ahead until the block ends; none where none does."""
    if training.job.targets != "cache":
        yield []
        return
    assert cache is not None, "the command line builds or finds a cache first"
    caches = target_source.open_caches(
        training.recipe, data.images, cache, cache_root=training.cache_root,
        teacher_weights=training.teacher_weights, device=training.accelerator.device,
        seed=training.job.seed, epochs=training.settings.epochs, wait=wait, copies=copies,
    )  # fmt: skip
    try:
        yield caches
    finally:
        for cached in caches:
            cached.close()


def _source(training: _Training, data: _Data, caches: Sequence[CachedTargets]) -> TargetSource:
    """Where the targets come from; the loop cannot tell."""
    recipe, images = training.recipe, data.images
    fresh = experiment.fresh_views(recipe, training.settings, images.num_samples)
    if training.job.targets == "none":
        return NoTargets(fresh)
    if training.job.targets == "teacher":
        weights, device = training.teacher_weights, training.accelerator.device
        teacher = experiment.frozen_teacher(recipe, images, weights, device)
        teacher = replace(teacher, taps=experiment.taps_asked(recipe))
        inspect_teacher(OomSafeTeacher(teacher, recipe.teacher.batch_size), data.resident, images)
        return LiveTeacher(teacher, experiment.shared_views(recipe))
    return target_source.make_target_source(caches, recipe, data.resident, fresh)


def _content(data: _Data, source: TargetSource, caches: Sequence[CachedTargets]) -> RunInputs:
    windows = None if source.windows is None else source.windows.describe()
    splits = RunInputs(data.images.fingerprint, data.test.fingerprint, None, None, windows)
    if isinstance(source, LiveTeacher):
        return replace(splits, teacher=source.teacher.weights_sha256)
    return of_caches(splits, [cached.manifest for cached in caches]) if caches else splits


def _loop(
    training: _Training, data: _Data, source: TargetSource, begun: PretrainedInit | None
) -> Trainer:
    """The loop, and all that it uses."""
    settings, accelerator, loss = training.settings, training.accelerator, training.loss
    loader = _loader(training, data, source)
    classifier = experiment.model_to_train(
        training.recipe, training.section, data.images, seed=training.job.seed,
        what=training.job.model, tested=data.test,
    )  # fmt: skip
    model = _student(training, classifier, loader, source, begun).to(accelerator.device)
    inputs = classifier.preprocess(experiment.two_views(data.resident, loader.pipeline))
    check_state_is_saved(model, inputs, training.job.model)
    unused = unused_parameters(
        model, inputs, num_classes=data.images.num_classes, precision=settings.precision,
        what=training.job.model,
    )  # fmt: skip
    check_state_is_saved(model, inputs, training.job.model)
    if unused:
        mention_unused(unused, training.job.model)
        expect_unused_parameters(accelerator)
    model = accelerator.prepare(model)
    if accelerator.process_index:  # other dropout than the main process
        torch.manual_seed(derive_seed(training.job.seed, accelerator.process_index) >> 1)
    return Trainer(
        model,
        classifier.preprocess,
        loader,
        source,
        replace(loss, gather=all_gather_rows) if accelerator.num_processes > 1 else loss,
        experiment.optimizer(settings, model),
        experiment.schedule(settings, loader.steps_per_epoch),
        accelerator,
        precision=settings.precision,
        accumulation=settings.accumulation,
        gradient_clip=settings.gradient_clip,
    )


def _loader(training: _Training, data: _Data, source: TargetSource) -> BatchLoader:
    """Batches of the training split, without what is held out to validate."""
    samples, _ = experiment.sample_indices(training.recipe, data.images)
    settings, num_samples = training.settings, data.images.num_samples
    return BatchLoader(
        data.resident,
        samples,
        experiment.training_pipeline(training.recipe, settings, num_samples),
        source.schedule,
        seed=training.job.seed,
        global_batch_size=settings.global_batch_size,
        process_index=training.accelerator.process_index,
        num_processes=training.accelerator.num_processes,
        windows=source.windows,
    )


def _student(
    training: _Training,
    classifier: experiment.Classifier,
    loader: BatchLoader,
    source: TargetSource,
    begun: PretrainedInit | None,
) -> nn.Module:
    """The model as it is trained: begun, over all processes, with what its losses need."""
    student, loss, accelerator = classifier.model, training.loss, training.accelerator
    if begun is not None:
        begun.put_into(student, training.section, training.job.model)
    if training.settings.sync_batch_norm and accelerator.num_processes > 1:
        student = with_whole_batches(student, accelerator.device)
    if not loss.features:
        return student
    pixels = loader.batch(0).pixels[:2]
    shown, shapes = (
        classifier.preprocess(pixels).cpu(),
        target_source.feature_shapes(source, pixels),
    )
    seed, with_logits = training.job.seed, loss.with_logits
    return with_features(student, loss.features, shown, shapes, seed, with_logits=with_logits)


def _run(
    training: _Training,
    data: _Data,
    loop: Trainer,
    metrics: MetricsLog,
    caches: Sequence[CachedTargets],
    *,
    wait: bool,
    watch: Watch | None,
) -> Mapping[str, float]:
    """Train to the end; the last evaluation on the test split, of the weights that are kept."""
    run, settings, accelerator = training.run, training.settings, training.accelerator
    evaluator = _evaluator(training, data)
    cadence = Intervals.of(settings, loop.loader.steps_per_epoch)
    metadata = weights_metadata(training.section, data.images, loop)
    with orderly_stop() as stop, metrics, progress_bar(loop, cadence.last, accelerator) as bar:
        patience = experiment.patience(settings)
        following = StepCallback(
            run, cadence, evaluator, metrics, stop, bar, metadata, patience, watch=watch,
            still_ours=training.still_ours,
        )  # fmt: skip
        turn = Turn(caches, loop, run, partial(following.save, loop), stop) if wait else None
        following.evaluate_if_due(loop)
        loop.run(cadence.last, after_step=following, before_epoch=turn)
    last = following.last or evaluator(loop)["test"]  # None: evaluated before it was last saved
    if not settings.restore_best:
        return last
    restore_best(run, loop)
    return evaluator(loop)["test"] | {"last_top1_accuracy": last["top1_accuracy"]}


def _evaluator(training: _Training, data: _Data) -> EvaluationHook:
    _, validation = experiment.sample_indices(training.recipe, data.images)
    tested = DeviceImages(data.test, training.accelerator.device)
    return EvaluationHook(tested, data.images.num_classes, data.resident, validation)


def _write(training: _Training, data: _Data, loop: Trainer, result: dict[str, Any]) -> None:
    """Weights, then the result, which says that the run is finished."""
    accelerator = training.accelerator
    training.still_ours()
    if accelerator.is_main_process:
        model = unwrap_student(accelerator.unwrap_model(loop.model))
        metadata = weights_metadata(training.section, data.images, loop) | {"metrics": result}
        folder = RunFolder(training.run)
        save_weights(folder.weights_file(), model, metadata=metadata)
        folder.write_result(result)
    accelerator.wait_for_everyone()
