"""Codecs: from logits to what a cache stores of them, and back, for each encoding.

Shapes: B samples, C classes, K stored classes, G temperatures of a grid, D values before the head.
Logits are stored, never probabilities: the temperature belongs to the student.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale.encodings import (
    Embedding,
    Encoding,
    FeaturesOnly,
    Float16,
    Float32,
    Int4,
    Int8,
    TopK,
)
from kdscale.errors import CacheError
from kdscale.targets.types import (
    DenseTargets,
    FeatureTargets,
    Head,
    Targets,
    TopKTargets,
    log_sums,
)

_FLOAT16_LIMIT = float(np.finfo(np.float16).max)
_FLOAT32_LIMIT = float(np.finfo(np.float32).max)
FEATURE_PREFIX = "features."
"""Beginning of the name of an array of features; the module's name follows."""


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """Encodes and decodes targets in one encoding."""

    encoding: Any
    """The `Encoding`."""

    @property
    def head(self) -> Head | None:
        """The teacher's linear head, where logits are computed by it."""
        return None

    def to(self, device: torch.device) -> "Codec":
        """Return a codec that decodes on a device."""
        return self

    def encode(
        self, logits_BC: Tensor, embedding_BD: Tensor | None = None
    ) -> dict[str, np.ndarray]:
        """Return what is stored for logits [B, C], by array name; computed on their device.

        Args:
            logits_BC: teacher's logits.
            embedding_BD: input of the teacher's head; used by `EmbeddingCodec` alone.

        Raises:
            CacheError: a value is not finite, or outside the encoding's range; or the head does
                not compute the logits from the embedding.
        """
        if not torch.isfinite(logits_BC).all():
            raise CacheError(
                "the teacher gave logits that are not finite: check its weights and input, "
                "or set teacher.precision = 'float32'"
            )
        parts = self._encode(logits_BC.detach().float(), embedding_BD)
        arrays = self.encoding.arrays
        # The type in which torch computed ids is wider than the stored one.
        return {
            name: values.cpu().numpy().astype(arrays[name].dtype, copy=False)
            for name, values in parts.items()
        }

    def decode(self, rows: Mapping[str, np.ndarray]) -> Targets:
        """Return targets from stored rows; the inverse of `encode` up to rounding.

        Features among the arrays become features of the targets.
        """
        return self.decode_tensors({name: as_tensor(values) for name, values in rows.items()})

    def decode_tensors(self, rows: Mapping[str, Tensor]) -> Targets:
        """Decode rows made by `as_tensor`, on their device; nothing waits for the device."""
        features = {
            name.removeprefix(FEATURE_PREFIX): values.float()
            for name, values in rows.items()
            if name.startswith(FEATURE_PREFIX)
        }
        targets = self._decode(rows)
        return replace(targets, features=features) if features else targets

    @abstractmethod
    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]: ...

    @abstractmethod
    def _decode(self, rows: Mapping[str, Tensor]) -> Targets: ...


class FloatCodec(Codec):
    """Stores logits as floats."""

    __slots__ = ()

    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]:
        return {"logits": _narrowed(logits_BC, self.encoding.name)}

    def _decode(self, rows: Mapping[str, Tensor]) -> DenseTargets:
        return DenseTargets(rows["logits"].float())


class IntegerCodec(Codec):
    """Stores equal steps from each row's smallest logit, which has code 0, to its largest."""

    __slots__ = ()

    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]:
        # A quarter, so that no difference and no rounding of one goes beyond float32.
        _check_range(logits_BC, _FLOAT32_LIMIT / 4, self.encoding.name)
        last = (1 << self.encoding.bits) - 1
        low_B, high_B = logits_BC.aminmax(dim=1)
        scale_B = ((high_B.double() - low_B.double()) / last).float()
        steps_B = torch.where(scale_B > 0, scale_B, 1.0).double()  # equal logits: all codes are 0
        codes_BC = (logits_BC.double() - low_B.double().unsqueeze(1)) / steps_B.unsqueeze(1)
        codes_BC = codes_BC.round_().clamp_(max=last).to(torch.uint8)
        if self.encoding.bits == 4:
            even_BP = torch.nn.functional.pad(codes_BC, (0, codes_BC.shape[1] % 2))
            codes_BC = even_BP[:, ::2] | (even_BP[:, 1::2] << 4)
        return {"codes": codes_BC, "scale": scale_B, "offset": low_B}

    def _decode(self, rows: Mapping[str, Tensor]) -> DenseTargets:
        codes = rows["codes"]
        if self.encoding.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        # Two roundings, of the product and of the sum: never one fused operation.
        logits_BC = codes[:, : self.encoding.num_classes].float()
        logits_BC *= rows["scale"].unsqueeze(1)
        logits_BC += rows["offset"].unsqueeze(1)
        return DenseTargets(logits_BC)


