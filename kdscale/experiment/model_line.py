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
    parameters = sum(one.numel() for one in model.parameters())
    log.info(
        "%s %s, %s, on %s of %s (split %r of %s); %s on %s", role, name,
        number_of(parameters, "parameter"), number_of(images.num_samples, "image"),
        number_of(images.num_classes, "class", "classes"), images.split, images.name, precision,
        device, extra={"once": True},
    )  # fmt: skip
