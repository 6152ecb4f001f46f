"""Detection of a teacher whose classes have another order than the data set's, by predictions."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

_SIGNIFICANT = 4.0  # standard deviations of the gain
_SMALLEST_GAIN = 0.05
_LEARNED = 0.3  # of the way from chance to 1: what a teacher of any use reaches


@dataclass(frozen=True, slots=True)
class Relabelling:
    """An order of a teacher's outputs under which its predictions agree better with the labels."""

    label_of: dict[int, int]
    """The label that each output seems to mean."""
    accuracy: float
    """Top-1 under this order, 0..1, on images that it was not found on."""
    complete: bool
    """Whether nearly all outputs are assigned, and the accuracy is that of a trained teacher."""


def find_relabelling(labels: Tensor, predicted: Tensor, num_classes: int) -> Relabelling | None:
    """Find a one-to-one relabelling of predictions that explains the labels far better.

    It is found on one half of the images and judged on the other: on the same images, some
    relabelling fits any predictions.

    Args:
        labels: int64 [B].
        predicted: int64 [B], the class of each image's largest logit.
        num_classes: C.

    Returns:
        None where no other order is significantly better.
    """
    half = _alternating(labels)
    label_of = _mutual_best(labels[half], predicted[half], num_classes)
    if all(output == label for output, label in label_of.items()):
        return None
    table = torch.arange(num_classes)
    for output, label in label_of.items():
        table[output] = label
    labels, predicted = labels[~half], predicted[~half]
    before, after = predicted == labels, table[predicted] == labels
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    gain = (gained - lost) / max(len(labels), 1)
    if gain < _SMALLEST_GAIN or gained - lost < _SIGNIFICANT * sqrt(gained + lost):
        return None
    accuracy, chance = float(after.double().mean()), 1 / num_classes
    learned = accuracy >= chance + _LEARNED * (1 - chance)
    unassigned = num_classes - len(label_of)
    return Relabelling(label_of, accuracy, learned and unassigned <= num_classes // 8)


def _alternating(labels: Tensor) -> Tensor:
    """Every other image of each class: bool [B]."""
    order = torch.argsort(labels, stable=True)
    half = torch.zeros(len(labels), dtype=torch.bool)
    half[order[::2]] = True
    return half


def _mutual_best(labels: Tensor, predicted: Tensor, num_classes: int) -> dict[int, int]:
    """Pairs of an output and a label that are predicted for each other more than any other."""
    pairs, counts = torch.unique(torch.stack([labels, predicted]), dim=1, return_counts=True)
    best_of_label: dict[int, tuple[int, int]] = {}
    best_of_output: dict[int, tuple[int, int]] = {}
    for (label, output), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if count > best_of_label.get(label, (0, 0))[0]:
            best_of_label[label] = count, output
        if count > best_of_output.get(output, (0, 0))[0]:
            best_of_output[output] = count, label
    return {
        output: label
        for output, (_, label) in best_of_output.items()
        if best_of_label[label][1] == output and label < num_classes
    }
