"""Short runs to be timed: training steps from any source of targets, and the teacher."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from time import perf_counter

import torch
from torch import Tensor, nn

from kdscale import config
from kdscale.building.stored_outputs import StoredOutputs
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch, BatchLoader
from kdscale.data.pixel_sources import as_tensor
from kdscale.data.views.digest import digest
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.encodings import FeaturesOnly
from kdscale.experiment.datasets import two_views
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.model_checks import Classifier
from kdscale.experiment.training_setup import (
    averaged_weights,
    features_required,
    forward_pass,
    optimizer_step,
    section_of,
)
from kdscale.experiment.training_setup import objective as loss_of
from kdscale.losses.objective import Objective
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher, TargetSource
from kdscale.targets import Codec, FeatureTargets, Head, Targets, encode_features
from kdscale.teacher.frozen_teacher import FrozenTeacher, TeacherOutput, concatenate
from kdscale.training.feature_student import with_features
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)

Steps = Callable[[int], None]
"""Runs, or prepares, so many training steps."""

_STAGED_SAMPLES = 8192  # targets in memory: their values do not matter to the clock
SMALLEST_BATCH = 8
"""Batch whose time estimates that of a sample, so that no probe of a large model takes minutes."""


@dataclass(frozen=True, slots=True)
class TimedLoop:
    """One way to train, ready to go on for any number of steps."""

    steps: Steps
    prepare: Steps | None = None
    """Work that is done before the clock starts."""

    def timed(self, count: int) -> float:
        """Return the seconds of `count` steps."""
        if self.prepare is not None:
            self.prepare(count)
        synchronize()
        began = perf_counter()
        self.steps(count)
        synchronize()
        return perf_counter() - began


def synchronize() -> None:
    """Wait for the device, or its work would be timed as somebody else's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class TimedSetup:
    """An experiment of which parts are timed."""

    experiment: Experiment
    batch_size: int
    """Samples of a step, over all processes."""
    num_processes: int = 1
    """Number of processes of which this one does its part."""
    compiled: bool = True
    """Whether models are compiled if the recipe has `compile`."""

    @property
    def settings(self) -> config.TrainSection:
        """The student's training settings."""
        settings = student_settings(self.experiment.recipe)
        return settings if self.compiled else settings.model_copy(update={"compile": False})

    @property
    def process_batch(self) -> int:
        """Samples of a step of this process."""
        return self.batch_size // self.num_processes

    def live_teacher(self, schedule: ViewSchedule) -> LiveTeacher:
        """Return the experiment's teacher as a source of targets."""
        recipe = self.experiment.recipe
        features = features_required(recipe) if timed_objective(recipe).features else ()
        teacher = replace(self.experiment.teacher, taps=features)
        if self.compiled:
            parts = self.settings.accumulation
            teacher = self.experiment.compiled(teacher, -(-self.process_batch // parts))
        return LiveTeacher(teacher, schedule)

    def loader(self, schedule: ViewSchedule, windows: Windows | None = None) -> BatchLoader:
        """Return the batches of steps."""
        return BatchLoader(
            self.experiment.train_images,
            torch.arange(self.experiment.train_set.num_samples),
            self.experiment.views,
            schedule,
            seed=0,
            global_batch_size=self.batch_size,
            process=(0, self.num_processes),
            windows=windows,
        )

    def _with_features(self, student: Classifier, objective: Objective) -> nn.Module:
        """Return a student that returns the features that the objective compares."""
        outputs = self.experiment.stored_outputs
        shapes = dict(zip((one.module for one in outputs.taps), outputs.shapes, strict=True))
        inputs = two_views(self.experiment.train_images, self.experiment.views)
        return with_features(
            student.model, objective.features, student.preprocess(inputs).cpu(), shapes, seed=0,
            with_logits=objective.with_logits,
        )  # fmt: skip

    def trainer(
        self,
        source: TargetSource,
        objective: Objective,
        memory_format: config.MemoryFormat | None = None,
    ) -> Trainer:
        """Create a student and its trainer, at step 0.

        Args:
            source: targets of the steps.
            objective: their loss.
            memory_format: of the student; None = the recipe's.

        Raises:
            ModelError: the student does not take the memory format.
        """
        settings, accelerator = self.settings, self.experiment.accelerator
        student = self.experiment.student(seed=0, memory_format=memory_format)
        loader = self.loader(source.schedule, source.windows)
        model = accelerator.prepare(self._with_features(student, objective))
        device, batch_size = accelerator.device, self.process_batch
        return Trainer(
            forward_pass(settings, model, student.preprocess, device, batch_size),
            loader,
            source,
            objective,
            optimizer_step(
                settings, accelerator.unwrap_model(model), device, loader.steps_per_epoch
            ),
            accelerator,
            accumulation=settings.accumulation,
            average=averaged_weights(settings, accelerator.unwrap_model(model)),
        )


def student_settings(recipe: config.Recipe) -> config.TrainSection:
    """Return the training settings of a recipe's student."""
    return section_of(recipe, RunSpec("student", "cache", 0))[1]


def timed_objective(recipe: config.Recipe) -> Objective:
    """Return the losses that are timed: those between logits, one that needs a teacher among them.

    Where the cache stores no logits, they are the recipe's.
    """
    objective = loss_of(recipe)
    if recipe.cache.encoding == FeaturesOnly.name:
        return objective
    if objective.features:
        log.warning("loss.features are left out of what is timed: steps with them take longer")
    if not objective.soft_weight:
        objective = replace(objective, hard_weight=1.0, soft_weight=1.0)
    return replace(objective, feature_weight=0.0)


def synthetic_logits(images: ImageDataset, num_samples: int) -> Tensor:
    """[N, C] float32 that point to the labels of the first samples, as a teacher's do.

    Noise alone would drive units dead and gradients into denormals, and slow down what learns it.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_samples, images.num_classes, generator=generator)
    logits[torch.arange(num_samples), as_tensor(images.labels[:num_samples])] += 6
    return logits


def synthetic_outputs(images: ImageDataset, num_samples: int, head: Head | None) -> TeacherOutput:
    """Such logits; with a head, what it makes of an embedding that points to the labels."""
    logits = synthetic_logits(images, num_samples)
    if head is None:
        return TeacherOutput(logits)
    embedding = logits @ head.weight_CD / head.weight_CD.square().sum(1).mean()
    return TeacherOutput(head(embedding), embedding)


class StagedTargets:
    """Targets that are already on the device: what reading them is judged against."""

    def __init__(
        self,
        images: ImageDataset,
        codec: Codec,
        schedule: ViewSchedule,
        device: torch.device,
        windows: Windows | None = None,
        outputs: StoredOutputs | None = None,
    ) -> None:
        self.schedule, self.windows = schedule, windows
        self._num_rows, self._device = min(images.num_samples, _STAGED_SAMPLES), device
        self._targets_N = self._synthetic(images, codec, outputs).to(device)
        self._staged: Iterator[Targets] = iter(())

    def _synthetic(
        self, images: ImageDataset, codec: Codec, outputs: StoredOutputs | None
    ) -> Targets:
        """Return targets of all rows: of a cache without logits, features of these outputs."""
        if not codec.encoding.has_logits:
            assert outputs is not None, "targets without logits have features"
            pairs = zip(outputs.taps, outputs.shapes, strict=True)
            return FeatureTargets(
                {one.module: torch.randn(self._num_rows, *shape) for one, shape in pairs}
            )
        codec = codec.to(torch.device("cpu"))
        given = synthetic_outputs(images, self._num_rows, codec.head)
        return codec.decode(codec.encode(given.logits_BC, given.embedding_BD))

    def stage(self, loop: Trainer, count: int) -> None:
        """Gather the targets of the next steps, before the clock starts."""
        first = loop.state.step
        indices = [loop.loader.index(step) for step in range(first, first + count)]
        rows = [(index % self._num_rows).to(self._device) for index in indices]
        self._staged = iter([self._targets_N.rows(row) for row in rows])

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

    def finish_checks(self) -> None:
        """Nothing is checked."""

    def targets(self, batch: Batch) -> Targets:
        """The targets of the next step."""
        return next(self._staged)


def affordable_batch(batch_size: int, each: float, seconds: float) -> int:
    """The wanted batch, or a smaller one of which several fit into the time.

    Args:
        batch_size: the one that is wanted.
        each: seconds that a sample of a batch of `SMALLEST_BATCH` takes.
        seconds: to spend.
    """
    fitting = int(seconds / 4 / max(each, 1e-9))
    if fitting >= batch_size:
        return batch_size
    return min(batch_size, max(SMALLEST_BATCH, fitting - fitting % SMALLEST_BATCH))


@dataclass(frozen=True, slots=True)
class TimedTeacher:
    """Speed of a teacher, and its first outputs."""

    seconds_per_image: float
    outputs: TeacherOutput
    """Outputs for the first samples of the first view, at most a shard of them; on the CPU, without
    features."""


def time_teacher(
    setup: TimedSetup, teacher: FrozenTeacher, codec: Codec, num_views: int, seconds: float
) -> TimedTeacher:
    """Run a teacher for a while as a build does: views, forward pass, digests, encoding.

    Args:
        setup: the experiment.
        teacher: its teacher, with the outputs that the cache stores.
        codec: codec of the cache.
        num_views: views to go through, over and over.
        seconds: to spend, roughly; two batches at least.
    """
    experiment = setup.experiment
    num_samples = experiment.train_set.num_samples
    wanted, pipeline = experiment.recipe.cache.shard_samples, experiment.cached_views
    batches, images = experiment.oom_safe(teacher), experiment.train_images

    def seconds_of(size: int) -> float:
        began = perf_counter()
        batches.outputs(images.render_views(pipeline, 0, torch.arange(size)).pixels).output.cpu()
        return perf_counter() - began

    tiny = min(SMALLEST_BATCH, num_samples)
    seconds_of(tiny)  # the first pass sets things up
    size = affordable_batch(min(batches.batch_size, num_samples), seconds_of(tiny) / tiny, seconds)
    seconds_of(size)
    first: list[TeacherOutput] = []
    num_images, num_batches = 0, 0
    began = perf_counter()
    index = torch.arange(num_samples)
    plans = (
        plan
        for view in cycle(range(num_views))
        for plan in pipeline.plan(view, index, size, images.device)
    )
    for batch in images.render_each(pipeline, plans):
        output = batches.outputs(batch.pixels)
        digest(batch.pixels).cpu()
        codec.encode(output.output, output.embedding_BD)
        encode_features(output.features)
        if batch.view == 0 and len(first) * size < min(num_samples, wanted):
            first.append(replace(output, features={}).with_each(Tensor.cpu))
        num_images, num_batches = num_images + len(batch.index), num_batches + 1
        if num_batches > 1 and perf_counter() - began > seconds:
            break
    seconds_per_image = (perf_counter() - began) / num_images
    outputs = concatenate(first).with_each(lambda values: values[:wanted].clone())
    return TimedTeacher(seconds_per_image, outputs)
