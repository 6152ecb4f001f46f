"""The teacher's forward pass: the same for the build and for an online run."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.engine.precision import autocast
from kdscale.engine.processes import is_out_of_memory
from kdscale.errors import DeviceMemoryError
from kdscale.models.preprocess import Preprocess
from kdscale.models.weights import tensors_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrozenTeacher:
    """A trained teacher that only answers. Create it with `freeze`."""

    model: nn.Module
    preprocess: Preprocess
    precision: str
    memory_format: str
    device: torch.device
    weights_sha256: str

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Raw logits of uint8 pixels [B, C, H, W]: float32 [B, classes]."""
        inputs = self.preprocess(pixels)
        if self.memory_format == "channels_last":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            logits: Tensor = self.model(inputs)
        return logits.float()

    def describe(self) -> dict[str, Any]:
        """The fields of the cache's identity that are the teacher's."""
        return {
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.describe(),
            "precision": self.precision,
            "memory_format": self.memory_format,
        }


def freeze(
    model: nn.Module,
    preprocess: Preprocess,
    *,
    precision: str,
    memory_format: str,
    device: torch.device,
) -> FrozenTeacher:
    """A teacher in inference mode on `device`; its weights are hashed as they are in memory."""
    fingerprint = tensors_sha256(model)
    model = model.eval().requires_grad_(False).to(device)
    if memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    return FrozenTeacher(model, preprocess, precision, memory_format, device, fingerprint)


class SizedBatches:
    """Asks a teacher in batches, and halves them when the device runs out of memory."""

    def __init__(self, teacher: FrozenTeacher, batch_size: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits of any number of pixels, on the teacher's device.

        Raises:
            DeviceMemoryError: not even one image fits.
        """
        while True:
            try:
                return torch.cat([self.teacher.logits(p) for p in pixels.split(self.batch_size)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve()

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise DeviceMemoryError(
                "the device has no memory for the teacher and one image: use a smaller "
                "teacher.input.size, teacher.precision = 'bfloat16', or another device"
            )
        self.batch_size //= 2
        log.warning("the device ran out of memory: teacher batches of %d now", self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
