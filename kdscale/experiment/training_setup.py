"""The recipe's loss, optimizer and learning rates."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdscale import config
from kdscale.compilation import CompiledModel
from kdscale.errors import ConfigError
from kdscale.losses.objective import SUPERVISED, FeatureTerm, Objective
from kdscale.models.feature_extraction import FeatureSpec
from kdscale.models.preprocess import Preprocess
from kdscale.runs.folder import RunFolder
from kdscale.runs.run_spec import RunSpec
from kdscale.training.averaged_weights import AveragedWeights
from kdscale.training.callbacks import Intervals
from kdscale.training.early_stopping import PlateauTracker
from kdscale.training.optim import OptimizerStep, Schedule, create_optimizer
from kdscale.training.parameter_groups import decay_groups, layer_decay_groups
from kdscale.training.trackers import TrackedRun
from kdscale.training.trainer import ForwardPass


def section_of(
    recipe: config.Recipe, spec: RunSpec
) -> tuple[config.ModelSection, config.TrainSection]:
    """Return the recipe's section of the model that is trained, and its training settings.

    Raises:
        ConfigError: the recipe has none, or its views or caches do not go with the targets.
    """
    section: config.ModelSection = recipe.teacher if spec.model == "teacher" else recipe.student
    if section.train is None:
        raise ConfigError(
            f"recipe {recipe.name!r} has no [{spec.model}.train] section: add one, with epochs"
        )
    if spec.targets == "none" and section.headless:
        raise ConfigError(
            f"{spec.model}.options has num_classes = 0, so there are no logits to learn labels by: "
            "train with --targets cache, or with --online"
        )
    if spec.targets == "teacher" and recipe.views.mode == "fixed":
        raise ConfigError(
            "views.mode = 'fixed' takes the logits of the clean images from a cache: train "
            "with --targets cache, without --online"
        )
    if spec.targets == "teacher" and recipe.ensemble.caches:
        raise ConfigError(
            "ensemble.caches names teachers whose logits are in caches: train with --targets "
            "cache, without --online, or leave the section out"
        )
    return section, section.train


def supervised(settings: config.TrainSection) -> Objective:
    """Return the loss of a supervised training: cross-entropy on the labels."""
    return replace(SUPERVISED, label_smoothing=settings.label_smoothing)


def objective(recipe: config.Recipe) -> Objective:
    """Return the recipe's losses."""
    loss, train = recipe.loss, recipe.student.train
    return Objective(
        loss.hard_weight,
        loss.soft_weight,
        loss.temperature,
        kind=loss.kind,
        options=loss.options,
        standardize=loss.standardize,
        warmup_epochs=loss.warmup_epochs,
        label_smoothing=train.label_smoothing if train else 0.0,
        feature_weight=loss.feature_weight,
        feature_terms=tuple(
            FeatureTerm(one.kind, one.student, one.teacher, one.options, one.project)
            for one in loss.features
        ),
    )


def features_required(recipe: config.Recipe) -> tuple[FeatureSpec, ...]:
    """Return the modules of the teacher that the losses need, pooled as in the recipe's cache."""
    required = {term.teacher for term in objective(recipe).features}
    return tuple(
        FeatureSpec(f.module, f.pool) for f in recipe.cache.features if f.module in required
    )


def optimizer(settings: config.TrainSection, model: nn.Module) -> torch.optim.Optimizer:
    """Create the optimizer of a training section.

    Args:
        settings: the section.
        model: as it is trained, on its device, not wrapped by Accelerate.

    Raises:
        ConfigError: there is no such optimizer, or it or the model does not take the settings.
    """
    on_gpu = all(parameter.is_cuda for parameter in model.parameters())
    return create_optimizer(
        settings.optimizer,
        _parameters(settings, model),
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=on_gpu,
        options=settings.optimizer_options,
    )


