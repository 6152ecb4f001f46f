"""A trained model as it is deployed: the pixels of images in, logits out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.errors import WeightsError
from kdscale.models.preprocess import Preprocess, resize
from kdscale.models.registry import create_model
from kdscale.models.weights import load_weights, read_metadata

_INITIAL_WEIGHTS = {"torchvision/": "weights", "timm/": "pretrained"}
"""Options that would fetch weights, to be replaced at once."""


class Deployable(nn.Module):
    """A model with its preprocessing inside, in evaluation mode.

    Args:
        model: gives logits [B, C] of preprocessed images.
        preprocess: the model's.
        class_names: in the order of the logits.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.preprocess, self.class_names = model, preprocess, tuple(class_names)
        for name, values in zip(("scale", "shift"), preprocess.constants(), strict=True):
            self.register_buffer(name, values.clone(), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, float32 [B, C], of uint8 pixels [B, channels, H, W].

        Raises:
            ModelError: the pixels are others; floats on 0..1 would be taken for almost black.
        """
        self.preprocess.check(pixels)
        # As `Preprocess` does it, but with what tracing can follow.
        resized = resize(pixels, self.preprocess.size).to(torch.float32)
        logits: Tensor = self.model(resized * self.scale + self.shift)
        return logits.float()


def load_student(path: str | Path) -> Deployable:
    """A trained model from its weights file, ready to be called with uint8 pixels [B, C, H, W].

    Args:
        path: what `kdscale export --format safetensors` wrote, or a run's `weights.safetensors`.

    Returns:
        The model on the CPU, in evaluation mode; `class_names` and `preprocess` are attributes.

    Raises:
        WeightsError: the file is missing or damaged, or does not say what model it is of.
        ModelError: that model cannot be created here.
    """
    path = Path(path)
    stated = read_metadata(path)
    if missing := sorted({"model", "num_classes", "preprocess"} - stated.keys()):
        raise WeightsError(
            f"{path} does not say its {', '.join(missing)}, wanted a file that kdscale wrote: "
            "weights.safetensors of a run, or what `kdscale export --format safetensors` gives"
        )
    preprocess = Preprocess.parse(stated["preprocess"])
    model = create_model(
        stated["model"],
        num_classes=stated["num_classes"],
        in_channels=preprocess.channels,
        options=_without_initial_weights(stated["model"], stated.get("options", {})),
    )
    load_weights(path, model, what="student")
    return Deployable(model, preprocess, stated.get("class_names", ()))


def _without_initial_weights(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {key for prefix, key in _INITIAL_WEIGHTS.items() if name.startswith(prefix)}
    return {key: value for key, value in options.items() if key not in left_out}
