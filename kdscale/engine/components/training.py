"""The recipe's loss, optimizer and learning rates."""

from collections.abc import Iterable

import torch
from torch import nn

from kdscale import config
from kdscale.engine.plateaus import Patience
from kdscale.losses.objective import FeatureTerm, Objective
from kdscale.models.taps import Tap
from kdscale.optim import Schedule, create_optimizer


def objective(recipe: config.Recipe) -> Objective:
    """The recipe's losses."""
    loss = recipe.loss
    return Objective(
        loss.hard_weight,
        loss.soft_weight,
        loss.temperature,
        kind=loss.kind,
        options=loss.options,
        standardize=loss.standardize,
        warmup_epochs=loss.warmup_epochs,
        feature_weight=loss.feature_weight,
        feature_terms=tuple(
            FeatureTerm(one.kind, one.student, one.teacher, one.options) for one in loss.features
        ),
    )


def taps_asked(recipe: config.Recipe) -> tuple[Tap, ...]:
    """The modules of the teacher that the losses ask for, pooled as the recipe's cache has them."""
    asked = {term.teacher for term in objective(recipe).features}
    return tuple(Tap(f.module, f.pool) for f in recipe.cache.features if f.module in asked)


def optimizer(settings: config.Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a training section."""
    return create_optimizer(
        settings.optimizer,
        parameters,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def schedule(settings: config.Train, steps_per_epoch: int) -> Schedule:
    """The learning rates of a training section."""
    return Schedule(
        settings.schedule,
        settings.learning_rate,
        settings.epochs * steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        milestones=[milestone * steps_per_epoch for milestone in settings.milestones],
        gamma=settings.gamma,
    )


def patience(settings: config.Train) -> Patience:
    """What the validation split decides in a training section."""
    reduce_after = settings.patience if settings.schedule == "plateau" else None
    return Patience(reduce_after, settings.stop_after)
