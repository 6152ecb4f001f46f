"""Operations that move pixels: one frozen dataclass each.

An operation takes a whole batch of uint8 images and its own random bits, and works in integers
only, so that a view is bit-equal on every device and at every batch size. Names and arguments
follow `torchvision.transforms.v2`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.views.generator import bernoulli, integers
from kdscale.data.views.operations.base import Native, check_name, check_probability
from kdscale.errors import ConfigError

_MOST_PADDING = 1024  # pixels; beyond it a crop would show hardly any image


@dataclass(frozen=True, slots=True)
class RandomCrop(Native):
    """A crop of the image's own size out of the image padded on all sides.

    Draw 0 is the top edge, draw 1 the left one, each uniform in 0..2·padding.
    """

    num_draws: ClassVar[int] = 2
    padding: int
    padding_mode: Literal["constant", "reflect", "edge"] = "constant"
    fill: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.padding <= _MOST_PADDING:
            raise ConfigError(
                f"random_crop: padding is {self.padding}, wanted 1..{_MOST_PADDING} pixels"
            )
        check_name(
            "random_crop", "padding_mode", self.padding_mode, ("constant", "reflect", "edge")
        )
        if not 0 <= self.fill <= 255:
            raise ConfigError(f"random_crop: fill is {self.fill}, wanted a grey level 0..255")

    @property
    def choices(self) -> tuple[int, int]:
        """Top edges and left edges."""
        return (2 * self.padding + 1, 2 * self.padding + 1)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The crops, as large as the images."""
        batch, channels, height, width = images.shape
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ConfigError(
                f"random_crop: reflecting {self.padding} pixels needs images larger than that, "
                f"these are {height}x{width}: choose a smaller padding or another padding_mode"
            )
        top_B, left_B = integers(bits, 2 * self.padding + 1)
        padded = self._pad(images)
        # A crop is made of lines of `width` neighbours in the padded images' memory. Copying lines
        # is four times faster than gathering pixels.
        lines = padded.flatten().unfold(0, width, 1)
        padded_height, padded_width = padded.shape[-2:]
        plane_BC1 = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
        row_B1H = top_B.view(-1, 1, 1) + torch.arange(height, device=images.device)
        start_BCH = (plane_BC1 * padded_height + row_B1H) * padded_width + left_B.view(-1, 1, 1)
        return lines.index_select(0, start_BCH.flatten()).view(images.shape)

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
class RandomHorizontalFlip(Native):
    """A mirror image, left to right, with probability `p`. Draw 0 decides."""

    num_draws: ClassVar[int] = 1
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability("random_horizontal_flip", "p", self.p)

    @property
    def choices(self) -> tuple[int]:
        """Mirrored or not."""
        return (2 if 0 < self.p < 1 else 1,)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them mirrored."""
        flipped_B = bernoulli(bits[0], self.p)
        # Choosing whole images out of both versions is five times faster than `torch.where`.
        both = torch.cat((images, images.flip(-1)))
        sample_B = torch.arange(len(images), device=images.device)
        return both.index_select(0, sample_B + len(images) * flipped_B)
