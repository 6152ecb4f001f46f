"""`Experiment`: a recipe, its locations and a device, and the objects that follow from them."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator

from kdscale import config
from kdscale.building.stored_outputs import StoredOutputs
from kdscale.cache.manifest import Manifest
from kdscale.cache.stores.store import Place
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import create_accelerator
from kdscale.errors import DataError
from kdscale.experiment.cache_spec import required_manifest, stored_outputs_of
from kdscale.experiment.datasets import test_images, training_images
from kdscale.experiment.given_objects import GivenObjects
from kdscale.experiment.locations import Locations
from kdscale.experiment.model_checks import Classifier
from kdscale.experiment.model_line import log_model
from kdscale.experiment.models import (
    frozen_module,
    frozen_teacher,
    frozen_teacher_or_random,
    model_to_train,
    module_to_train,
)
from kdscale.experiment.saved_runs import trained_teacher, usual_folder
from kdscale.experiment.training_setup import objective
from kdscale.experiment.views import cached_pipeline, few_views, pipeline, training_pipeline
from kdscale.losses.objective import Objective
from kdscale.target_sources.compatibility import check_compatible
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher


@dataclass(frozen=True)
class Experiment:
    """A recipe bound to its locations and to the processes that run it.

    Properties are computed when first used, once. All processes of a launch create the same
    experiment.
    """

    recipe: config.Recipe
    locations: Locations
    accelerator: Accelerator = field(default_factory=create_accelerator)
    require_labels: bool | None = None
    """Whether the training split must have labels; None = if the recipe's loss needs them."""
    random_teacher: bool = False
    """Whether a teacher without weights is created with random ones, to be timed."""
    given: GivenObjects = field(default_factory=GivenObjects)
    """Objects of Python code in place of the recipe's."""

    @classmethod
    def with_trained_teacher(cls, recipe: config.Recipe, locations: Locations) -> "Experiment":
        """Create an experiment whose teacher is the one trained in `runs/NAME`, if there is one.

        Raises:
            RunError: it was trained with other settings than the recipe's.
        """
        weights = trained_teacher(recipe, usual_folder(recipe))
        return cls(recipe, replace(locations, teacher_weights=weights))

    def at(self, **changes: Any) -> "Experiment":
        """Return this experiment at other locations, with an accelerator of its own.

        Args:
            changes: fields of `Locations`.
        """
        locations = replace(self.locations, **changes)
        return replace(self, locations=locations, accelerator=create_accelerator())

    # ------------------------------------------------------------------ data

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @cached_property
    def train_set(self) -> ImageDataset:
        """The training split, decoded.

        Raises:
            DataError: it cannot be read, or labels are required and missing.
        """
        given = self.given.train_set
        if given is not None:
            if self.require_labels and not given.labelled:
                raise DataError(
                    f"loss.hard_weight is above 0, and {given.name} has no labels: set "
                    "loss.hard_weight = 0, or label it"
                )
            return given
        labelled = self.require_labels
        if labelled is None:
            labelled = self.recipe.loss.hard_weight > 0
        return training_images(self.recipe, self.locations.cache_root, labelled=labelled)

    @cached_property
    def test_set(self) -> ImageDataset | None:
        """The test split, decoded; None where the recipe has none."""
        if self.given.test_set is not None:
            return self.given.test_set
        return test_images(self.recipe, self.locations.cache_root)

    @cached_property
    def train_images(self) -> DeviceImages:
        """The training split on the device of this process."""
        return self.on_device(self.train_set)

    def on_device(self, images: ImageDataset) -> DeviceImages:
        """Return batches of a split on the device of this process, within `data.device_memory`."""
        return DeviceImages(images, self.device, self.recipe.data.device_memory_bytes)

    @cached_property
    def views(self) -> Pipeline:
        """The recipe's augmentation, as a student is trained on it."""
        return self.given.views or pipeline(self.recipe, self.train_set.num_samples)

    @cached_property
    def cached_views(self) -> Pipeline:
        """The views that the teacher is run on; with `views.mode = 'fixed'`, clean images."""
        return self.given.views or cached_pipeline(self.recipe, self.train_set.num_samples)

    def training_views(self, settings: config.TrainSection) -> Pipeline:
        """Return the augmentation of a training: the recipe's, unless a teacher has its own."""
        if self.given.views is not None:
            return self.given.views
        return training_pipeline(self.recipe, settings, self.train_set.num_samples)

    # ------------------------------------------------------------------ models

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """The frozen teacher, on the device.

        Raises:
            WeightsError: no weights are known, and `random_teacher` is False.
        """
        if self.given.teacher is not None:
            classes = self.train_set.num_classes
            return frozen_module(self.recipe, self.given.teacher, classes, self.few_views)
        load = frozen_teacher_or_random if self.random_teacher else frozen_teacher
        return load(self.recipe, self.train_set, self.locations.teacher_weights, self.device)

    def log_teacher(self) -> None:
        """Log the line about the teacher that begins a command."""
        teacher = self.teacher
        log_model(
            "teacher", self.recipe.teacher.model, teacher.model, self.train_set,
            device=self.device, precision=teacher.precision,
        )  # fmt: skip

    @property
    def teacher_is_trained(self) -> bool:
        """Whether weights of the teacher are known."""
        if self.given.student is not None:
            return False
        return self.recipe.teacher.is_trained or self.locations.teacher_weights is not None

    @cached_property
    def loss(self) -> Objective:
        """The student's losses."""
        return objective(self.recipe)

    def student(self, seed: int, memory_format: config.MemoryFormat | None = None) -> Classifier:
        """Create the student with initial weights drawn from `seed`; None = the recipe's format."""
        section = self.recipe.student
        if memory_format is not None and section.train is not None:
            settings = section.train.model_copy(update={"memory_format": memory_format})
            section = section.model_copy(update={"train": settings})
        return model_to_train(self.recipe, section, self.train_set, seed=seed, what="student")

    def model_to_train(self, section: config.ModelSection, seed: int, what: str) -> Classifier:
        """Return the model of a section as a training begins with it, or the given student."""
        module = self.given.student
        if module is None:
            return model_to_train(
                self.recipe, section, self.train_set, seed=seed, what=what, tested=self.test_set
            )
        return module_to_train(
            self.recipe, module, self.few_views, self.train_set, self.test_set, seed=seed
        )

    def oom_safe(self, teacher: FrozenTeacher) -> OomSafeTeacher:
        """Return a teacher that splits batches of the recipe's size where memory is short."""
        batch_size = self.recipe.teacher.batch_size
        full = min(batch_size, self.recipe.cache.shard_samples)
        return OomSafeTeacher(self.compiled(teacher, full), batch_size)

    def compiled(self, teacher: FrozenTeacher, batch_size: int) -> FrozenTeacher:
        """Return a teacher compiled for a size of batch, if the recipe sets `teacher.compile`."""
        return teacher.compiled_for(batch_size) if self.recipe.teacher.compile else teacher

    # ------------------------------------------------------------------ cache

    @cached_property
    def few_views(self) -> torch.Tensor:
        """A few images as the teacher is run on them, uint8 [B, C, H, W]."""
        return few_views(self.recipe, self.train_set, self.device, self.cached_views)

    @cached_property
    def stored_outputs(self) -> StoredOutputs:
        """Outputs of the teacher that the cache stores beside its logits."""
        return stored_outputs_of(self.recipe, self.train_set, self.teacher, self.cached_views)

    @cached_property
    def required_manifest(self) -> Manifest:
        """The manifest of the cache that the recipe describes."""
        return required_manifest(
            self.recipe, self.train_set, self.teacher.describe(), self.cached_views,
            self.stored_outputs,
        )  # fmt: skip

    def check_compatible(
        self, cache: Place, found: Manifest, required: Manifest | None = None
    ) -> None:
        """Stop unless a cache, whatever its number of views, is the recipe's.

        Args:
            cache: its folder or URL.
            found: its manifest.
            required: the recipe's; `required_manifest` when None.

        Raises:
            CacheMismatchError: names every differing field with both values.
        """
        required = required or self.required_manifest
        required = replace(required, num_views=found.num_views)
        check_compatible(cache, found, required, self.train_set)
