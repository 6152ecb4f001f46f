"""Check before the first step that data, views and targets have what a loss requires."""

import logging
from collections.abc import Callable

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.views.pipeline import Pipeline
from kdscale.encodings import FULL_ENCODINGS, Encoding, TopK
from kdscale.errors import ConfigError, DataError
from kdscale.formatting import number_of
from kdscale.losses.objective import FEATURE_LOSSES, SOFT_LOSSES, Objective, SoftLoss
from kdscale.targets import needs_logits
from kdscale.training.trackers import check_installed

log = logging.getLogger(__name__)


def check_loss(objective: Objective, images: ImageDataset, views: Pipeline) -> None:
    """Stop if the loss cannot be computed on these images or views.

    Args:
        objective: the losses.
        images: the split to train on.
        views: the student's views.

    Raises:
        ConfigError: it needs one label of each sample, and the views mix two.
        DataError: it needs labels, and there are none.
    """
    kind = f"loss.kind = '{objective.kind}'"
    if "one label" in objective.requires and not images.labelled:
        raise DataError(
            f"{kind} sets the label's class apart from the others, and split {images.split!r} of "
            f"{images.name} has no labels: label it, or set loss.kind to one that takes none, "
            f"{_others(lambda loss: not loss.labels)}"
        )
    if "one label" in objective.requires and "pairing" in views.describe():
        raise ConfigError(
            f"{kind} sets the label's class apart from the others, and images that "
            "views.operations mixes have two labels: take mixup and cutmix out of it, or set "
            f"loss.kind to one that takes no label, {_others(lambda loss: not loss.labels)}"
        )


def check_stored(objective: Objective, encoding: Encoding) -> None:
    """Stop where a cache stores less of each target than the loss requires.

    Raises:
        ConfigError: it requires logits, or those of all classes.
    """
    if objective.soft_weight and not encoding.has_logits:
        raise needs_logits(f"loss.soft_weight = {objective.soft_weight:g}")
    if not isinstance(encoding, TopK) or "all classes" not in objective.requires:
        return
    asks, instead = f"loss.kind = '{objective.kind}'", []
    if objective.standardize:
        asks = f"{asks} with loss.standardize = true"
        instead.append("loss.standardize = false")
    if SOFT_LOSSES[objective.kind].of_largest is None:
        instead.append(f"loss.kind to {_others(lambda loss: loss.of_largest is not None)}")
    raise ConfigError(
        f"{asks} needs the logits of all {encoding.num_classes} classes, and cache.encoding = "
        f"{encoding.name!r} stores the {encoding.top_k} largest: build a cache with cache.encoding "
        f"= {FULL_ENCODINGS}, or set {' and '.join(instead)}"
    )


def check_mixing(encoding: Encoding, views: Pipeline) -> None:
    """Stop where targets of two clean images are to be mixed, and not all classes are stored.

    Raises:
        ConfigError: views.mode is "fixed", the views mix images, and the encoding is `topk`.
    """
    if not encoding.all_classes and "pairing" in views.describe():
        raise ConfigError(
            "views.mode is 'fixed' and the views mix images, so the targets of both are mixed, "
            f"which needs all classes: set cache.encoding = {FULL_ENCODINGS}"
        )


def check_trackers(recipe: config.Recipe) -> None:
    """Stop if a tracker of one of the recipe's trainings is not installed."""
    for section in (recipe.teacher.train, recipe.student.train):
        if section is not None:
            check_installed(section.log_with)


def mention_ineffective(recipe: config.Recipe, *models: str) -> None:
    """Warn of settings that never take effect; `models` as of `config.ineffective_settings`."""
    for sentence in config.ineffective_settings(recipe, *models):
        log.warning("%s", sentence)


def mention_steps(settings: config.TrainSection, num_samples: int, steps_per_epoch: int) -> None:
    """Warn of batches that are never full, and of steps that so short a training never reaches.

    Args:
        settings: of the training.
        num_samples: that an epoch trains on.
        steps_per_epoch: optimizer steps.
    """
    if settings.global_batch_size > num_samples:
        log.warning(
            "global_batch_size = %d is more than the %s that an epoch trains on: each epoch is a "
            "single step of all of them", settings.global_batch_size,
            number_of(num_samples, "image"),
        )  # fmt: skip
    last = settings.epochs * steps_per_epoch
    steps = number_of(last, "step")
    if settings.log_every > last:
        log.warning(
            "log_every = %d is more than all %s of this training: the last loss alone is logged",
            settings.log_every, steps,
        )  # fmt: skip
    if settings.checkpoint_every is not None and settings.checkpoint_every > last:
        log.warning(
            "checkpoint_every = %d is more than all %s of this training: what stops it before its "
            "end sends it back to its start", settings.checkpoint_every, steps,
        )  # fmt: skip
    if settings.warmup_epochs and not round(settings.warmup_epochs * steps_per_epoch):
        log.warning(
            "warmup_epochs = %g has no effect: an epoch has %s, and that is less than half of one",
            settings.warmup_epochs, number_of(steps_per_epoch, "step"),
        )  # fmt: skip


def mention_loss(
    objective: Objective, epochs: int, accumulation: int, *, headless: bool = False
) -> None:
    """Warn about settings of the loss that have no effect, or another one than it seems."""
    if not objective.with_logits and not headless:
        log.warning(
            "loss.hard_weight and loss.soft_weight are 0: features alone train this student, and "
            "what follows them, its head at least, stays as it was at the start"
        )
    if objective.soft_weight and (reached := objective.warmup(epochs - 1)) < 1:
        log.warning(
            "loss.warmup_epochs is %d, the student is trained for %d: at the end soft_weight is "
            "%.0f %% of %g", objective.warmup_epochs, epochs, 100 * reached, objective.soft_weight,
        )  # fmt: skip
    if "whole batch" in objective.requires and accumulation > 1:
        log.warning(
            "%s relates samples of one forward pass: with accumulation = %d, those of each part "
            "of a step, not of the whole", _relating(objective), accumulation,
        )  # fmt: skip


def _relating(objective: Objective) -> str:
    """The field that names a loss of a whole batch."""
    if objective.soft_weight and SOFT_LOSSES[objective.kind].whole_batch:
        return f"loss.kind = '{objective.kind}'"
    kinds = [one.kind for one in objective.features if FEATURE_LOSSES[one.kind].whole_batch]
    return f"loss.features with kind = '{kinds[0]}'"


def _others(fits: Callable[[SoftLoss], bool]) -> str:
    """The kinds that fit, as a list."""
    *most, last = [f"'{kind}'" for kind, loss in SOFT_LOSSES.items() if fits(loss)]
    return f"{', '.join(most)} or {last}" if most else last
