"""Train a model: load, views, targets, forward, loss, backward, step, log, checkpoint, evaluate."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from kdscale import config
from kdscale.cache.copies import Copies
from kdscale.cache.store import Place
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images, Loader
from kdscale.data.views.generator import chain
from kdscale.engine import components
from kdscale.engine.across import gathered
from kdscale.engine.batch_norm import with_whole_batches
from kdscale.engine.beginning import Beginning, find_beginning
from kdscale.engine.following import (
    Cadence,
    Evaluator,
    Following,
    Watch,
    progress_bar,
    restore_best,
    restore_or_begin,
    save_checkpoint,
)
from kdscale.engine.loop import Loop
from kdscale.engine.processes import create_accelerator, main_process_first
from kdscale.engine.requirements import check_loss, mention_loss
from kdscale.engine.runs import Content, Job, keep_content, of_caches, open_run
from kdscale.engine.sources import teaching
from kdscale.engine.sources.cached import CachedTargets
from kdscale.engine.sources.source import LiveTeacher, NoTargets, TargetSource
from kdscale.engine.sources.waiting import Turn
from kdscale.engine.taught import student_of, taught
from kdscale.losses.objective import SUPERVISED, Objective
from kdscale.models.registry import num_parameters
from kdscale.models.weights import save_weights
from kdscale.runlog import write_result
from kdscale.signals import orderly_stop

log = logging.getLogger(__name__)


def train(
    recipe: config.Recipe,
    job: Job,
    *,
    run: Path,
    cache_root: Path,
    cache: Place | None = None,
    copies: Copies | None = None,
    teacher_weights: str | None = None,
    resume: bool = False,
    wait: bool = False,
    watch: Watch | None = None,
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

    Returns:
        What `result.json` holds.

    Raises:
        KdscaleError: see `kdscale.errors`.
        Interrupted: asked to stop; the state is saved.
        PrunedError: `watch` ended it; the state is saved.
    """
    section, settings = job.section(recipe)
    loss = SUPERVISED if job.targets == "none" else components.objective(recipe)
    accelerator = create_accelerator(all_learn=loss.with_logits)
    if accelerator.num_processes > 1:
        loss = replace(loss, gather=gathered)
    with main_process_first(accelerator):
        open_run(run, recipe, job, resume=resume, main=accelerator.is_main_process)
        begun = find_beginning(run, section, job.model, main=accelerator.is_main_process)
        images = components.training_images(recipe, cache_root, labelled=loss.hard_weight > 0)
        shown = components.training_pipeline(recipe, settings, images.num_samples)
        check_loss(loss, images, shown)
        test = components.test_images(recipe, cache_root)
    components.check_same_classes(images, test)
    resident = Images(images, accelerator.device)
    caches: list[CachedTargets] = []
    if job.targets == "cache":
        assert cache is not None, "the command line builds or finds a cache first"
        caches = teaching.open_caches(
            recipe, images, cache, cache_root=cache_root, teacher_weights=teacher_weights,
            device=accelerator.device, seed=job.seed, epochs=settings.epochs, wait=wait,
            copies=copies,
        )  # fmt: skip
    source = _source(recipe, job, images, resident, caches, teacher_weights, accelerator)
    content = _content(images, test, source, caches)
    keep_content(run, content, main=accelerator.is_main_process)
    mention_loss(loss, settings.epochs, settings.accumulation)
    loop = _loop(recipe, job, images, resident, source, loss, accelerator, begun)
    evaluator = _evaluator(recipe, images, resident, test, accelerator)
    cadence = _cadence(settings, loop.loader.steps_per_epoch)
    metadata = _metadata(section, images, loop)
    metrics = restore_or_begin(run, loop)
    before_seconds = loop.state.train_seconds
    with orderly_stop() as stop, metrics, progress_bar(loop, cadence.last, accelerator) as bar:
        patience = components.patience(settings)
        following = Following(
            run, cadence, evaluator, metrics, stop, bar, metadata, patience, watch=watch
        )
        save = partial(save_checkpoint, run, loop, metrics)
        turn = Turn(caches, loop, run, save, stop) if wait else None
        try:
            following.evaluate_if_due(loop)
            loop.run(cadence.last, after_step=following, before_epoch=turn)
        finally:
            for cached in caches:
                cached.close()
    last = following.last or evaluator(loop)["test"]  # None: evaluated before it was last saved
    if settings.restore_best:
        restore_best(run, loop)
        last = evaluator(loop)["test"] | {"last_top1_accuracy": last["top1_accuracy"]}
    result = _result(job, section, settings, loop, last)
    if begun is not None:
        result["pretrained"] = begun.to_json()
    if caches:
        result |= teaching.told_of(caches, recipe)
        result |= _reading(caches, loop, loop.state.train_seconds - before_seconds)
    if wait:
        result["wait_seconds"] = round(loop.state.wait_seconds, 3)
    if accelerator.is_main_process:
        model = student_of(accelerator.unwrap_model(loop.model))
        metadata["metrics"] = result
        save_weights(run / "weights.safetensors", model, metadata=metadata)
        write_result(run, result)
    accelerator.wait_for_everyone()
    return result


