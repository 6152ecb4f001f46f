"""Model quality from counts, so that parts of a split add up whatever process counted them.

Shapes: B samples, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pass over labelled samples counts; `+` joins two parts."""

    confusion_CC: Tensor
    """int64 [C, C]: rows are labels, columns are predictions."""
    top5: Tensor
    """int64 scalar: samples whose label is among the five largest logits."""

    @classmethod
    def none(cls, num_classes: int, device: torch.device | str = "cpu") -> "Counts":
        """Nothing counted yet."""
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        return cls(zeros, torch.zeros((), dtype=torch.int64, device=device))

    @classmethod
    def of(cls, logits_BC: Tensor, labels_B: Tensor) -> "Counts":
        """Counts of one batch."""
        num_classes = logits_BC.shape[1]
        cell = labels_B * num_classes + logits_BC.argmax(1)
        confusion = torch.bincount(cell, minlength=num_classes**2).view(num_classes, num_classes)
        top5 = logits_BC.topk(min(5, num_classes), dim=1).indices
        return cls(confusion, (top5 == labels_B[:, None]).any(1).sum())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.confusion_CC + other.confusion_CC, self.top5 + other.top5)


def summarize(counts: Counts) -> dict[str, float]:
    """Metrics, each in 0..1.

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
    }


def fidelity(full_BC: Tensor, stored_BC: Tensor) -> dict[str, float]:
    """How close stored logits are to the full ones they were encoded from.

    Returns:
        T²·KL(full‖stored) at T 1, 2 and 4, mean over samples in nats; the largest error of a
        probability; the share of equal arg-max; the cosine between the gradients that a student
        with uniform predictions would get.
    """
    full, stored = full_BC.double(), stored_BC.double()
    report = {}
    for temperature in (1, 2, 4):
        p, q = (torch.log_softmax(x / temperature, 1) for x in (full, stored))
        divergence = (p.exp() * (p - q)).sum(1).mean() * temperature**2
        report[f"kl_t{temperature}"] = max(0.0, float(divergence))
    p, q = full.softmax(1), stored.softmax(1)
    uniform = 1 / full.shape[1]
    cosine = torch.cosine_similarity((uniform - p).flatten(), (uniform - q).flatten(), dim=0)
    report["max_probability_error"] = float((p - q).abs().max())
    report["top1_agreement"] = float((p.argmax(1) == q.argmax(1)).double().mean())
    report["gradient_cosine"] = float(cosine)
    return report
