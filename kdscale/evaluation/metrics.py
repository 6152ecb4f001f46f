"""Model quality from counts, so that parts of a split add up whatever process counted them.

All counts are whole numbers: their sums are the same in any order, on any device.

Memory grows with the number of classes, not with its square: a confusion matrix is made at the end,
from labels and predictions, and only of up to `LARGEST_MATRIX` classes.

Shapes: B samples, N all samples, C classes, M bins.
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
"""Integer for a confidence of 1: float32 values of at least 1/256 are exact, and sums of up to 2^31
samples fit int64."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples by the confidence of their predictions; `+` joins two parts.

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
    def of(
        cls, confidence_B: Tensor, is_right_B: Tensor, is_counted_B: Tensor | None = None
    ) -> "Calibration":
        """Count one batch.

        Args:
            confidence_B: 0..1.
            is_right_B: whether each prediction is correct.
            is_counted_B: whether each sample counts at all; None: all do.
        """
        units_B = (confidence_B.nan_to_num(0.0) * _ONE).round().long()
        bin_B = ((units_B * BINS + _ONE - 1) // _ONE - 1).clamp(0, BINS - 1)
        one_B = torch.ones_like(bin_B) if is_counted_B is None else is_counted_B.long()
        counted = (one_B, is_right_B * one_B, units_B * one_B)
        return cls(*(_sums_by(bin_B, each, BINS) for each in counted))

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


NO_PREDICTION = -1
"""Prediction of a sample whose logits are not all finite: it equals no label and no other one."""

LARGEST_MATRIX = 1000
"""Most classes of which a confusion matrix is made; it grows with their square."""
_MOST_CONFUSED = 100


def predict(logits_BC: Tensor) -> Tensor:
    """Return the class of each sample's largest logit, int64 [B].

    Of equal logits the first class counts, as in `torch.argmax`. Where a logit is NaN or infinite
    the sample has `NO_PREDICTION`.
    """
    return logits_BC.argmax(1).where(_are_finite(logits_BC), NO_PREDICTION)


def _are_finite(logits_BC: Tensor) -> Tensor:
    return logits_BC.isfinite().all(1)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a pass over labelled samples; `+` joins two parts.

    A sample with a logit that is NaN or infinite is wrong: it counts among the samples of its
    class, and as no prediction, no hit and nothing in the calibration.
    """

    samples_C: Tensor
    """int64 [C], samples by label."""
    predicted_C: Tensor
    """int64 [C], samples by prediction."""
    hits_C: Tensor
    """int64 [C], samples whose prediction is their label."""
    top5: Tensor
    """int64 scalar: samples whose label is among the five largest logits."""
    non_finite: Tensor
    """int64 scalar: samples with a logit that is NaN or infinite."""
    tied: Tensor
    """int64 scalar: samples whose largest logit belongs to several classes."""
    cross_entropy: Tensor
    """int64 scalar: the sum over samples, in 2^-20 nats."""
    calibration: Calibration

    @classmethod
    def none(cls, num_classes: int, device: torch.device | str = "cpu") -> "Counts":
        """Nothing counted yet."""
        zeros_C = torch.zeros(num_classes, dtype=torch.int64, device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zeros_C, zeros_C, zeros_C, zero, zero, zero, zero, Calibration.none(device))

    @classmethod
    def of(cls, logits_BC: Tensor, labels_B: Tensor) -> "Counts":
        """Counts of one batch."""
        num_classes = logits_BC.shape[1]
        # Samples without a prediction get zeros and weight 0: leaving them out would give tensors
        # of a size that the host has to wait for.
        is_finite_B = _are_finite(logits_BC)
        logits_BC = logits_BC.where(is_finite_B[:, None], 0.0)
        predicted_B = logits_BC.argmax(1)
        is_hit_B = (predicted_B == labels_B) & is_finite_B
        confidence_B = logits_BC.softmax(1).gather(1, predicted_B[:, None])[:, 0]
        is_tied_B = (logits_BC == logits_BC.amax(1, keepdim=True)).sum(1) > 1
        non_finite = (~is_finite_B).sum()
        loss_B = _cross_entropy(logits_BC, labels_B) * is_finite_B
        return cls(
            _sums_by(labels_B, torch.ones_like(labels_B), num_classes),
            _sums_by(predicted_B, is_finite_B, num_classes),
            _sums_by(labels_B, is_hit_B, num_classes),
            ((_ranks(logits_BC, labels_B) < 5) & is_finite_B).sum(),
            non_finite,
            (is_tied_B & is_finite_B).sum(),
            loss_B.sum() + round(_LARGEST * _UNITS) * non_finite,
            Calibration.of(confidence_B, is_hit_B, is_finite_B),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.samples_C + other.samples_C,
            self.predicted_C + other.predicted_C,
            self.hits_C + other.hits_C,
            self.top5 + other.top5,
            self.non_finite + other.non_finite,
            self.tied + other.tied,
            self.cross_entropy + other.cross_entropy,
            self.calibration + other.calibration,
        )

    def with_each(self, change: Callable[[Tensor], Tensor]) -> "Counts":
        """The same, with all tensors changed."""
        bins = self.calibration
        return Counts(
            change(self.samples_C),
            change(self.predicted_C),
            change(self.hits_C),
            change(self.top5),
            change(self.non_finite),
            change(self.tied),
            change(self.cross_entropy),
            Calibration(change(bins.samples_M), change(bins.hits_M), change(bins.confidence_M)),
        )


def _ranks(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the number of classes before each label, largest logit first: int64 [B].

    Of equal logits the first class comes first, so rank 0 is the prediction on any device;
    `topk` orders them as it likes.
    """
    labels_B1 = labels_B[:, None]
    own_B1 = logits_BC.gather(1, labels_B1)
    is_earlier_BC = torch.arange(logits_BC.shape[1], device=logits_BC.device) < labels_B1
    return ((logits_BC > own_B1) | ((logits_BC == own_B1) & is_earlier_BC)).sum(1)


def _cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return each sample's cross-entropy in 2^-20 nats: int64 [B]."""
    loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none").double()
    loss_B = loss_B.nan_to_num(_LARGEST).clamp(max=_LARGEST)
    return (loss_B * _UNITS).round().long()


def _sums_by(group_B: Tensor, values_B: Tensor, num_groups: int) -> Tensor:
    """Return the sum of values in each group: int64 [groups]."""
    sums = torch.zeros(num_groups, dtype=torch.int64, device=group_B.device)
    return sums.index_add(0, group_B, values_B.long())


def summarize(counts: Counts) -> dict[str, float]:
    """Metrics in 0..1, cross-entropy as the mean over samples in nats, and two numbers of samples.

    Means over classes leave out those without samples that are never predicted either, of which
    nothing is known. Precision of a class that is never predicted else counts as 0, as does recall
    of one without samples.
    """
    counts = counts.with_each(Tensor.cpu)
    precision_C, recall_C = _by_class(counts)
    total = counts.samples_C.sum().clamp(min=1)
    num_met = ((counts.samples_C + counts.predicted_C) > 0).sum().clamp(min=1)
    return {
        "top1_accuracy": float(counts.hits_C.sum().double() / total),
        "top5_accuracy": float(counts.top5.double() / total),
        "macro_precision": float(precision_C.sum() / num_met),
        "macro_recall": float(recall_C.sum() / num_met),
        "calibration_error": counts.calibration.error,
        "cross_entropy": float(counts.cross_entropy.double() / total) / _UNITS,
        "non_finite_samples": int(counts.non_finite),
        "tied_samples": int(counts.tied),
    }


def details(counts: Counts, labels_N: Tensor, predictions_N: Tensor) -> dict[str, Any]:
    """Return calibration, confusions and counts of each class, as JSON-ready values.

    Args:
        counts: of all samples.
        labels_N: int64 [N], on the CPU.
        predictions_N: int64 [N], on the CPU, as of `predict`.
    """
    counts = counts.with_each(Tensor.cpu)
    num_classes, has_prediction_N = len(counts.samples_C), predictions_N != NO_PREDICTION
    cells = labels_N[has_prediction_N] * num_classes + predictions_N[has_prediction_N]
    matrix = None
    if num_classes <= LARGEST_MATRIX:
        matrix = torch.bincount(cells, minlength=num_classes**2).view(num_classes, -1).tolist()
    columns = {
        **dict(zip(("precision", "recall"), _by_class(counts), strict=True)),
        "samples": counts.samples_C, "correct": counts.hits_C, "predicted": counts.predicted_C,
    }  # fmt: skip
    rows = zip(*(one.tolist() for one in columns.values()), strict=True)
    return {
        "calibration": counts.calibration.describe(),
        "confusion": matrix,
        "most_confused": _most_confused(cells, num_classes),
        "per_class": [dict(zip(columns, row, strict=True)) for row in rows],
    }


def _most_confused(cells: Tensor, num_classes: int) -> list[dict[str, int]]:
    """The wrong predictions made most often, first labels first among equals."""
    found, counts = cells.unique(return_counts=True)
    is_wrong = found // num_classes != found % num_classes
    found, counts = found[is_wrong], counts[is_wrong]
    first = counts.argsort(descending=True, stable=True)[:_MOST_CONFUSED]
    return [
        {"label": cell // num_classes, "predicted": cell % num_classes, "samples": count}
        for cell, count in zip(found[first].tolist(), counts[first].tolist(), strict=True)
    ]


def _by_class(counts: Counts) -> tuple[Tensor, Tensor]:
    """Precision and recall: float64 [C] each."""
    hits_C = counts.hits_C.double()
    return hits_C / counts.predicted_C.clamp(min=1), hits_C / counts.samples_C.clamp(min=1)