def _source(
    recipe: config.Recipe,
    job: Job,
    images: ImageSet,
    resident: Images,
    caches: Sequence[CachedTargets],
    teacher_weights: str | None,
    accelerator: Accelerator,
) -> TargetSource:
    """Where the targets come from; the loop cannot tell."""
    fresh = components.fresh_views(recipe, job.section(recipe)[1], images.num_samples)
    if job.targets == "none":
        return NoTargets(fresh)
    if job.targets == "teacher":
        teacher = components.frozen_teacher(recipe, images, teacher_weights, accelerator.device)
        teacher = replace(teacher, taps=components.taps_asked(recipe))
        return LiveTeacher(teacher, components.shared_views(recipe))
    return teaching.taught_by(caches, recipe, resident, fresh)


def _loop(
    recipe: config.Recipe,
    job: Job,
    images: ImageSet,
    resident: Images,
    source: TargetSource,
    loss: Objective,
    accelerator: Accelerator,
    begun: Beginning | None,
) -> Loop:
    section, settings = job.section(recipe)
    training, _ = components.sample_indices(recipe, images)
    loader = Loader(
        resident,
        training,
        components.training_pipeline(recipe, settings, images.num_samples),
        source.schedule,
        seed=job.seed,
        global_batch_size=settings.global_batch_size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        windows=source.windows,
    )
    classifier = components.create_student(recipe, section, images, seed=job.seed, what=job.model)
    student = classifier.model
    if begun is not None:
        begun.put_into(student, section, job.model)
    if settings.sync_batch_norm and accelerator.num_processes > 1:
        student = with_whole_batches(student, accelerator.device)
    if loss.features:
        pixels = loader.batch(0).pixels[:2]
        shown, shapes = classifier.preprocess(pixels).cpu(), _feature_shapes(source, pixels)
        with_logits = loss.with_logits
        student = taught(student, loss.features, shown, shapes, job.seed, with_logits=with_logits)
    model = accelerator.prepare(student)
    if accelerator.process_index:  # other dropout than the main process
        torch.manual_seed(chain(job.seed, accelerator.process_index) >> 1)
    return Loop(
        model,
        classifier.preprocess,
        loader,
        source,
        loss,
        components.optimizer(settings, model.parameters()),
        components.schedule(settings, loader.steps_per_epoch),
        accelerator,
        precision=settings.precision,
        accumulation=settings.accumulation,
        gradient_clip=settings.gradient_clip,
    )


def _feature_shapes(source: TargetSource, pixels: Tensor) -> dict[str, tuple[int, ...]]:
    """Of one sample's features of the teacher, by module."""
    if isinstance(source, LiveTeacher):
        features = source.teacher.answers(pixels).features
        return {name: tuple(values.shape[1:]) for name, values in features.items()}
    assert isinstance(source, CachedTargets), "features come from one cache or a live teacher"
    return {one["module"]: tuple(one["shape"]) for one in source.manifest.features}


def _content(
    images: ImageSet, test: ImageSet, source: TargetSource, caches: Sequence[CachedTargets]
) -> Content:
    windows = None if source.windows is None else source.windows.describe()
    splits = Content(images.fingerprint, test.fingerprint, None, None, windows)
    if isinstance(source, LiveTeacher):
        return replace(splits, teacher=source.teacher.weights_sha256)
    return of_caches(splits, [cached.manifest for cached in caches]) if caches else splits


def _evaluator(
    recipe: config.Recipe,
    images: ImageSet,
    resident: Images,
    test: ImageSet,
    accelerator: Accelerator,
) -> Evaluator:
    _, validation = components.sample_indices(recipe, images)
    tested = Images(test, accelerator.device)
    return Evaluator(tested, images.num_classes, resident, validation)


def _cadence(settings: config.Train, steps_per_epoch: int) -> Cadence:
    return Cadence(
        log=settings.log_every,
        evaluate=settings.evaluate_every * steps_per_epoch,
        checkpoint=settings.checkpoint_every or steps_per_epoch,
        last=settings.epochs * steps_per_epoch,
    )


def _result(
    job: Job,
    section: config.Model,
    settings: config.Train,
    loop: Loop,
    last: Mapping[str, float],
) -> dict[str, Any]:
    result = {
        **last,
        "best_top1_accuracy": loop.state.best_top1_accuracy,
        "train_seconds": round(loop.state.train_seconds, 3),
        "num_parameters": num_parameters(student_of(loop.accelerator.unwrap_model(loop.model))),
        "targets": job.targets,
        "seed": job.seed,
        "role": job.model,
        "model": section.model,
        "epochs": round(loop.epoch),
        "steps": loop.state.step,
        "num_processes": loop.accelerator.num_processes,
        "device": loop.accelerator.device.type,
    }
    if loop.state.best_validation_accuracy >= 0:
        names = ("best_validation_accuracy", "chosen_step", "chosen_top1_accuracy")
        result |= {name: getattr(loop.state, name) for name in names}
    if result["epochs"] < settings.epochs:
        result["ended_early"] = True
    return result


def _reading(
    caches: Sequence[CachedTargets], loop: Loop, train_seconds: float
) -> dict[str, dict[str, Any]]:
    """What a result says of reading since this process began."""
    shown = loop.loader.num_samples / loop.accelerator.num_processes
    first, *others = (cached.reading(shown / cached.manifest.num_samples) for cached in caches)
    reading = sum(others, first)
    log.info("targets: %s", reading.describe(train_seconds))
    return {"reading": reading.to_json(train_seconds)}


def _metadata(section: config.Model, images: ImageSet, loop: Loop) -> dict[str, object]:
    """Weights say what they are: model, preprocessing, classes."""
    return {
        "model": section.model,
        "options": dict(section.options),
        "num_classes": images.num_classes,
        "class_names": list(images.classes),
        "preprocess": loop.preprocess.describe(),
    }
