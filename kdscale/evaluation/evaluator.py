"""Evaluation: every sample counted once, whatever the number of processes."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from kdscale.data.loader import DeviceImages
from kdscale.distributed import is_out_of_memory
from kdscale.evaluation.metrics import Counts, predict, summarize
from kdscale.formatting import number_of
from kdscale.models.preprocess import Preprocess
from kdscale.precision import autocast

log = logging.getLogger(__name__)

_BATCH_SIZE = 500
_BATCH_LOGITS = 2_000_000
"""Most logits of a batch: with 21,841 classes, 91 images."""
_MANY_TIED = 0.01
"""Share of the samples; bfloat16 alone, with its 8 bits, ties some."""


@dataclass(frozen=True, slots=True)
class Examined:
    """Results of a pass over labelled samples, the same in every process."""

    counts: Counts
    predictions: Tensor
    """int64 [N] on the CPU, in the order of the samples: see `metrics.predict`."""
    labels: Tensor
    """int64 [N] on the CPU, likewise."""


def evaluate(
    model: nn.Module,
    preprocess: Preprocess,
    images: DeviceImages,
    samples: Tensor,
    num_classes: int,
    accelerator: Accelerator,
    precision: str = "float32",
    between_batches: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Metrics (see `metrics.summarize`) of a model in training, on clean images.

    Logits that are NaN or infinite are mentioned.

    Args:
        model: gives logits [B, C].
        preprocess: the model's.
        images: the split.
        samples: int64 indices of the samples to count.
        num_classes: C.
        accelerator: its processes share the work.
        precision: of the forward pass.
        between_batches: called equally often by all processes, so that they may agree on something.
    """
    with evaluated(model, preprocess, accelerator, precision) as logits:
        examined = examine(logits, images, samples, num_classes, accelerator, between_batches)
    found = summarize(examined.counts)
    mention_unclear(found, len(samples))
    return found


@contextmanager
def evaluated(
    model: nn.Module, preprocess: Preprocess, accelerator: Accelerator, precision: str
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Put a model in training into evaluation mode, and give its output of uint8 pixels, float32.

    Arguments as of `evaluate`.
    """
    # Without DistributedDataParallel, which would wait for buffers at every batch of every process.
    model = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1:
        for buffer in model.buffers():  # batch-norm's differ between processes
            broadcast(buffer)
    was_training = model.training
    model.eval()

    def output(pixels: Tensor) -> Tensor:
        with autocast(precision, accelerator.device):
            return model(preprocess(pixels)).float()  # type: ignore[no-any-return]

    try:
        yield output
    finally:
        model.train(was_training)


def mention_unclear(found: Mapping[str, Any], num_samples: int) -> None:
    """Warn of samples without a prediction, and of many whose prediction is a guess."""
    non_finite, tied = found["non_finite_samples"], found["tied_samples"]
    of_all = f"of {number_of(num_samples, 'evaluated image')}"
    if non_finite:
        log.warning(
            "%d %s: logits are NaN or infinite, counted as wrong: the model cannot be used on such "
            "images; look for a division by zero or an overflow in it", non_finite, of_all,
        )  # fmt: skip
    if tied > _MANY_TIED * num_samples:
        log.warning(
            "%d %s: the largest logit belongs to several classes, and the first of them counts as "
            "the prediction: such a prediction is a guess", tied, of_all,
        )  # fmt: skip


@torch.inference_mode()
def examine(
    logits: Callable[[Tensor], Tensor],
    images: DeviceImages,
    samples: Tensor,
    num_classes: int,
    accelerator: Accelerator,
    between_batches: Callable[[], None] | None = None,
) -> Examined:
    """Count what a model predicts for clean images, and note the predictions.

    Args:
        logits: of uint8 pixels: float32 [B, C].
        images: the split.
        samples: int64 [N], indices of the samples to count.
        num_classes: C.
        accelerator: its processes share the work.
        between_batches: called as often in each process.
    """
    counts = Counts.none(num_classes, accelerator.device)
    predictions = torch.zeros(len(samples), dtype=torch.int64, device=accelerator.device)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    batch_size = max(1, min(_BATCH_SIZE, _BATCH_LOGITS // num_classes))
    batches = images.gather_each(samples[mine], batch_size)
    predicted = []
    for _ in range(-(-len(samples[:: accelerator.num_processes]) // batch_size)):
        if between_batches is not None:
            between_batches()
        batch = next(batches, None)
        if batch is None:  # another process has one more
            break
        pixels, labels = batch
        logits_BC = in_memory(logits, pixels)
        counts += Counts.of(logits_BC, labels)
        predicted.append(predict(logits_BC))
    if predicted:
        predictions[mine] = torch.cat(predicted)
    if accelerator.num_processes > 1:
        counts = counts.with_each(lambda one: accelerator.reduce(one, "sum"))
        predictions = accelerator.reduce(predictions, "sum")
    return Examined(counts, predictions.cpu(), images.host_labels[samples])


def in_memory(logits: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Logits of some images, in halves where the device has no memory for them at once."""
    try:
        return logits(pixels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(pixels) == 1:
            raise
    return torch.cat([in_memory(logits, half) for half in pixels.tensor_split(2)])
