"""Batches of views: which samples a step trains on, and their pixels.

The order is a pure function of (seed, epoch), a step's samples one of (order, step): nothing needs
saving for an exact resume, and a batch does not depend on how many processes share it (but for the
last one of an epoch, which is cut to split evenly). An epoch is planned at once, and its numbers
lie on the device: a batch is a slice of them, and the host copies nothing for it.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.image_hashes import RowCheck
from kdscale.data.pixel_sources import (
    DecodeOnDemand,
    Images,
    PixelSource,
    StreamedPixels,
    as_tensor,
)
from kdscale.data.rng import derive_seed, permutation
from kdscale.data.views.batch_plan import BatchPlan, PlannedBatches, SampleViews, View
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import DataError
from kdscale.formatting import number_of
from kdscale.targets import Mix

_ORDER = derive_seed(0x6F72646572)  # "order"
_RESIDENT_SHARE = 0.5
"""Of a GPU's free memory, for the images of a set; the model needs the rest."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of views: a cache uses their views and indices, a live teacher the pixels."""

    pixels: Tensor
    """uint8 [B, C, H, W], the views: input of both teacher and student."""
    labels: Tensor
    """int64 [B], -1 where unlabelled."""
    samples: SampleViews
    mix: Mix | None = None
    """Partners that the samples are mixed with; None where the views do not mix."""
    partners: SampleViews | None = None
    """The same partners, with their views."""

    @property
    def index(self) -> Tensor:
        """int64 [B] on the device: positions in the data set."""
        return self.samples.index

    @property
    def view(self) -> View:
        """View number: one for all samples, or int64 [B] on the device."""
        return self.samples.view

    def split(self, parts: int) -> Iterator["Batch"]:
        """Yield the batch in `parts` nearly equal pieces."""
        for part in torch.arange(len(self.samples)).tensor_split(parts):
            yield self._slice(slice(int(part[0]), int(part[-1]) + 1))

    def _slice(self, part: slice) -> "Batch":
        mix, partners = self.mix, self.partners
        if mix is not None:
            mix = Mix(mix.index_B[part], mix.labels_B[part], mix.weight_B[part])
        if partners is not None:
            partners = partners[part]
        return Batch(self.pixels[part], self.labels[part], self.samples[part], mix, partners)


class ResidentPixels:
    """Decoded images of one size in the memory of the device that uses them.

    Args:
        pixels: uint8 [N, C, H, W] on the device; on a CPU it may be a memory map.
        check: compares images with their hashes when they are used; None: all are checked.
    """

    def __init__(self, pixels: Tensor, check: RowCheck | None = None) -> None:
        self._pixels, self._check = pixels, check

    def prefetch(self, pipeline: Pipeline, samples: SampleViews) -> Callable[[], Images]:
        """Return what selects the images; there is nothing to start."""
        return partial(self._select, samples)

    def prefetch_depth(self, batch_size: int) -> int:
        """Return 0: memory needs no time ahead."""
        return 0

    def _select(self, samples: SampleViews) -> Images:
        pixels = self._pixels.index_select(0, samples.index)
        if self._check is not None and self._check.pending:
            self._check(samples.host_index.numpy(), pixels.numpy())
        return pixels, 0


_resident: OrderedDict[tuple[str, torch.device], Tensor] = OrderedDict()
"""Images in the memory of GPUs, by the data set's fingerprint and device: those that were used
last, for all students of this process, which only read them."""
_MOST_RESIDENT = 2
"""Training split and test split."""


def _pixel_source(
    images: ImageDataset, device: torch.device, memory_bytes: int | None
) -> PixelSource:
    if isinstance(images.pixels, EncodedImages):
        return DecodeOnDemand(images.pixels, device)
    pixels = images.pixels
    if memory_bytes is None:
        memory_bytes = _affordable_bytes(pixels, device)
    if pixels.nbytes > memory_bytes and (images.fingerprint, device) not in _resident:
        return StreamedPixels(pixels, device, images.row_check)
    if device.type == "cpu":
        return ResidentPixels(as_tensor(pixels), images.row_check)
    return ResidentPixels(_shared(images, pixels, device))


