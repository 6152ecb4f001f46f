"""From the uint8 pixels of a view to the input of one model.

Resizing and normalising belong to the model, not to the view: teacher and student may differ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdscale.errors import ModelError
from kdscale.formatting import number_of


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Scale to 0..1, resize, normalise.

    Raises:
        ModelError: lengths differ, a standard deviation is not positive, or the size is below 1.
    """

    mean: tuple[float, ...]
    """Per channel, on the scale 0..1; its length is the number of channels the model takes."""
    std: tuple[float, ...]
    """Per channel, on the scale 0..1, above zero."""
    size: int | None
    """Side of the square the model sees, pixels; None leaves the view's size."""

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ModelError(
                f"mean has {number_of(len(self.mean), 'value')} and std has {len(self.std)}: give "
                "both one value a channel (one for grey, three for colour)"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ModelError(f"mean is {self.mean}, wanted finite numbers on the scale 0..1")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ModelError(f"std is {self.std}, wanted numbers above zero on the scale 0..1")
        if self.size is not None and self.size < 1:
            raise ModelError(f"size is {self.size}, wanted at least 1 pixel, or none at all")

    @property
    def channels(self) -> int:
        """Channels of the result, which the model takes."""
        return len(self.mean)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return what the model sees; a sample's values do not depend on its batch.

        Args:
            pixels: uint8 [B, C, H, W]. Grey pixels are repeated for a model of several channels.

        Returns:
            float32 [B, channels, size, size], on the device of the pixels.

        Raises:
            ModelError: the pixels are not uint8 [B, C, H, W], or their channels do not fit.
        """
        self.check(pixels)
        scale, shift = _constants(self.mean, self.std, pixels.device)
        resized = resize(pixels, self.size)
        # Not addcmul: it took twice the time on a CPU, and whether it fuses, and so its last bit,
        # depends on the instruction set. Two plain operations give equal bits everywhere.
        return torch.mul(resized.to(torch.float32), scale).add_(shift)

    def check(self, pixels: Tensor) -> None:
        """Raise ModelError unless pixels are uint8 [B, C, H, W], of channels that fit."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ModelError(
                f"preprocessing got {pixels.dtype} pixels of shape {tuple(pixels.shape)}, "
                "wanted torch.uint8 [B, C, H, W]"
            )
        if pixels.shape[1] not in (1, self.channels):
            raise ModelError(
                f"the images have {pixels.shape[1]} channels, mean and std have {self.channels}: "
                "give mean and std one value a channel, or convert the images to grey"
            )

    def describe(self) -> dict[str, Any]:
        """Return it as JSON-ready values, for manifests and weights files."""
        return {"mean": list(self.mean), "std": list(self.std), "size": self.size}

    def constants(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, float32 [1, channels, 1, 1]: resized pixels x scale + shift."""
        return _constants(self.mean, self.std, torch.device("cpu"))

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Self:
        """Read what `describe` wrote.

        Raises:
            ModelError: a key is missing, unknown, or has a value of the wrong kind.
        """
        if set(description) != {"mean", "std", "size"}:
            raise ModelError(
                f"preprocessing has the keys {sorted(description)}, wanted mean, std and size"
            )
        size = description["size"]
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise ModelError(f"size is {size!r}, wanted a whole number of pixels, or none at all")
        return cls(_numbers(description, "mean"), _numbers(description, "std"), size)


def _numbers(description: Mapping[str, Any], key: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in description[key])
    except (TypeError, ValueError) as error:
        raise ModelError(f"{key} is {description[key]!r}, wanted a list of numbers") from error


def resize(pixels: Tensor, size: int | None) -> Tensor:
    """Return [B, C, size, size] float32 on 0..255, or the uint8 pixels if they have that size."""
    if size is None or tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    return F.interpolate(
        pixels.to(torch.float32).contiguous(),
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [1, channels, 1, 1], so that x * scale + shift is normalised."""
    # A tensor born in inference mode could not be used outside it.
    with torch.inference_mode(False):
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        both = torch.tensor([scale, shift], dtype=torch.float32, device=device)
    scale_1C11, shift_1C11 = both.view(2, 1, len(mean), 1, 1)
    return scale_1C11, shift_1C11
