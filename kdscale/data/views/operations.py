"""The native operations: one frozen dataclass each, in the dict at the end.

An operation takes a whole batch of uint8 images and its own random bits, and works in integers
only, so that a view is bit-equal on every device and at every batch size. Names and arguments follow
`torchvision.transforms.v2`. To add one: write the class, add it to `OPERATIONS`, specify its draws in
`docs/views.md`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.views.generator import bernoulli, integers
from kdscale.errors import ConfigError


class Operation(Protocol):
    """One step of a pipeline."""

    num_draws: ClassVar[int]
    """How many 64-bit draws a sample needs."""

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """uint8 [B, C, H, W] and int64 bits [num_draws, B] -> uint8 [B, C, H', W']."""
        ...


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A crop of the image's own size out of the image padded on all sides.

    Draw 0 is the top edge, draw 1 the left one, each uniform in 0..2·padding.
    """

    num_draws: ClassVar[int] = 2
    padding: int
    padding_mode: Literal["constant", "reflect", "edge"] = "constant"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ConfigError(f"random_crop: padding is {self.padding}, wanted 1 pixel or more")
        if self.padding_mode not in ("constant", "reflect", "edge"):
            raise ConfigError(
                f"random_crop: padding_mode is {self.padding_mode!r}, wanted constant, reflect or edge"
            )
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"random_crop: fill is {self.fill}, wanted a grey level 0..255")

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ConfigError(
                f"random_crop: reflecting {self.padding} pixels needs images larger than that, "
                f"these are {height}x{width}: choose a smaller padding or another padding_mode"
            )
        top_B, left_B = integers(bits, 2 * self.padding + 1)
        padded = self._pad(images)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        batch = torch.arange(len(images), device=images.device)
        return windows[batch, :, top_B, left_B]

    def _pad(self, images: Tensor) -> Tensor:
        if self.padding_mode == "constant":
            return F.pad(images, [self.padding] * 4, value=self.fill)
        rows, columns = (self._source(size, images.device) for size in images.shape[-2:])
        return images.index_select(2, rows).index_select(3, columns)

    def _source(self, size: int, device: torch.device) -> Tensor:
        """Which pixel of a line each pixel of the padded line copies."""
        position = torch.arange(-self.padding, size + self.padding, device=device)
        if self.padding_mode == "edge":
            return position.clamp(0, size - 1)
        return (size - 1) - ((size - 1) - position.abs()).abs()


@dataclass(frozen=True, slots=True)
class RandomHorizontalFlip:
    """A mirror image, left to right, with probability `p`. Draw 0 decides."""

    num_draws: ClassVar[int] = 1
    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"random_horizontal_flip: p is {self.p}, wanted a probability 0..1")

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        flipped_B = bernoulli(bits[0], self.p)
        return torch.where(flipped_B.view(-1, 1, 1, 1), images.flip(-1), images)


OPERATIONS: dict[str, type[Operation]] = {
    "random_crop": RandomCrop,
    "random_horizontal_flip": RandomHorizontalFlip,
}
