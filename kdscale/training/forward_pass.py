"""The forward pass of a model in training: preprocess, autocast, compiled or not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdscale.compilation import CompiledModel
from kdscale.models.preprocess import Preprocess
from kdscale.precision import autocast, tf32


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """Logits of pixels, and features where the model gives any."""

    model: nn.Module
    """The model as `accelerator.prepare` returned it, never compiled: it is saved and evaluated."""
    preprocess: Preprocess
    device: torch.device
    precision: str = "float32"
    """Precision of the forward and backward pass: float32, bfloat16 or float16."""
    allow_tf32: bool = False
    """Whether float32 products may be rounded to TF32."""
    compiled: CompiledModel | None = None
    """The model compiled; None where it is not."""

    def __call__(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [B, C] and features of uint8 pixels [B, C, H, W].

        Raises:
            ModelError: the model cannot be compiled here.
        """
        with tf32(self.allow_tf32), autocast(self.precision, self.device):
            output = (self.compiled or self.model)(self.preprocess(pixels))
        return output if isinstance(output, tuple) else (output, ())
