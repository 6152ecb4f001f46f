"""The teacher's forward pass: the same for the build and for an online run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdscale.compilation import CompiledModel
from kdscale.distributed import is_out_of_memory
from kdscale.errors import DeviceMemoryError
from kdscale.models.feature_extraction import FeatureSpec, extract_features, find_head
from kdscale.models.preprocess import Preprocess
from kdscale.models.weights import tensors_sha256
from kdscale.precision import autocast
from kdscale.targets import Head

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """Outputs of a teacher for a batch, all of one forward pass."""

    output: Tensor
    """What the model returns, float32: raw logits [B, C]; of a teacher without a classifier an
    embedding or a map [B, ...]."""
    embedding_BD: Tensor | None = None
    """float32 [B, D], inputs of its head; None if not requested."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """float32 [B, ...], outputs of the requested modules."""

    @property
    def logits_BC(self) -> Tensor:
        """Raw logits [B, C], of a teacher that has a classifier."""
        return self.output

    def with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same, with all tensors changed."""
        return replace(
            self,
            output=change(self.output),
            embedding_BD=None if self.embedding_BD is None else change(self.embedding_BD),
            features={name: change(values) for name, values in self.features.items()},
        )


def concatenate(parts: Sequence[TeacherOutput]) -> TeacherOutput:
    """Join the outputs of several batches in order."""
    first = parts[0]
    embedding = None
    if first.embedding_BD is not None:
        embedding = torch.cat([p.embedding_BD for p in parts if p.embedding_BD is not None])
    features = {name: torch.cat([p.features[name] for p in parts]) for name in first.features}
    return TeacherOutput(torch.cat([p.output for p in parts]), embedding, features)


@dataclass(frozen=True, slots=True)
class FrozenTeacher:
    """A trained teacher in evaluation mode, without gradients. Create it with `freeze`."""

    model: nn.Module
    preprocess: Preprocess
    precision: str
    memory_format: str
    device: torch.device
    weights_sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the model's factory: they may change the outputs of equal weights."""
    taps: tuple[FeatureSpec, ...] = ()
    """The modules whose outputs are returned as features."""
    head: Head | None = None
    """Its last layer, where the inputs of that layer are returned, too."""
    head_module: str | None = None
    """The name of that layer."""
    compiled: CompiledModel | None = None
    """The model compiled; None where it is not."""
    headless: bool = False
    """Whether the output is no logits: the model has no classifier, or it is not used."""
    _autocast: torch.autocast = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_autocast", autocast(self.precision, self.device))

    def compiled_for(self, batch_size: int) -> Self:
        """Return the teacher compiled for batches of one size; others run uncompiled.

        Its features are read by hooks of the model, which a compiled model does not call: a teacher
        that has any stays uncompiled.
        """
        if self.taps or self.head_module is not None:
            log.warning("teacher.compile has no effect where features of the teacher are stored")
            return self
        compiled = CompiledModel(self.model, True, batch_size=batch_size, what="teacher")
        return replace(self, compiled=compiled)

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> TeacherOutput:
        """Return the outputs for uint8 pixels [B, C, H, W].

        Raises:
            ConfigError: a requested module is unknown, or has no one output.
        """
        if not self.taps and self.head_module is None:
            return TeacherOutput(self._forward(pixels))
        with extract_features(self.model, self.taps, self.head_module) as seen:
            output = self._forward(pixels)
        return TeacherOutput(output, seen.head_input_BD, seen.features)

    def logits(self, pixels: Tensor) -> Tensor:
        """Raw logits of uint8 pixels [B, C, H, W]: float32 [B, classes]."""
        return self.outputs(pixels).logits_BC

    def find_head(self, pixels: Tensor) -> tuple[str, Head]:
        """Return the name and weights of the last layer, found by a forward pass of some pixels.

        Raises:
            ConfigError: that layer is not linear.
        """
        return find_head(self.model, torch.inference_mode()(lambda: self._forward(pixels)))

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the model itself is called with: preprocessed, in its memory format."""
        inputs = self.preprocess(pixels)
        if self.memory_format == "channels_last":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _forward(self, pixels: Tensor) -> Tensor:
        inputs = self.inputs(pixels)
        with self._autocast:
            output: Tensor = (self.compiled or self.model)(inputs)
        return output.float()

    def describe(self) -> dict[str, Any]:
        """The fields of the cache's identity that are the teacher's."""
        return {
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.describe(),
            "precision": self.precision,
            "memory_format": self.memory_format,
            **({"options": dict(self.options)} if self.options else {}),
        }


def freeze(
    model: nn.Module,
    preprocess: Preprocess,
    *,
    precision: str,
    memory_format: str,
    device: torch.device,
    options: Mapping[str, Any] | None = None,
    headless: bool = False,
) -> FrozenTeacher:
    """Return a teacher in inference mode on `device`; its weights are hashed as in memory."""
    fingerprint = tensors_sha256(model)
    model = model.eval().requires_grad_(False).to(device)
    if memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    return FrozenTeacher(
        model, preprocess, precision, memory_format, device, fingerprint, options or {},
        headless=headless,
    )  # fmt: skip


class OomSafeTeacher:
    """A teacher that runs in batches, halved when the device runs out of memory."""

    def __init__(self, teacher: FrozenTeacher, batch_size: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits of any number of pixels, on the teacher's device; errors as of `outputs`."""
        return self.outputs(pixels).logits_BC

    def outputs(self, pixels: Tensor) -> TeacherOutput:
        """Return the outputs for any number of pixels, on the teacher's device.

        Raises:
            DeviceMemoryError: not even one image fits.
        """
        while True:
            try:
                parts = pixels.split(self.batch_size)
                return concatenate([self.teacher.outputs(part) for part in parts])
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
