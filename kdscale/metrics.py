"""Model quality from counts, so that parts of a split add up whatever process counted them.

All counts are whole numbers: their sums are the same in any order, on any device.

Shapes: B samples, C classes, M bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_UNITS = 1 << 20  # of cross-entropy, to a nat: whole numbers add up alike in any order
_LARGEST = 1e6  # nats; also what a loss that is not a number counts as

BINS = 15
_ONE = 1 << 32
"""What a confidence of 1 counts as: a float32 of at least 1/256 loses nothing, and sums of up to
2^31 samples fit int64."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples by how sure a model was of its answer; `+` joins two parts.

    Guo et al., "On Calibration of Modern Neural Networks" (2017): bins of equal width, each with
    its upper edge.
    """

    samples_M: Tensor
    """int64 [M]."""
    hits_M: Tensor
    """int64 [M], of them right."""
    confidence_M: Tensor
    """int64 [M], the sum of their confidences in units of 2^-32."""

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> "Calibration":
        """Nothing counted yet."""
        return cls(*torch.zeros(3, BINS, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, confidence_B: Tensor, is_right_B: Tensor) -> "Calibration":
        """Counts of one batch: confidences in 0..1, and whether each answer was right."""
        units_B = (confidence_B.nan_to_num(0.0) * _ONE).round().long()
        bin_B = ((units_B * BINS + _ONE - 1) // _ONE - 1).clamp(0, BINS - 1)
        none = torch.zeros(BINS, dtype=torch.int64, device=confidence_B.device)
        counted = (torch.ones_like(bin_B), is_right_B.long(), units_B)
        return cls(*(none.index_add(0, bin_B, each) for each in counted))

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.samples_M + other.samples_M,
            self.hits_M + other.hits_M,
            self.confidence_M + other.confidence_M,
        )

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1 (equation 3)."""
        gaps = (self.confidence_M.double() / _ONE - self.hits_M.double()).abs().sum()
        return float(gaps / self.samples_M.sum().clamp(min=1))

    def describe(self) -> dict[str, Any]:
        """By bin: mean confidence and accuracy in 0..1, and samples; 0 where there are none."""
        samples = self.samples_M.double().clamp(min=1)
        return {
            "bins": BINS,
            "confidence": (self.confidence_M.double() / _ONE / samples).tolist(),
            "accuracy": (self.hits_M.double() / samples).tolist(),
            "samples": self.samples_M.tolist(),
        }


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pass over labelled samples counts; `+` joins two parts."""

    confusion_CC: Tensor
    """int64 [C, C]: rows are labels, columns are predictions."""
    top5: Tensor
    """int64 scalar: samples whose label is among the five largest logits."""
    cross_entropy: Tensor
    """int64 scalar: the sum over samples, in 2^-20 nats."""
    calibration: Calibration

    @classmethod
    def none(cls, num_classes: int, device: torch.device | str = "cpu") -> "Counts":
        """Nothing counted yet."""
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        none = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zeros, none, none, Calibration.none(device))

    @classmethod
    def of(cls, logits_BC: Tensor, labels_B: Tensor) -> "Counts":
        """Counts of one batch."""
        num_classes = logits_BC.shape[1]
        predicted_B = logits_BC.argmax(1)
        cell = labels_B * num_classes + predicted_B
        confusion = torch.bincount(cell, minlength=num_classes**2).view(num_classes, num_classes)
        top5 = logits_BC.topk(min(5, num_classes), dim=1).indices
        confidence_B = logits_BC.softmax(1).gather(1, predicted_B[:, None])[:, 0]
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none").double()
        loss_B = loss_B.nan_to_num(_LARGEST).clamp(max=_LARGEST)
        return cls(
            confusion,
            (top5 == labels_B[:, None]).any(1).sum(),
            (loss_B * _UNITS).round().long().sum(),
            Calibration.of(confidence_B, predicted_B == labels_B),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.confusion_CC + other.confusion_CC,
            self.top5 + other.top5,
            self.cross_entropy + other.cross_entropy,
            self.calibration + other.calibration,
        )

    def with_each(self, change: Callable[[Tensor], Tensor]) -> "Counts":
        """The same, with all tensors changed."""
        bins = self.calibration
        return Counts(
            change(self.confusion_CC),
            change(self.top5),
            change(self.cross_entropy),
            Calibration(change(bins.samples_M), change(bins.hits_M), change(bins.confidence_M)),
        )


def summarize(counts: Counts) -> dict[str, float]:
    """Metrics, each in 0..1, and the cross-entropy on the labels, mean over samples, in nats.

    Means over classes leave out those without samples that are never predicted either, of which
    nothing is known. Precision of a class that is never predicted else counts as 0, as does recall
    of one without samples.
    """
    counts = counts.with_each(Tensor.cpu)
    precision_C, recall_C = _by_class(counts)
    total = counts.confusion_CC.sum().clamp(min=1)
    is_met_C = (counts.confusion_CC.sum(0) + counts.confusion_CC.sum(1)) > 0
    num_met = is_met_C.sum().clamp(min=1)
    return {
        "top1_accuracy": float(counts.confusion_CC.diagonal().sum().double() / total),
        "top5_accuracy": float(counts.top5.double() / total),
        "macro_precision": float(precision_C.sum() / num_met),
        "macro_recall": float(recall_C.sum() / num_met),
        "calibration_error": counts.calibration.error,
        "cross_entropy": float(counts.cross_entropy.double() / total) / _UNITS,
    }


def details(counts: Counts) -> dict[str, Any]:
    """What stands behind the metrics, as JSON-ready values: calibration, confusion, each class."""
    counts = counts.with_each(Tensor.cpu)
    columns = (*_by_class(counts), counts.confusion_CC.sum(1))
    return {
        "calibration": counts.calibration.describe(),
        "confusion": counts.confusion_CC.tolist(),
        "per_class": [
            {"precision": precision, "recall": recall, "samples": samples}
            for precision, recall, samples in zip(*(one.tolist() for one in columns), strict=True)
        ],
    }


def _by_class(counts: Counts) -> tuple[Tensor, Tensor]:
    """Precision and recall: float64 [C] each."""
    confusion = counts.confusion_CC.double()
    hits = confusion.diagonal()
    return hits / confusion.sum(0).clamp(min=1), hits / confusion.sum(1).clamp(min=1)
