"""Batches of views: which samples a step shows, and their pixels.

The order is a pure function of (seed, epoch), a step's samples one of (order, step): nothing needs
saving for an exact resume, and a batch does not depend on how many processes share it (but for the
last one of an epoch, which is cut to split evenly).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.pixel_sources import DecodeOnDemand, InMemory, Pixels, as_tensor
from kdscale.data.views.pipeline import Pipeline, Prepare, View
from kdscale.data.views.rng import derive_seed, permutation
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.errors import DataError
from kdscale.formatting import number_of
from kdscale.targets import Mix

_ORDER = derive_seed(0x6F72646572)  # "order"


@dataclass(frozen=True, slots=True)
class Batch:
    """What both flows know of a batch: a cache uses (view, index), a live teacher the pixels."""

    pixels: Tensor
    """uint8 [B, C, H, W]: the view, as both teacher and student are shown it."""
    labels: Tensor
    """int64 [B], -1 where unlabelled."""
    index: Tensor
    """int64 [B], positions in the data set."""
    view: View
    """The view shown: one number, or int64 [B]."""
    mix: Mix | None = None
    """Whom the samples are mixed with; None where the views do not mix."""

    def split(self, parts: int) -> Iterator["Batch"]:
        """The batch in `parts` nearly equal pieces."""
        for part in torch.arange(len(self.index)).tensor_split(parts):
            yield self._slice(slice(int(part[0]), int(part[-1]) + 1))

    def _slice(self, part: slice) -> "Batch":
        mix, view = self.mix, self.view
        if mix is not None:
            mix = Mix(mix.index_B[part], mix.labels_B[part], mix.weight_B[part])
        view = view if isinstance(view, int) else view[part]
        return Batch(self.pixels[part], self.labels[part], self.index[part], view, mix)


class DeviceImages:
    """An image set on a device: uint8 pixels and labels by index.

    Of one size or of several, decoded or not: who asks cannot tell, but for the time it takes.
    """

    def __init__(self, images: ImageDataset, device: torch.device) -> None:
        self.device, self.clean = device, Pipeline.parse(images.clean)
        self.labels = as_tensor(images.labels).to(device)
        self._pixels: Pixels
        if isinstance(images.pixels, EncodedImages):
            self._pixels = DecodeOnDemand(images.pixels, device)
        else:
            self._pixels = InMemory(images.pixels, device, images.row_check)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Clean pixels and labels of the samples `index` (int64 [B]), on the device."""
        return next(self.gather_each([index]))

    def gather_each(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What `gather` gives for one index after another; the next ones are prepared meanwhile."""
        for batch in self.render_views_each(self.clean, ((0, index) for index in indices)):
            yield batch.pixels, batch.labels

    def labels_of(self, index: Tensor) -> Tensor:
        """Labels of the samples `index` (int64 [B]), on the device."""
        return self.labels.index_select(0, index.to(self.device))

    def render_views(self, pipeline: Pipeline, view: View, index: Tensor) -> Batch:
        """The views of the samples `index` (int64 [B]), ready to be shown to a model."""
        return self.prefetch(pipeline, view, index)()

    def render_views_each(
        self, pipeline: Pipeline, wanted: Iterable[tuple[View, Tensor]]
    ) -> Iterator[Batch]:
        """What `render_views` gives for one view and index after another, prepared meanwhile."""
        pending: deque[Callable[[], Batch]] = deque()
        for view, index in wanted:
            pending.append(self.prefetch(pipeline, view, index))
            if len(pending) > self.prefetch_depth(len(index)):
                yield pending.popleft()()
        while pending:
            yield pending.popleft()()

    def prefetch(self, pipeline: Pipeline, view: View, index: Tensor) -> Callable[[], Batch]:
        """Start to prepare what `render_views` would give; the result waits for it.

        Raises:
            ConfigError: images of several sizes, and no operation that fixes the size.
        """
        return partial(
            self._render, self._pixels.prefetch(pipeline, view, index), pipeline, view, index
        )

    def prefetch_depth(self, batch_size: int) -> int:
        """How many batches are worth asking for before the one that is needed now."""
        return self._pixels.prefetch_depth(batch_size)

    def _render(self, prepare: Prepare, pipeline: Pipeline, view: View, index: Tensor) -> Batch:
        views = pipeline.render(prepare, view, index)
        mix = None
        if views.partner is not None and views.weight is not None:
            mix = Mix(views.partner, self.labels_of(views.partner), views.weight)
        return Batch(views.pixels, self.labels_of(index), index, view, mix)


class BatchLoader:
    """Training batches of a split.

    Args:
        images: the split.
        samples: int64 indices of the samples to train on.
        pipeline: what makes a view of an image.
        schedule: which view an epoch shows.
        seed: of the order.
        global_batch_size: samples a step, over all processes.
        process_index, num_processes: who we are.
        windows: which samples are shown near each other; None: any.

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
        process_index: int = 0,
        num_processes: int = 1,
        windows: Windows | None = None,
    ) -> None:
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
        self._process_index, self._num_processes = process_index, num_processes
        self._orders: dict[int, Tensor] = {}
        self._pending: dict[int, Callable[[], Batch]] = {}

    def index(self, step: int) -> Tensor:
        """This process's samples of a step: int64 [B]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._batch_size
        stop = min(start + self._batch_size, self.num_samples)
        part = (stop - start) // self._num_processes
        start += self._process_index * part
        return self._epoch_order(epoch)[start : start + part]

    def batch(self, step: int) -> Batch:
        """This process's batch of a step, counted from 0 over all epochs.

        Those of the steps that follow are prepared meanwhile, where that takes time.
        """
        near = range(
            step, step + 1 + self.images.prefetch_depth(self._batch_size // self._num_processes)
        )
        self._pending = {one: self._pending.get(one) or self._prefetch(one) for one in near}
        return self._pending.pop(step)()

    def _prefetch(self, step: int) -> Callable[[], Batch]:
        index = self.index(step)
        view = self.schedule.view(step // self.steps_per_epoch, index)
        return self.images.prefetch(self.pipeline, view, index)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:  # where one epoch ends, the next one is asked for too
            nearby = {one: order for one, order in self._orders.items() if abs(one - epoch) == 1}
            self._orders = {**nearby, epoch: self._ordered(epoch)}
        return self._orders[epoch]

    def _ordered(self, epoch: int) -> Tensor:
        view, samples = self.schedule.view(epoch, self.samples), self.samples
        if not self.pipeline.mixes or not isinstance(view, int):
            return samples[self._shuffled(epoch, samples)]
        # Partners side by side: a batch then prepares each of its images once, not twice.
        partner = self.pipeline.partner(view, samples)
        if self.windows is not None:  # those who do not share a window are shown by themselves
            apart = self.windows.number(epoch, samples) != self.windows.number(epoch, partner)
            partner = torch.where(apart, samples, partner)
        first = samples <= partner
        pairs = torch.stack((samples[first], partner[first]), dim=1)
        shuffled = pairs[self._shuffled(epoch, pairs[:, 0])]
        alone = shuffled[:, 0] == shuffled[:, 1]
        keep = torch.stack((torch.ones_like(alone), ~alone), dim=1)
        return shuffled[keep]

    def _shuffled(self, epoch: int, samples: Tensor) -> Tensor:
        """The places of samples in the order in which an epoch shows them: window by window."""
        order = permutation(len(samples), _ORDER, self._seed, epoch)
        if self.windows is None:
            return order
        return order[self.windows.number(epoch, samples[order]).argsort(stable=True)]
