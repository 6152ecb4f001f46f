"""Short runs to be timed: training steps from any source of targets, and the teacher's answers."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor

from kdscale import config, experiment
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch, BatchLoader, DeviceImages
from kdscale.data.pixel_sources import as_tensor
from kdscale.data.views.digest import digest
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.losses.objective import Objective
from kdscale.runs.folder import RunSpec
from kdscale.target_sources.base import TargetSource
from kdscale.targets import Encoding, Head, Targets, decode, encode, encode_features
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher, TeacherOutput, concatenate
from kdscale.training.trainer import Trainer

log = logging.getLogger(__name__)

Steps = Callable[[int], None]
"""Runs, or prepares, so many training steps."""

_STAGED_SAMPLES = 8192  # targets in memory: what they say does not matter to the clock
SMALLEST_BATCH = 8
"""Tells roughly what a sample costs, so that no probe of a large model takes minutes."""


@dataclass(frozen=True, slots=True)
class TimedLoop:
    """One way to train, ready to go on for any number of steps."""

    steps: Steps
    prepare: Steps | None = None
    """What is done before the clock starts."""

    def timed(self, count: int) -> float:
        """Seconds of so many steps."""
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
    """What a recipe's steps are made of."""

    recipe: config.Recipe
    images: ImageDataset
    resident: DeviceImages
    teacher: FrozenTeacher
    accelerator: Accelerator
    batch_size: int
    """Samples a step, over all processes."""
    num_processes: int = 1
    """As which one of so many to work."""

    @property
    def settings(self) -> config.TrainSection:
        """How the student is trained."""
        return student_settings(self.recipe)

    def loader(self, schedule: ViewSchedule, windows: Windows | None = None) -> BatchLoader:
        """The batches of steps."""
        return BatchLoader(
            self.resident,
            torch.arange(self.images.num_samples),
            experiment.pipeline(self.recipe, self.images.num_samples),
            schedule,
            seed=0,
            global_batch_size=self.batch_size,
            num_processes=self.num_processes,
            windows=windows,
        )

    def loop(self, source: TargetSource, objective: Objective) -> Trainer:
        """A student's training loop, at its beginning."""
        settings = self.settings
        student = experiment.model_to_train(
            self.recipe, self.recipe.student, self.images, seed=0, what="student"
        )
        loader = self.loader(source.schedule, source.windows)
        model = self.accelerator.prepare(student.model)
        return Trainer(
            model,
            student.preprocess,
            loader,
            source,
            objective,
            experiment.optimizer(settings, model),
            experiment.schedule(settings, loader.steps_per_epoch),
            self.accelerator,
            precision=settings.precision,
            accumulation=settings.accumulation,
            gradient_clip=settings.gradient_clip,
        )


def student_settings(recipe: config.Recipe) -> config.TrainSection:
    """How a recipe's student is trained."""
    return RunSpec("student", "none", 0).section(recipe)[1]


def soft_objective(recipe: config.Recipe) -> Objective:
    """The recipe's losses from logits, with a soft one among them."""
    objective = experiment.objective(recipe)
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
        encoding: Encoding,
        schedule: ViewSchedule,
        device: torch.device,
        windows: Windows | None = None,
    ) -> None:
        self.schedule, self.windows = schedule, windows
        self._num_rows, self._device = min(images.num_samples, _STAGED_SAMPLES), device
        head = None if encoding.head is None else encoding.head.to(torch.device("cpu"))
        encoding = replace(encoding, head=head)
        said = synthetic_outputs(images, self._num_rows, head)
        stored = encode(said.logits_BC, encoding, said.embedding_BD)
        self._targets_N = decode(stored, encoding).to(device)
        self._staged: Iterator[Targets] = iter(())

    def stage(self, loop: Trainer, count: int) -> None:
        """Gather the targets of the next steps, before the clock starts."""
        first = loop.state.step
        indices = [loop.loader.index(step) for step in range(first, first + count)]
        rows = [(index % self._num_rows).to(self._device) for index in indices]
        self._staged = iter([self._targets_N.rows(row) for row in rows])

    def start_epoch(self, epoch: int) -> None:
        """Nothing to get ready."""

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
    """What the teacher said while it was timed."""

    seconds_per_image: float
    said: TeacherOutput
    """Of the first samples of the first view, at most a shard of them; on the CPU, and without
    features."""


def ask_teacher(
    parts: TimedSetup, encoding: Encoding, num_views: int, seconds: float
) -> TimedTeacher:
    """Ask a teacher for a while as a build does: views, forward pass, digests, encoding.

    Args:
        parts: the recipe's.
        encoding: how answers are stored.
        num_views: views to go through, over and over.
        seconds: to spend, roughly; two batches at least.
    """
    num_samples, wanted = parts.images.num_samples, parts.recipe.cache.shard_samples
    pipeline = experiment.cached_pipeline(parts.recipe, num_samples)
    teacher = OomSafeTeacher(parts.teacher, parts.recipe.teacher.batch_size)

    def seconds_of(size: int) -> float:
        began = perf_counter()
        teacher.logits(parts.resident.render_views(pipeline, 0, torch.arange(size)).pixels).cpu()
        return perf_counter() - began

    tiny = min(SMALLEST_BATCH, num_samples)
    seconds_of(tiny)  # the first pass sets things up
    size = affordable_batch(min(teacher.batch_size, num_samples), seconds_of(tiny) / tiny, seconds)
    seconds_of(size)
    kept: list[TeacherOutput] = []
    asked, batches = 0, 0
    began = perf_counter()
    for batch in parts.resident.render_views_each(
        pipeline, _each_view(num_samples, size, num_views)
    ):
        said = teacher.answers(batch.pixels)
        digest(batch.pixels).cpu()
        encode(said.logits_BC, encoding, said.embedding_BD)
        encode_features(said.features)
        if batch.view == 0 and len(kept) * size < min(num_samples, wanted):
            kept.append(replace(said, features={}).with_each(Tensor.cpu))
        asked, batches = asked + len(batch.index), batches + 1
        if batches > 1 and perf_counter() - began > seconds:
            break
    seconds_per_image = (perf_counter() - began) / asked
    first = concatenate(kept).with_each(lambda values: values[:wanted].clone())
    return TimedTeacher(seconds_per_image, first)


def _each_view(num_samples: int, size: int, num_views: int) -> Iterator[tuple[int, Tensor]]:
    """Batches of all samples in one view after another, over and over."""
    for view in cycle(range(num_views)):
        yield from ((view, index) for index in torch.arange(num_samples).split(size))
