"""How targets are stored: encodings, as arrays by name, and back.

Shapes: B samples, C classes, K kept classes, G temperatures of a grid, D values before the head.
Raw logits always, never probabilities: the temperature belongs to the student.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import CacheError
from kdscale.targets.types import DenseTargets, Head, Targets, TopKTargets, log_sums

ENCODINGS = ("float32", "float16", "int8", "int4", "topk", "embedding")
_LEVELS = {"int8": 256, "int4": 16}
_KEPT_DTYPE = np.dtype(np.float16)
_FLOAT16_LIMIT = float(np.finfo(np.float16).max)
_FLOAT32_LIMIT = float(np.finfo(np.float32).max)
FEATURE_PREFIX = "features."
"""Of the arrays' names; the module's follows."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How answers are stored."""

    name: str
    """One of `ENCODINGS`."""
    num_classes: int
    top_k: int | None = None
    """topk only: classes kept, fewer than there are."""
    temperatures: tuple[float, ...] = ()
    """topk only: the grid, ascending."""
    embedding_size: int | None = None
    """embedding only: D."""
    head: Head | None = field(default=None, compare=False)
    """embedding only: what makes logits of it; needed to encode and decode."""

    @property
    def id_dtype(self) -> np.dtype:
        """The smallest unsigned integer that holds `num_classes`, so one is left for absence."""
        return np.min_scalar_type(self.num_classes)

    @property
    def bytes_per_target(self) -> int:
        """Stored bytes of one sample's answer in one view, before compression.

        0 of an embedding whose size is not known.
        """
        classes = self.num_classes
        if self.name == "topk":
            assert self.top_k is not None, "an encoding of this kind says how many it keeps"
            kept = self.id_dtype.itemsize + _KEPT_DTYPE.itemsize
            return self.top_k * kept + 4 * len(self.temperatures)
        if self.name == "embedding":
            return (self.embedding_size or 0) * _KEPT_DTYPE.itemsize
        if self.name in _LEVELS:
            return (classes if self.name == "int8" else -(-classes // 2)) + 8
        return classes * np.dtype(self.name).itemsize


def encode(
    logits_BC: Tensor, encoding: Encoding, embedding_BD: Tensor | None = None
) -> dict[str, np.ndarray]:
    """What is stored for logits [B, C], by array name; computed where the logits are.

    Args:
        logits_BC: the teacher's.
        encoding: how.
        embedding_BD: what entered the teacher's head; for the encoding `embedding` alone.

    Raises:
        CacheError: a value is not finite, or beyond the encoding's range; or the head makes other
            logits of the embedding.
    """
    if not torch.isfinite(logits_BC).all():
        raise CacheError(
            "the teacher gave logits that are not finite: check its weights and input, "
            "or set teacher.precision = 'float32'"
        )
    stored_BC = logits_BC.detach().float()
    if encoding.name == "embedding":
        assert embedding_BD is not None, "a teacher is asked for what its cache keeps"
        return _encode_embedding(stored_BC, embedding_BD, encoding)
    if encoding.name == "topk":
        return _encode_top_k(stored_BC, encoding)
    if encoding.name in _LEVELS:
        return _encode_integers(stored_BC, encoding)
    return {"logits": _narrowed(stored_BC, encoding.name, encoding.name)}


def encode_features(features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What is stored of features [B, ...] by module: float16, by array name.

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


def decode(arrays: Mapping[str, np.ndarray], encoding: Encoding) -> Targets:
    """The targets from what was stored; the inverse of `encode` up to the encoding's rounding.

    They carry the features among the arrays.
    """
    return decode_held({name: as_held(values) for name, values in arrays.items()}, encoding)


def as_held(values: np.ndarray) -> Tensor:
    """A stored array as a tensor that shares its memory; unsigned bits in the signed type.

    Of unsigned types torch computes with uint8 alone.
    """
    if not values.flags.writeable:  # which tensors do not know
        values = values.copy()
    signed = {2: np.int16, 4: np.int32}.get(values.itemsize)
    unsigned = values.dtype.kind == "u" and signed is not None
    return torch.from_numpy(values.view(signed) if unsigned else values)


def decode_held(parts: Mapping[str, Tensor], encoding: Encoding) -> Targets:
    """Like `decode`, of rows that `as_held` gave, where they are."""
    features = {
        name.removeprefix(FEATURE_PREFIX): values.float()
        for name, values in parts.items()
        if name.startswith(FEATURE_PREFIX)
    }
    if encoding.name == "topk":
        return replace(_kept(parts, encoding), features=features)
    if encoding.name == "embedding":
        assert encoding.head is not None, "an encoding of this kind says which head"
        return DenseTargets(encoding.head(parts["embedding"]), features)
    if encoding.name in _LEVELS:
        return DenseTargets(_from_codes(parts, encoding), features)
    return DenseTargets(parts["logits"].float(), features)


def _kept(parts: Mapping[str, Tensor], encoding: Encoding) -> TopKTargets:
    ids_BK = parts["ids"].int()
    if parts["ids"].dtype == torch.int16:
        ids_BK &= 0xFFFF
    return TopKTargets(
        ids_BK,
        parts["logits"].float(),
        parts["tails"],
        encoding.temperatures,
        encoding.num_classes,
    )


def _from_codes(parts: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    codes = parts["codes"]
    if encoding.name == "int4":
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
    # Two roundings, that of the product and that of the sum: never one fused operation.
    logits_BC = codes[:, : encoding.num_classes].float()
    logits_BC *= parts["scale"].unsqueeze(1)
    logits_BC += parts["offset"].unsqueeze(1)
    return logits_BC


def _encode_embedding(
    logits_BC: Tensor, embedding_BD: Tensor, encoding: Encoding
) -> dict[str, np.ndarray]:
    """Checked against the logits: a probe saw few of the pictures that are asked about."""
    assert encoding.head is not None, "an encoding of this kind says which head"
    half_BD = embedding_BD.to(torch.float16)
    if not torch.isfinite(half_BD).all():
        raise CacheError(
            "what enters the teacher's last layer is not finite, or beyond float16's "
            f"{_FLOAT16_LIMIT:.0f}: set cache.encoding = 'float16', which keeps its logits"
        )
    if not encoding.head.gives(logits_BC, half_BD):
        raise CacheError(
            "the teacher's logits are not its last layer's input times its weight plus its bias: "
            "set cache.encoding = 'float16', which keeps its logits"
        )
    return {"embedding": half_BD.cpu().numpy()}


def _narrowed(values: Tensor, dtype: str, encoding: str) -> np.ndarray:
    """Values as a float type that holds them."""
    _check_range(values, float(np.finfo(dtype).max), encoding)
    return values.to(getattr(torch, dtype)).cpu().numpy()


def _check_range(values: Tensor, limit: float, encoding: str) -> None:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > limit:
        raise CacheError(
            f"the teacher gave a logit of {largest:.0f}, beyond {encoding}'s {limit:.0f}: "
            "set cache.encoding = 'float32'"
        )


def _encode_integers(logits_BC: Tensor, encoding: Encoding) -> dict[str, np.ndarray]:
    """Equal steps from each row's smallest logit, which gets code 0, to its largest."""
    # A quarter, so that no difference and no rounding of one goes beyond float32.
    _check_range(logits_BC, _FLOAT32_LIMIT / 4, encoding.name)
    last = _LEVELS[encoding.name] - 1
    low_B, high_B = logits_BC.aminmax(dim=1)
    scale_B = ((high_B.double() - low_B.double()) / last).float()
    steps_B = torch.where(scale_B > 0, scale_B, 1.0).double()  # equal logits: all codes are 0
    codes_BC = (logits_BC.double() - low_B.double().unsqueeze(1)) / steps_B.unsqueeze(1)
    codes_BC = codes_BC.round_().clamp_(max=last).to(torch.uint8)
    if encoding.name == "int4":
        even_BP = torch.nn.functional.pad(codes_BC, (0, codes_BC.shape[1] % 2))
        codes_BC = even_BP[:, ::2] | (even_BP[:, 1::2] << 4)
    parts = {"codes": codes_BC, "scale": scale_B, "offset": low_B}
    return {name: values.cpu().numpy() for name, values in parts.items()}


def _encode_top_k(logits_BC: Tensor, encoding: Encoding) -> dict[str, np.ndarray]:
    assert encoding.top_k is not None, "an encoding of this kind says how many it keeps"
    # In the order of their ids, so that a stable sort puts the first of equal logits first, as
    # arg-max does.
    ids_BK = logits_BC.topk(encoding.top_k, dim=1).indices.sort(dim=1).values
    kept = logits_BC.gather(1, ids_BK).sort(dim=1, descending=True, stable=True)
    ids_BK = ids_BK.gather(1, kept.indices)
    rest_BC = logits_BC.scatter(1, ids_BK, -torch.inf)
    tails_BG = log_sums(rest_BC, encoding.temperatures)
    if not torch.isfinite(tails_BG).all():
        raise CacheError(
            "the logits of the classes that are not kept go beyond float32 once divided by "
            f"{encoding.temperatures[0]:g}: set cache.temperatures, or cache.encoding = 'float32'"
        )
    return {
        "ids": ids_BK.cpu().numpy().astype(encoding.id_dtype),
        "logits": _narrowed(kept.values, _KEPT_DTYPE.name, "float16"),
        "tails": tails_BG.cpu().numpy(),
    }
