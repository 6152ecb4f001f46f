"""The line that a command logs before its work: data set, model, device and precision."""

import logging

import torch
from torch import nn

from kdscale.data.image_dataset import ImageDataset
from kdscale.formatting import number_of

log = logging.getLogger(__name__)


def log_model(
    role: str,
    name: str,
    model: nn.Module,
    images: ImageDataset,
    *,
    device: torch.device,
    precision: str,
) -> None:
    """Log what a command works on; equal lines appear once a command.

    Args:
        role: "teacher" or "student".
        name: of the model in the recipe.
        model: the model itself, for the number of its parameters, frozen ones included.
        images: the split that the model is run on.
        device: of the model.
        precision: of its forward pass.
    """
    parameters = number_of(sum(one.numel() for one in model.parameters()), "parameter")
    log.info(
        "%s %s, %s, on %s; %s on %s", role, name, parameters, split_text(images), precision,
        device, extra={"once": True},
    )  # fmt: skip


def split_text(images: ImageDataset) -> str:
    """Return images, classes, split and data set in words."""
    classes = number_of(images.num_classes, "class", "classes")
    return (
        f"{number_of(images.num_samples, 'image')} of {classes} (split {images.split!r} of "
        f"{images.name})"
    )