def _shared(images: ImageDataset, pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return checked images in a device's memory, where an earlier student may have put them."""
    key = images.fingerprint, device
    resident = _resident.pop(key, None)
    if resident is None:
        if images.row_check is not None:
            images.row_check.check_all(pixels)
        resident = as_tensor(pixels).to(device)
    if images.fingerprint:
        _resident[key] = resident
    while len(_resident) > _MOST_RESIDENT:
        _resident.popitem(last=False)
    return resident


def _affordable_bytes(pixels: np.ndarray, device: torch.device) -> int:
    """Return the device memory that images may take where no limit is set."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return pixels.nbytes
    return int(_RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0])


class DeviceImages:
    """Batches of images of a data set on a device: uint8 pixels and labels by index.

    Images of one size or of several, decoded or not: callers see no difference but the time.

    Args:
        images: the data set.
        device: device of the batches.
        memory_bytes: largest size of images that all lie on the device; larger sets are copied
            batch by batch. None: half of a GPU's free memory, and any size on a CPU.
    """

    def __init__(
        self, images: ImageDataset, device: torch.device, memory_bytes: int | None = None
    ) -> None:
        self.device, self.clean = device, Pipeline.parse(images.clean)
        self.host_labels = as_tensor(images.labels)
        self.labels = self.host_labels.to(device)
        self._pixels = _pixel_source(images, device, memory_bytes)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return clean pixels and labels of samples `index` (int64 [B]), on the device."""
        batch = self.render_views(self.clean, 0, index)
        return batch.pixels, batch.labels

    def gather_each(self, index: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield clean pixels and labels of samples `index` (int64 [N]) in batches."""
        plans = self.clean.plan(0, index, batch_size, self.device)
        for batch in self.render_each(self.clean, plans):
            yield batch.pixels, batch.labels

    def render_views(self, pipeline: Pipeline, view: View, index: Tensor) -> Batch:
        """Render one view of each of the samples `index` (int64 [B] in host memory)."""
        return self.prefetch(pipeline, pipeline.plan(view, index, device=self.device)[0])()

    def render_each(self, pipeline: Pipeline, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Render planned batches one after another; the next ones are prepared meanwhile."""
        pending: deque[Callable[[], Batch]] = deque()
        for plan in plans:
            pending.append(self.prefetch(pipeline, plan))
            if len(pending) > self.prefetch_depth(len(plan.samples)):
                yield pending.popleft()()
        while pending:
            yield pending.popleft()()

    def prefetch(self, pipeline: Pipeline, plan: BatchPlan) -> Callable[[], Batch]:
        """Start to prepare a planned batch; the function returned waits for it.

        Raises:
            ConfigError: images of several sizes, and no operation that fixes the size.
        """
        return partial(self._render, self._pixels.prefetch(pipeline, plan.images), pipeline, plan)

    def prefetch_depth(self, batch_size: int) -> int:
        """Return the number of batches to prefetch beyond the current one."""
        return self._pixels.prefetch_depth(batch_size)

    def _render(self, images: Callable[[], Images], pipeline: Pipeline, plan: BatchPlan) -> Batch:
        pixels, done = images()
        views, mix = pipeline.render(pixels, plan, done), None
        if plan.partners is not None and views.weight is not None:
            partner = plan.partners.index
            mix = Mix(partner, self.labels.index_select(0, partner), views.weight)
        labels = self.labels.index_select(0, plan.samples.index)
        return Batch(views.pixels, labels, plan.samples, mix, plan.partners)


class BatchLoader:
    """Training batches of a split.

    Args:
        images: the split.
        samples: int64 indices of the samples to train on, in host memory.
        pipeline: renders a view of an image.
        schedule: view that an epoch uses.
        seed: seed of the order.
        global_batch_size: samples a step, over all processes.
        process: index of this process, and number of processes that train together.
        windows: samples that are used near each other; None: any order.

    Raises:
        DataError: fewer samples than processes, or a batch that does not split over them, or that
            is larger than a window.
    """

    def __init__(
        self,
        images: DeviceImages,
        samples: Tensor,
        pipeline: Pipeline,
        schedule: ViewSchedule,
        *,
        seed: int,
        global_batch_size: int,
        process: tuple[int, int] = (0, 1),
        windows: Windows | None = None,
    ) -> None:
        self._process_index, self._num_processes = process
        num_processes = self._num_processes
        # A tail that does not split evenly is cut: every process takes part in every step.
        self.num_samples = len(samples) - len(samples) % num_processes
        if self.num_samples == 0:
            raise DataError(
                f"{number_of(len(samples), 'training sample')} for "
                f"{number_of(num_processes, 'process', 'processes')}: too few"
            )
        if global_batch_size % num_processes:
            raise DataError(
                f"global_batch_size {global_batch_size} does not split over "
                f"{num_processes} processes: choose a multiple of {num_processes}"
            )
        if self.num_samples > global_batch_size and self.num_samples % global_batch_size == 1:
            self.num_samples -= 1  # batch-norm cannot train on a single sample
        if windows is not None and windows.fewest_samples(samples) < global_batch_size:
            raise DataError(
                "a window of targets may hold "
                f"{number_of(windows.fewest_samples(samples), 'training sample')}, fewer than a "
                f"batch of {global_batch_size}: set a larger cache.targets_memory, or a smaller "
                "global_batch_size"
            )
        self.images, self.samples, self.pipeline = images, samples, pipeline
        self.schedule, self.windows = schedule, windows
        self.steps_per_epoch = -(-self.num_samples // global_batch_size)
        self._seed, self._batch_size = seed, global_batch_size
        self._epochs: dict[int, PlannedBatches] = {}
        self._pending: dict[int, Callable[[], Batch]] = {}

    def index(self, step: int) -> Tensor:
        """Return this process's samples of a step: int64 [B] in host memory."""
        return self.plan(step).samples.host_index

    def batch(self, step: int) -> Batch:
        """Return this process's batch of a step, counted from 0 over all epochs.

        Those of the steps that follow are prepared meanwhile, where that takes time.
        """
        near = range(
            step, step + 1 + self.images.prefetch_depth(self._batch_size // self._num_processes)
        )
        self._pending = {one: self._pending.get(one) or self._prefetch(one) for one in near}
        return self._pending.pop(step)()

    def _prefetch(self, step: int) -> Callable[[], Batch]:
        return self.images.prefetch(self.pipeline, self.plan(step))

    def plan(self, step: int) -> BatchPlan:
        """Return the plan of this process's batch of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        self.start_epoch(epoch)
        return self._epochs[epoch][position]

    def start_epoch(self, epoch: int) -> None:
        """Plan an epoch, if it is not planned yet; plans of its neighbours stay in memory."""
        if epoch not in self._epochs:  # where one epoch ends, the next one is prefetched
            nearby = {one: plans for one, plans in self._epochs.items() if abs(one - epoch) == 1}
            self._epochs = {**nearby, epoch: self._planned(epoch)}

    def _planned(self, epoch: int) -> PlannedBatches:
        """Plan this process's batches of an epoch."""
        order, parts = self._order(epoch)[: self.num_samples], []
        for batch in order.split(self._batch_size):
            size = len(batch) // self._num_processes
            parts.append(batch[self._process_index * size : (self._process_index + 1) * size])
        index = torch.cat(parts)
        view, sizes = self.schedule.view(epoch, index), [len(part) for part in parts]
        return self.pipeline.plan(view, index, sizes, self.images.device)

    def _order(self, epoch: int) -> Tensor:
        view, samples = self.schedule.view(epoch, self.samples), self.samples
        if not self.pipeline.mixes or not isinstance(view, int):
            return samples[self._shuffled(epoch, samples)]
        # Partners side by side: a batch then prepares each of its images once, not twice.
        partner = self.pipeline.partner(view, samples)
        if self.windows is not None:  # samples that share no window are ordered as single ones
            apart = self.windows.number(epoch, samples) != self.windows.number(epoch, partner)
            partner = torch.where(apart, samples, partner)
        first = samples <= partner
        pairs = torch.stack((samples[first], partner[first]), dim=1)
        shuffled = pairs[self._shuffled(epoch, pairs[:, 0])]
        single = shuffled[:, 0] == shuffled[:, 1]
        is_used = torch.stack((torch.ones_like(single), ~single), dim=1)
        return shuffled[is_used]

    def _shuffled(self, epoch: int, samples: Tensor) -> Tensor:
        """Return the positions of samples in the order of an epoch: window by window."""
        order = permutation(len(samples), _ORDER, self._seed, epoch)
        if self.windows is None:
            return order
        return order[self.windows.number(epoch, samples[order]).argsort(stable=True)]
