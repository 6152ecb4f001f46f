"""Images of samples on a device, copied from host memory or decoded in threads that work ahead.

A set of one size lies decoded in memory, a set of several sizes is decoded sample by sample, with
the operations of the views up to the one that fixes the size. Callers see no difference but the
time it takes: all draws come from one generator, so a view does not depend on where it was made.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_hashes import RowCheck
from kdscale.data.views.batch_plan import SampleViews
from kdscale.data.views.operations.torchvision_op import TorchvisionOp
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from kdscale.transfers import SideStream

_PREFETCHED_BATCHES = 2
_AHEAD_PER_DECODER = 4  # samples: small batches alone would leave decoders idle
_MOST_DECODERS = 16
_WHOLE_IMAGES = 2 * _MOST_DECODERS
"""Of a batch, waiting at once for transforms of the caller: a photograph may take 100 MB."""
_GATHER_THREADS = 4

Images = tuple[Tensor, int]
"""uint8 [B, C, H, W] on the device, and the number of leading operations applied to them."""


class PixelSource(Protocol):
    """Images of a data set."""

    def prefetch(self, pipeline: Pipeline, samples: SampleViews) -> Callable[[], Images]:
        """Start to prepare the images of samples.

        Returns:
            A function that waits for the images. Dropping it cancels what was not begun.
        """
        ...

    def prefetch_depth(self, batch_size: int) -> int:
        """Return the number of batches to prefetch beyond the current one."""
        ...


class StreamedPixels:
    """Decoded images of one size in host memory, copied to a device batch by batch.

    Threads gather a batch into pinned memory; a stream of its own copies it, while the device
    computes on earlier ones. On a CPU there is no stream and no copy.

    Args:
        pixels: uint8 [N, C, H, W], a memory map or an array.
        device: device of the batches.
        check: compares images with their hashes when they are used; None: all are checked.
    """

    def __init__(
        self, pixels: np.ndarray, device: torch.device, check: RowCheck | None = None
    ) -> None:
        self._pixels, self._check, self._lock = as_tensor(pixels), check, Lock()
        self._stream = SideStream(device)
        self._threads = ThreadPoolExecutor(
            _GATHER_THREADS, thread_name_prefix="gather", initializer=_compute_alone
        )

    def prefetch(self, pipeline: Pipeline, samples: SampleViews) -> Callable[[], Images]:
        """Start to gather and copy."""
        copying = self._threads.submit(self._copy, samples.host_index)
        return lambda: (copying.result()(), 0)

    def prefetch_depth(self, batch_size: int) -> int:
        """Return a number of batches that hides the time of a copy."""
        return _PREFETCHED_BATCHES

    def _copy(self, index: Tensor) -> Callable[[], Tensor]:
        pixels = self._stream.buffer((len(index), *self._pixels.shape[1:]), self._pixels.dtype)
        torch.index_select(self._pixels, 0, index, out=pixels)
        if self._check is not None and self._check.pending:
            with self._lock:
                self._check(index.numpy(), pixels.numpy())
        return self._stream.copy(pixels)


class DecodeOnDemand:
    """Images of several sizes, decoded in threads.

    Threads, not processes: Pillow's codecs let go of the interpreter. A JPEG of 500 x 375 took 1.7
    ms of a core's time in a thread; in a process 2.7 ms, with the way back of its pixels, and each
    process 2 s at its start. `docs/results/decoding.md` compares both beside a busy main thread.
    """

    def __init__(self, images: EncodedImages, device: torch.device) -> None:
        self._images, self._stream = images, SideStream(device)
        # All cores, though several processes on a machine may do so: decoders never wait for each
        # other. Threads start when they are needed, and end with this object.
        self._num_threads = min(_MOST_DECODERS, _num_cores())
        self._threads = ThreadPoolExecutor(
            self._num_threads, thread_name_prefix="decoder", initializer=_compute_alone
        )

    def prefetch(self, pipeline: Pipeline, samples: SampleViews) -> Callable[[], Images]:
        """Start to decode.

        Raises:
            ConfigError: no operation fixes the size.
        """
        check_fixes_size(self._images, pipeline, "the pipeline")
        pairs = _pairs(samples)
        return _PrefetchedBatch(self._threads, self._images, pipeline, pairs, self._stream)

    def prefetch_depth(self, batch_size: int) -> int:
        """Return enough batches to decode during a step; no more, since memory holds them all."""
        wanted = self._num_threads * _AHEAD_PER_DECODER
        return max(_PREFETCHED_BATCHES, -(-wanted // max(1, batch_size)))


class _PrefetchedBatch:
    """Images that are being decoded, each (view, sample) once."""

    def __init__(
        self,
        threads: ThreadPoolExecutor,
        images: EncodedImages,
        pipeline: Pipeline,
        pairs: Sequence[tuple[int, int]],
        stream: SideStream,
    ) -> None:
        self._threads, self._stream, self._pairs = threads, stream, pairs
        self._images, self._pipeline = images, pipeline
        leading = pipeline.operations[: pipeline.leading]
        # Transforms that are not ours set the generators of torch, NumPy and Python, which belong
        # to the caller's thread: it applies them itself, and few whole images wait for it.
        self._alone = any(isinstance(operation, TorchvisionOp) for operation in leading)
        self._in_thread = 0 if self._alone else len(leading)
        self._begun: dict[tuple[int, int], Future[Tensor]] = {}
        self._begin(pairs[:_WHOLE_IMAGES] if self._alone else pairs)

    def __del__(self) -> None:
        # Not weakref.finalize: its list of tasks would refer to the error of one, whose traceback
        # leads here, for ever.
        for begun in self._begun.values():
            begun.cancel()

    def __call__(self) -> Images:
        """Wait for the images, in the order of the pairs."""
        if not self._pairs:  # whose size must be known all the same
            pixels, leading = self._stacked([(0, 0)])
            return pixels[:0], leading
        return self._stacked(self._pairs)

    def _begin(self, pairs: Sequence[tuple[int, int]]) -> None:
        for pair in pairs:
            if pair not in self._begun:
                # Not a method: what waits in the queue would refer to this object, and be decoded
                # though nobody waits for it, after an error or at the end.
                self._begun[pair] = self._threads.submit(
                    _decoded, self._images, self._pipeline, self._in_thread, *pair
                )

    def _stacked(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, int]:
        made = []
        for place, pair in enumerate(pairs):
            self._begin(pairs[place : place + (_WHOLE_IMAGES if self._alone else 1)])
            made.append(self._finished(*pair))
        sizes = sorted({(one.shape[-2], one.shape[-1]) for one in made})
        if len(sizes) > 1:
            raise ConfigError(
                f"an operation that should fix the size made views of {_size(*sizes[0])} and "
                f"{_size(*sizes[1])} (height x width): choose one that gives a single size"
            )
        pixels = self._stream.buffer((len(made), *made[0].shape[1:]), made[0].dtype)
        return self._stream.copy(torch.cat(made, out=pixels))(), self._pipeline.leading

    def _finished(self, view: int, sample: int) -> Tensor:
        pixels = self._begun[view, sample].result()
        if not self._alone:
            return pixels
        del self._begun[view, sample]  # the whole image
        index, leading = torch.tensor([sample]), self._pipeline.leading
        return self._pipeline.apply(pixels, view, index, 0, leading)


def check_fixes_size(images: EncodedImages, pipeline: Pipeline, setting: str) -> None:
    """Stop where views of images of several sizes would have several sizes.

    Raises:
        ConfigError: no operation fixes the size; `setting` names where it belongs.
    """
    if pipeline.leading:
        return
    heights, widths = images.headers.sizes
    early = " before the images are mixed" if pipeline.mixes else ""
    raise ConfigError(
        f"{images.split.name}, split {images.split.split!r}: images differ in size (heights "
        f"{heights[0]}..{heights[1]}, widths {widths[0]}..{widths[1]} pixels), and no operation of "
        f"{setting} gives them one{early}: {_HINTS.get(setting, _VIEWS_HINT)}"
    )


_VIEWS_HINT = "name one that does, such as { name = 'random_resized_crop', size = 224 }"
_HINTS = {
    "data.clean": "set data.clean = [{ name = 'resize', size = 256 }, "
    "{ name = 'center_crop', size = 224 }], say"
}


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the memory of a read-only array; it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _decoded(
    images: EncodedImages, pipeline: Pipeline, stop: int, view: int, sample: int
) -> Tensor:
    """One image with the first `stop` operations applied: uint8 [1, C, H, W]."""
    whole = torch.from_numpy(images.decode(sample))[None]
    pixels = pipeline.apply(whole, view, torch.tensor([sample]), 0, stop)
    # A crop may be a window into the whole image, which would stay in memory with it.
    return pixels.contiguous() if stop else pixels


def _pairs(samples: SampleViews) -> list[tuple[int, int]]:
    """Return the (view, sample) pairs."""
    view = samples.host_view
    views = repeat(view) if isinstance(view, int) else view.tolist()
    return list(zip(views, samples.host_index.tolist(), strict=False))


def _compute_alone() -> None:
    """One thread for torch's work on one image, as torch does in its own loader's thread.

    The caller's thread, which has begun to compute, goes on with as many as it had.
    """
    torch.get_num_threads()  # or the first parallel work of this thread would set it anew
    torch.set_num_threads(1)


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _size(height: int, width: int) -> str:
    return f"{height}x{width}"
