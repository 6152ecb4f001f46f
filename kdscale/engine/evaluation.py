"""Evaluation: every sample counted once, whatever the number of processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from kdscale.data.loader import Images
from kdscale.engine.precision import autocast
from kdscale.engine.processes import is_out_of_memory
from kdscale.metrics import Counts, summarize
from kdscale.models.preprocess import Preprocess

_BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class Examined:
    """What a pass over labelled samples gives, the same in every process."""

    counts: Counts
    predictions: Tensor
    """int64 [N] on the CPU: the class of each sample's largest logit, in the order asked for."""


def evaluate(
    model: nn.Module,
    preprocess: Preprocess,
    images: Images,
    samples: Tensor,
    num_classes: int,
    accelerator: Accelerator,
    precision: str = "float32",
    between_batches: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Metrics (see `metrics.summarize`) of a model in training, on clean images.

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
    # Without DistributedDataParallel, which would wait for buffers at every batch of every process.
    model = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1:
        for buffer in model.buffers():  # batch-norm's differ between processes
            broadcast(buffer)
    was_training = model.training
    model.eval()

    def logits(pixels: Tensor) -> Tensor:
        with autocast(precision, accelerator.device):
            return model(preprocess(pixels)).float()  # type: ignore[no-any-return]

    examined = examine(logits, images, samples, num_classes, accelerator, between_batches)
    model.train(was_training)
    return summarize(examined.counts)


@torch.inference_mode()
def examine(
    logits: Callable[[Tensor], Tensor],
    images: Images,
    samples: Tensor,
    num_classes: int,
    accelerator: Accelerator,
    between_batches: Callable[[], None] | None = None,
) -> Examined:
    """Count what a model says of clean images, and note its first answers.

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
    mine = torch.arange(len(samples))[accelerator.process_index :: accelerator.num_processes]
    places = mine.split(_BATCH_SIZE)
    shown = images.take_each(samples[place] for place in places)
    for turn in range(-(-len(samples[:: accelerator.num_processes]) // _BATCH_SIZE)):
        if between_batches is not None:
            between_batches()
        if turn == len(places):  # another process has one more
            break
        place, (pixels, labels) = places[turn], next(shown)
        logits_BC = _in_memory(logits, pixels)
        counts += Counts.of(logits_BC, labels)
        predictions[place] = logits_BC.argmax(1)
    if accelerator.num_processes > 1:
        counts = counts.with_each(lambda one: accelerator.reduce(one, "sum"))
        predictions = accelerator.reduce(predictions, "sum")
    return Examined(counts, predictions.cpu())


def _in_memory(logits: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Logits of some images, in halves where the device has no memory for them at once."""
    try:
        return logits(pixels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(pixels) == 1:
            raise
    return torch.cat([_in_memory(logits, half) for half in pixels.tensor_split(2)])
