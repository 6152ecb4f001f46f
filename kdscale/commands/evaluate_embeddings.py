"""Evaluate a model by its embeddings: k-NN and a linear probe, which need no classifier."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.errors import DataError
from kdscale.evaluation.embeddings import (
    NEIGHBOURS,
    Embeddings,
    embed,
    examine_embeddings,
    linear_probe,
    nearest_neighbours,
)
from kdscale.evaluation.evaluator import Examined
from kdscale.evaluation.metrics import summarize
from kdscale.teacher.frozen_teacher import FrozenTeacher


@dataclass(frozen=True, slots=True)
class EmbeddingResults:
    """Test accuracies of classifiers on embeddings."""

    by_neighbours: Examined
    """Of the weighted k-NN."""
    probe_top1_accuracy: float | None
    """Of the linear probe, 0..1; None without labelled training images."""
    bank: str
    """The split that k-NN compares with."""

    def to_json(self) -> dict[str, float | str | int | None]:
        """Return the fields of `evaluation.json`."""
        return {**self.accuracies(), "knn_neighbours": NEIGHBOURS, "knn_bank": self.bank}

    def accuracies(self) -> dict[str, float | None]:
        """Return top-1 accuracies of k-NN and linear probe, 0..1, as in `evaluation.json`."""
        return {
            "knn_top1_accuracy": summarize(self.by_neighbours.counts)["top1_accuracy"],
            "probe_top1_accuracy": self.probe_top1_accuracy,
        }


def evaluate_embeddings(
    model: FrozenTeacher, train: ImageDataset, test: ImageDataset, accelerator: Accelerator
) -> EmbeddingResults:
    """Classify the test split by embeddings: the model's output, or the input of its classifier.

    Args:
        model: the model.
        train: the training split; without labels, each test image is compared with the others.
        test: the labelled test split.
        accelerator: its processes share the work.

    Raises:
        ConfigError: the model's classifier is no linear layer.
        DataError: the splits have other classes.
    """
    embedding_of = _embedding_of(model, DeviceImages(test, accelerator.device))

    def of(images: ImageDataset) -> Embeddings:
        resident = DeviceImages(images, accelerator.device)
        return embed(embedding_of, resident, torch.arange(images.num_samples), accelerator)

    classes, tested = test.num_classes, of(test)
    if not train.labelled:
        classify = nearest_neighbours(tested, classes)
        examined = examine_embeddings(classify, tested, classes, accelerator, in_bank=True)
        return EmbeddingResults(examined, None, f"{test.split}, without the image itself")
    if train.classes != test.classes:
        raise DataError(
            f"split {train.split!r} and split {test.split!r} have other classes: k-NN classifies "
            "the images of one by those of the other"
        )
    bank = of(train)
    examined, probed = (
        examine_embeddings(classifier(bank, classes), tested, classes, accelerator)
        for classifier in (nearest_neighbours, linear_probe)
    )
    return EmbeddingResults(examined, summarize(probed.counts)["top1_accuracy"], train.split)


def _embedding_of(model: FrozenTeacher, images: DeviceImages) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 pixels to embeddings [B, D]."""
    if model.headless:
        return lambda pixels: model.outputs(pixels).output
    pixels, _ = images.gather(torch.arange(min(2, len(images.labels))))
    watched = replace(model, head_module=model.find_head(pixels)[0])

    def embedding_of(pixels: Tensor) -> Tensor:
        found = watched.outputs(pixels).embedding_BD
        assert found is not None, "a forward pass with a head gives its input"
        return found

    return embedding_of
