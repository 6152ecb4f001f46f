"""The recipe's views: those of the teacher's forward pass, those of a training, their schedule."""

import torch
from torch import Tensor

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.operation_registry import parse_operation
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError


def pipeline(recipe: config.Recipe, num_samples: int) -> Pipeline:
    """The recipe's views of a split of so many samples."""
    return Pipeline.parse(
        recipe.views.operations or recipe.data.clean,
        recipe.views.seed,
        pairing=_pairing(recipe, num_samples),
        enumerated=recipe.views.count == "all",
    )


def _pairing(recipe: config.Recipe, num_samples: int) -> MixPairs:
    return MixPairs(num_samples, recipe.data.validation, recipe.views.pair_within)


def clean_pipeline(recipe: config.Recipe) -> Pipeline:
    """Return the operations for images that are not augmented.

    Raises:
        ConfigError: an operation that draws at random, or mixes.
    """
    operations = [parse_operation(entry, "data.clean") for entry in recipe.data.clean]
    for entry, operation in zip(recipe.data.clean, operations, strict=True):
        if operation.num_draws:
            name = entry if isinstance(entry, str) else entry["name"]
            raise ConfigError(
                f"data.clean: {name} draws at random, so what it makes is not the clean image: "
                "name operations without draws, such as resize and center_crop"
            )
    return Pipeline(tuple(operations))


def cached_pipeline(recipe: config.Recipe, num_samples: int) -> Pipeline:
    """Return the views of the teacher's forward pass: the recipe's, or clean images if fixed."""
    if recipe.views.mode == "fixed":
        return clean_pipeline(recipe)
    return pipeline(recipe, num_samples)


def training_pipeline(
    recipe: config.Recipe, settings: config.TrainSection, num_samples: int
) -> Pipeline:
    """The views that a model is trained on: the recipe's, unless a teacher has its own.

    Without operations they are the clean images.
    """
    if isinstance(settings, config.TeacherTrainSection) and settings.operations is not None:
        pairing = _pairing(recipe, num_samples)
        operations = settings.operations or recipe.data.clean
        return Pipeline.parse(
            operations, recipe.views.seed, pairing=pairing, field="teacher.train.operations"
        )
    return pipeline(recipe, num_samples)


def num_views(recipe: config.Recipe, views: Pipeline | None = None) -> int:
    """Return the number of views of the cache; `views` stand in for the recipe's operations."""
    views = views or pipeline(recipe, num_samples=0)
    if recipe.views.count == "all":
        return views.count_all()
    if recipe.views.count > 1 and not any(o.num_draws for o in views.operations):
        raise ConfigError(
            f"views.count is {recipe.views.count}, but no operation draws anything, so all views "
            "are alike: set views.count = 1"
        )
    return recipe.views.count


def fresh_views(
    recipe: config.Recipe, settings: config.TrainSection, num_samples: int
) -> ViewSchedule:
    """Return a schedule with a new view each epoch, for trainings without a cache of views."""
    views = training_pipeline(recipe, settings, num_samples)
    count = settings.epochs if any(one.num_draws for one in views.operations) else 1
    if views.enumerated:
        count = views.count_all()
    return ViewSchedule(count, recipe.views.seed, recipe.views.shift_every)


def shared_views(recipe: config.Recipe) -> ViewSchedule:
    """Return the schedule of the recipe's cache, and of a live teacher in its place."""
    return ViewSchedule(num_views(recipe), recipe.views.seed, recipe.views.shift_every)


def few_views(
    recipe: config.Recipe, images: ImageDataset, device: torch.device, views: Pipeline | None = None
) -> Tensor:
    """Return a few images in the teacher's views, uint8 [B, C, H, W]."""
    views = views or cached_pipeline(recipe, images.num_samples)
    index = torch.arange(min(6, images.num_samples))
    return DeviceImages(images, device).render_views(views, 0, index).pixels
