"""Evaluation: every sample counted once, whatever the number of processes."""

from collections.abc import Callable
from itertools import islice

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


@torch.inference_mode()
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
    """Metrics (see `metrics.summarize`) of a model on clean images.

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
    counts = Counts.none(num_classes, accelerator.device)
    mine = samples[accelerator.process_index :: accelerator.num_processes]

    def logits(pixels: Tensor) -> Tensor:
        with autocast(precision, accelerator.device):
            return model(preprocess(pixels)).float()  # type: ignore[no-any-return]

    batches = images.take_each(mine.split(_BATCH_SIZE))
    for _ in range(-(-len(samples[:: accelerator.num_processes]) // _BATCH_SIZE)):
        if between_batches is not None:
            between_batches()
        for pixels, labels in islice(batches, 1):  # none, where another process has one more
            counts += _count(logits, pixels, labels)
    model.train(was_training)
    if accelerator.num_processes > 1:
        parts = (counts.confusion_CC, counts.top5, counts.cross_entropy)
        counts = Counts(*(accelerator.reduce(part, "sum") for part in parts))
    return summarize(counts)


def _count(logits: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor) -> Counts:
    """Counts of some samples, in halves where the device has no memory for them at once."""
    try:
        return Counts.of(logits(pixels), labels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(labels) == 1:
            raise
    halves = zip(pixels.tensor_split(2), labels.tensor_split(2), strict=True)
    first, second = (_count(logits, *half) for half in halves)
    return first + second