class TopKCodec(Codec):
    """Stores the largest logits, their classes, and the tail's log-sum-exp on a grid."""

    __slots__ = ()

    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]:
        # In the order of their ids, so that a stable sort puts the first of equal logits first, as
        # arg-max does.
        ids_BK = logits_BC.topk(self.encoding.top_k, dim=1).indices.sort(dim=1).values
        largest = logits_BC.gather(1, ids_BK).sort(dim=1, descending=True, stable=True)
        ids_BK = ids_BK.gather(1, largest.indices)
        rest_BC = logits_BC.scatter(1, ids_BK, -torch.inf)
        tails_BG = log_sums(rest_BC, self.encoding.temperatures)
        if not torch.isfinite(tails_BG).all():
            raise CacheError(
                "the logits of the classes outside the top k go beyond float32 once divided by "
                f"{self.encoding.temperatures[0]:g}: set cache.temperatures, or cache.encoding = "
                "'float32'"
            )
        return {
            "ids": ids_BK,
            "logits": _narrowed(largest.values, Float16.name),
            "tails": tails_BG,
        }

    def _decode(self, rows: Mapping[str, Tensor]) -> TopKTargets:
        ids_BK = rows["ids"].int()
        if rows["ids"].dtype == torch.int16:
            ids_BK &= 0xFFFF
        return TopKTargets(
            ids_BK,
            rows["logits"].float(),
            rows["tails"],
            self.encoding.temperatures,
            self.encoding.num_classes,
        )


@dataclass(frozen=True, slots=True)
class EmbeddingCodec(Codec):
    """Stores the input of the teacher's linear head; logits are computed by the head."""

    linear: Head | None = None
    """The head; needed to encode and to decode."""

    @property
    def head(self) -> Head | None:
        """The teacher's linear head."""
        return self.linear

    def to(self, device: torch.device) -> Codec:
        """Return a codec whose head lies on a device."""
        return EmbeddingCodec(self.encoding, self.linear and self.linear.to(device))

    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]:
        assert self.linear is not None, "an embedding is encoded with its head"
        assert embedding_BD is not None, "the teacher's forward pass gives what its cache stores"
        half_BD = embedding_BD.to(torch.float16)
        if not torch.isfinite(half_BD).all():
            raise CacheError(
                "the input of the teacher's last layer is not finite, or beyond float16's "
                f"{_FLOAT16_LIMIT:.0f}: set cache.encoding = 'float16', which stores its logits"
            )
        # Every batch is checked: the head may be all of the first one and not of others.
        if not self.linear.gives(logits_BC, half_BD):
            raise CacheError(
                "the teacher's logits are not its last layer's input times its weight plus its "
                "bias: set cache.encoding = 'float16', which stores its logits"
            )
        return {"embedding": half_BD}

    def _decode(self, rows: Mapping[str, Tensor]) -> DenseTargets:
        assert self.linear is not None, "an embedding is decoded with its head"
        return DenseTargets(self.linear(rows["embedding"]))


class FeaturesCodec(Codec):
    """Stores nothing of the logits."""

    __slots__ = ()

    def _encode(self, logits_BC: Tensor, embedding_BD: Tensor | None) -> dict[str, Tensor]:
        return {}

    def _decode(self, rows: Mapping[str, Tensor]) -> FeatureTargets:
        return FeatureTargets()


_CODECS: dict[type[Encoding], type[Codec]] = {
    Float32: FloatCodec,
    Float16: FloatCodec,
    Int8: IntegerCodec,
    Int4: IntegerCodec,
    TopK: TopKCodec,
    Embedding: EmbeddingCodec,
    FeaturesOnly: FeaturesCodec,
}


def create_codec(encoding: Encoding, head: Head | None = None) -> Codec:
    """Create the codec of an encoding; `head` is used where logits are computed by it."""
    codec = _CODECS[type(encoding)]
    return EmbeddingCodec(encoding, head) if codec is EmbeddingCodec else codec(encoding)


def encode_features(features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return what is stored of features [B, ...] by module: float16, by array name.

    Raises:
        CacheError: a value is not finite, or beyond float16.
    """
    return {FEATURE_PREFIX + name: _feature(name, values) for name, values in features.items()}


def _feature(name: str, values: Tensor) -> np.ndarray:
    half = values.to(torch.float16)
    if not torch.isfinite(half).all():
        raise CacheError(
            f"module {name!r} of the teacher gave a value that is not finite, or beyond float16's "
            f"{_FLOAT16_LIMIT:.0f}: name another module in cache.features, such as the "
            "normalisation that follows it"
        )
    return half.cpu().numpy()


def as_tensor(values: np.ndarray) -> Tensor:
    """Return a stored array as a tensor that shares its memory; unsigned bits in the signed type.

    Of unsigned types torch computes with uint8 alone.
    """
    if not values.flags.writeable:  # tensors cannot be read-only
        values = values.copy()
    signed = {2: np.int16, 4: np.int32}.get(values.itemsize)
    unsigned = values.dtype.kind == "u" and signed is not None
    return torch.from_numpy(values.view(signed) if unsigned else values)


def _narrowed(values: Tensor, dtype: str) -> Tensor:
    """Return values as a float type that can represent them."""
    _check_range(values, float(np.finfo(dtype).max), dtype)
    return values.to(getattr(torch, dtype))


def _check_range(values: Tensor, limit: float, encoding: str) -> None:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > limit:
        raise CacheError(
            f"the teacher gave a logit of {largest:.0f}, beyond {encoding}'s {limit:.0f}: "
            "set cache.encoding = 'float32'"
        )
