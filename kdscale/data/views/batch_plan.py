"""Which samples a batch consists of, and in which views: on the host and on the device alike.

Decoders and windows of targets need the numbers on the host, operations and look-ups need them on
the device. Batches that follow one another are planned together, an epoch or a shard of a cache,
and their numbers are copied to the device at once: a batch is a slice of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor

from kdscale.transfers import to_device

_BATCHES_DRAWN = 64

View = int | Tensor
"""A view number: one for all samples, or int64 [B]."""


@dataclass(frozen=True, slots=True)
class SampleViews:
    """Samples, each in one view."""

    index: Tensor
    """int64 [B], positions in the data set, on the device."""
    view: View
    """View number of all samples, or int64 [B] on the device."""
    host_index: Tensor
    """`index` in host memory; the same tensor where the device is a CPU."""
    host_view: View
    """`view` in host memory."""

    @classmethod
    def place(cls, view: View, index: Tensor, device: torch.device) -> Self:
        """Copy the numbers of samples, given in host memory, to a device."""
        on_device = view if isinstance(view, int) else to_device(view, device)
        return cls(to_device(index, device), on_device, index, view)

    def in_view(self, view: int) -> "SampleViews":
        """Return the same samples in another view."""
        return SampleViews(self.index, view, self.host_index, view)

    def __len__(self) -> int:
        return len(self.host_index)

    def __getitem__(self, part: slice) -> "SampleViews":
        view = self.view if isinstance(self.view, int) else self.view[part]
        host_view = self.host_view if isinstance(self.host_view, int) else self.host_view[part]
        return SampleViews(self.index[part], view, self.host_index[part], host_view)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch is made of."""

    samples: SampleViews
    images: SampleViews
    """Every (view, sample) whose image is needed, once: samples and partners."""
    partners: SampleViews | None = None
    """The sample that each one is mixed with, in the same view; None where nothing is mixed."""
    place: Tensor | None = None
    """int64 [2 B] on the device: position in `images` of each sample, then of each partner."""
    words: Tensor | None = None
    """int64 [draws, B], random words of the samples for all operations; None: not drawn ahead."""
    image_words: Tensor | None = None
    """int64 [draws, N], the same of `images`."""


Draw = Callable[[View, Tensor], Tensor]
"""Gives the random words of samples in views for all operations of a pipeline, int64 [draws, B]."""


class _Words:
    """Random words of samples, drawn for many batches at a time: a batch is a slice of them.

    On a device, where the dozen small kernels of a draw cost as much for one batch as for many.
    """

    def __init__(self, draw: Draw, samples: SampleViews, parts: list[slice]) -> None:
        self._draw, self._samples, self._parts = draw, samples, parts
        self._block = -1
        self._words_KB: Tensor | None = None
        self._start = 0

    def __getitem__(self, number: int) -> Tensor | None:
        if not _draws_ahead(self._samples.index.device):
            return None
        block = number // _BATCHES_DRAWN
        if block != self._block or self._words_KB is None:
            parts = self._parts[block * _BATCHES_DRAWN : (block + 1) * _BATCHES_DRAWN]
            drawn = self._samples[parts[0].start : parts[-1].stop]
            self._words_KB = self._draw(drawn.view, drawn.index)
            self._block, self._start = block, parts[0].start
        part = self._parts[number]
        return self._words_KB[:, part.start - self._start : part.stop - self._start]


def _draws_ahead(device: torch.device) -> bool:
    """Whether a draw for many batches is cheaper: on a CPU, that for one stays in its cache."""
    return device.type != "cpu"


class PlannedBatches:
    """Batches that follow one another, with all their numbers on the device.

    Args:
        view: view number of all samples, or int64 [N] in host memory.
        index: int64 [N] in host memory, samples in the order of their batches.
        sizes: numbers of samples of the batches, of sum N.
        device: device of the images.
        draw: gives random words; on a device, those of many batches at a time.
        partner: int64 [N] in host memory, sample that each one is mixed with; None where nothing
            is mixed.
    """

    def __init__(
        self,
        view: View,
        index: Tensor,
        sizes: Iterable[int],
        device: torch.device,
        draw: Draw,
        partner: Tensor | None = None,
    ) -> None:
        self._parts = _slices(sizes)
        self._samples = SampleViews.place(view, index, device)
        self._words = _Words(draw, self._samples, self._parts)
        self._partners: SampleViews | None = None
        if partner is None:
            return
        self._partners = SampleViews.place(view, partner, device)
        once = [_once(self._samples[part], self._partners[part]) for part in self._parts]
        self._image_parts = _slices(len(images) for _, images, _ in once)
        views = [of for of, _, _ in once if isinstance(of, Tensor)]
        images = torch.cat([images for _, images, _ in once])
        self._images = SampleViews.place(torch.cat(views) if views else view, images, device)
        self._image_words = _Words(draw, self._images, self._image_parts)
        self._place = to_device(torch.cat([place for _, _, place in once]), device)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[BatchPlan]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> BatchPlan:
        part = self._parts[number]
        samples = self._samples[part]
        if self._partners is None:
            return BatchPlan(samples, samples, words=self._words[number])
        images = self._images[self._image_parts[number]]
        place = self._place[2 * part.start : 2 * part.stop]
        words, image_words = self._words[number], self._image_words[number]
        return BatchPlan(samples, images, self._partners[part], place, words, image_words)


def _slices(sizes: Iterable[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]


def _once(samples: SampleViews, partners: SampleViews) -> tuple[View, Tensor, Tensor]:
    """Return the distinct views and samples of a batch, and the place of each one in them."""
    view, both = samples.host_view, torch.cat((samples.host_index, partners.host_index))
    if isinstance(view, int):
        images, place = both.unique(return_inverse=True)
        return view, images, place
    pairs, place = torch.stack((view.repeat(2), both)).unique(dim=1, return_inverse=True)
    return pairs[0], pairs[1], place
