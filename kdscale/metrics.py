"""Model quality from counts, so that parts of a split add up whatever process counted them.

Shapes: B samples, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_UNITS = 1 << 20  # of cross-entropy, to a nat: whole numbers add up alike in any order
_LARGEST = 1e6  # nats; also what a loss that is not a number counts as


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pass over labelled samples counts; `+` joins two parts."""

    confusion_CC: Tensor
    """int64 [C, C]: rows are labels, columns are predictions."""
    top5: Tensor
    """int64 scalar: samples whose label is among the five largest logits."""
    cross_entropy: Tensor
    """int64 scalar: the sum over samples, in 2^-20 nats."""

    @classmethod
    def none(cls, num_classes: int, device: torch.device | str = "cpu") -> "Counts":
        """Nothing counted yet."""
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        return cls(zeros, zeros.sum(), zeros.sum())

    @classmethod
    def of(cls, logits_BC: Tensor, labels_B: Tensor) -> "Counts":
        """Counts of one batch."""
        num_classes = logits_BC.shape[1]
        cell = labels_B * num_classes + logits_BC.argmax(1)
        confusion = torch.bincount(cell, minlength=num_classes**2).view(num_classes, num_classes)
        top5 = logits_BC.topk(min(5, num_classes), dim=1).indices
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none").double()
        loss_B = loss_B.nan_to_num(_LARGEST).clamp(max=_LARGEST)
        units = (loss_B * _UNITS).round().long()
        return cls(confusion, (top5 == labels_B[:, None]).any(1).sum(), units.sum())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.confusion_CC + other.confusion_CC,
            self.top5 + other.top5,
            self.cross_entropy + other.cross_entropy,
        )


def summarize(counts: Counts) -> dict[str, float]:
    """Metrics, each in 0..1, and the cross-entropy on the labels, mean over samples, in nats.

    Precision of a class that is never predicted counts as 0, as does recall of one without samples.
    """
    confusion = counts.confusion_CC.double().cpu()
    total = confusion.sum().clamp(min=1)
    hits = confusion.diagonal()
    return {
        "top1_accuracy": float(hits.sum() / total),
        "top5_accuracy": float(counts.top5.cpu() / total),
        "macro_precision": float((hits / confusion.sum(0).clamp(min=1)).mean()),
        "macro_recall": float((hits / confusion.sum(1).clamp(min=1)).mean()),
        "cross_entropy": float(counts.cross_entropy.cpu() / total) / _UNITS,
    }