def _parameters(settings: config.TrainSection, model: nn.Module) -> Any:
    """Return the parameters in groups of their own decay and learning rate, if there are any."""
    decay, everything = settings.weight_decay, settings.decay_norm_and_bias
    if settings.layer_decay is not None:
        return layer_decay_groups(
            model, decay, settings.layer_decay, decay_norm_and_bias=everything
        )
    return model.parameters() if everything else decay_groups(model, decay)


def optimizer_step(
    settings: config.TrainSection, model: nn.Module, device: torch.device, steps_per_epoch: int
) -> OptimizerStep:
    """Create the optimizer step of a training section.

    Args:
        settings: the section.
        model: as it is trained, on its device, not wrapped by Accelerate.
        device: of the model.
        steps_per_epoch: optimizer steps an epoch.
    """
    return OptimizerStep(
        optimizer(settings, model),
        schedule(settings, steps_per_epoch),
        device,
        precision=settings.precision,
        gradient_clip=settings.gradient_clip,
        allow_tf32=settings.allow_tf32,
    )


def averaged_weights(settings: config.TrainSection, model: nn.Module) -> AveragedWeights | None:
    """Return the moving average of a model's weights; None if a training section has none.

    Raises:
        ModelError: the model cannot be copied.
    """
    return None if settings.ema_decay is None else AveragedWeights(model, settings.ema_decay)


def forward_pass(
    settings: config.TrainSection,
    model: nn.Module,
    preprocess: Preprocess,
    device: torch.device,
    batch_size: int,
    what: str = "student",
) -> ForwardPass:
    """Create the forward pass of a training section.

    Args:
        settings: the section.
        model: as Accelerate prepared it.
        preprocess: the model's.
        device: of the model.
        batch_size: images of a full batch of this process.
        what: "student" or "teacher".
    """
    compiled = None
    if settings.compile:
        compiled = CompiledModel(
            model,
            settings.compile,
            what=f"{what}.train",
            batch_size=-(-batch_size // settings.accumulation),
        )
    return ForwardPass(
        model,
        preprocess,
        device,
        precision=settings.precision,
        allow_tf32=settings.allow_tf32,
        compiled=compiled,
    )


def schedule(settings: config.TrainSection, steps_per_epoch: int) -> Schedule:
    """Return the learning rates of a training section."""
    return Schedule(
        settings.schedule,
        settings.learning_rate,
        settings.epochs * steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        cooldown_steps=round(settings.cooldown_epochs * steps_per_epoch),
        lowest=settings.min_learning_rate,
        milestones=[milestone * steps_per_epoch for milestone in settings.milestones],
        gamma=settings.gamma,
    )


def tracked_run(recipe: config.Recipe, spec: RunSpec, run: Path) -> TrackedRun:
    """Return a run as trackers present it.

    Its group is the sweep's folder, or model and targets, which the seeds of a student share.
    """
    folder = run.absolute()
    above, sweep = folder.parent, RunFolder(folder.parent.parent)
    name, group = folder.name, f"{spec.model}-{spec.targets}"
    if above == sweep.trials and sweep.sweep_file.is_file():
        name, group = f"{sweep.path.name}/{name}", sweep.path.name
    elif RunFolder(above).has_recipe:
        name = f"{above.name}/{name}"
    values = {"group": group, **asdict(spec), **recipe.model_dump(exclude_none=True)}
    plain = {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in config.flatten(values)
    }
    return TrackedRun(RunFolder(run), recipe.name, name, group, plain)


def intervals(settings: config.TrainSection, steps_per_epoch: int) -> Intervals:
    """Return the steps at which a training logs, evaluates, saves and ends."""
    return Intervals(
        log=settings.log_every,
        evaluate=settings.evaluate_every * steps_per_epoch,
        checkpoint=settings.checkpoint_every or steps_per_epoch,
        last=settings.epochs * steps_per_epoch,
    )


def patience(settings: config.TrainSection) -> PlateauTracker:
    """Return a new tracker of plateaus and early stopping with a section's settings."""
    reduce_after = settings.patience if settings.schedule == "plateau" else None
    return PlateauTracker(reduce_after, settings.stop_after)
