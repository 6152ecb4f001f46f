"""What a student is pulled towards, and how it is stored: the types both flows share.

Shapes: B samples, C classes, K kept classes, G temperatures of a grid. Raw logits always, never
probabilities: the temperature belongs to the student.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log, prod
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import CacheError, ConfigError

ENCODINGS = ("float32", "float16", "int8", "int4", "topk")
_LEVELS = {"int8": 256, "int4": 16}
_KEPT_DTYPE = np.dtype(np.float16)
_FLOAT32_LIMIT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """A teacher's logits over all classes."""

    logits_BC: Tensor
    """float32 [B, C]"""

    def rows(self, index_B: Tensor) -> Self:
        """Those of some samples, int64 [B]."""
        return replace(self, logits_BC=self.logits_BC.index_select(0, index_B))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, logits_BC=self.logits_BC.to(device))

    def first_answers(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest probabilities at temperature 1 and their classes, both [B, count]."""
        best = self.logits_BC.softmax(1).topk(min(count, self.logits_BC.shape[1]))
        return best.values, best.indices


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The largest logits, and how much the other classes weigh together at some temperatures."""

    ids_BK: Tensor
    """int32 [B, K]: the kept classes, the likeliest first."""
    logits_BK: Tensor
    """float32 [B, K]"""
    tails_BG: Tensor
    """float32 [B, G]: log-sum-exp of the other classes' logits over each of `temperatures`."""
    temperatures: tuple[float, ...]
    num_classes: int

    def rows(self, index_B: Tensor) -> Self:
        """Those of some samples, int64 [B]."""
        return self._with(lambda values: values.index_select(0, index_B))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._with(lambda values: values.to(device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            ids_BK=change(self.ids_BK),
            logits_BK=change(self.logits_BK),
            tails_BG=change(self.tails_BG),
        )

    def bucket_logits(self, temperature: float) -> Tensor:
        """Softened logits of the kept classes and, last, of one bucket of the rest: [B, K + 1].

        Raises:
            ConfigError: the temperature is beyond the grid.
        """
        tail_B = self._log_tail(temperature)
        return torch.cat([self.logits_BK / temperature, tail_B.unsqueeze(1)], dim=1)

    def first_answers(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest probabilities at temperature 1 and their classes, both [B, count]."""
        kept = self.bucket_logits(1.0).softmax(1)[:, :-1]
        return kept[:, :count], self.ids_BK[:, :count].long()

    def _log_tail(self, temperature: float) -> Tensor:
        """The tail's log-sum-exp, float32 [B]: as stored on the grid, interpolated off it."""
        at_infinity, weights = tail_weights(temperature, self.temperatures)
        terms = [w * self.tails_BG[:, g] for g, w in enumerate(weights) if w]
        sum_B = sum(terms[1:], terms[0])
        if not at_infinity:
            return sum_B
        return sum_B + at_infinity * log(self.num_classes - self.ids_BK.shape[1])


Targets = DenseTargets | TopKTargets


@lru_cache(maxsize=64)
def tail_weights(
    temperature: float, temperatures: tuple[float, ...]
) -> tuple[float, tuple[float, ...]]:
    """Weights that make the tail's log-sum-exp at a temperature from those on a grid.

    As a function of 1/T it is smooth, and at 1/T = 0 it is known: the logarithm of the number of
    classes. Lagrange's cubic through the four nearest nodes, two on either side where there are;
    on the grid the stored value itself.

    Returns:
        The weight of the value at 1/T = 0, and one for each of `temperatures`.

    Raises:
        ConfigError: the temperature is beyond the grid.
    """
    if not temperatures[0] <= temperature <= temperatures[-1]:
        raise ConfigError(
            f"temperature {temperature:g} is beyond the cache's grid, {temperatures[0]:g} to "
            f"{temperatures[-1]:g}: set loss.temperature within it, or build a cache with "
            f"{temperature:g} in cache.temperatures, or with an encoding that keeps all classes"
        )
    if temperature in temperatures:
        return 0.0, tuple(float(temperature == one) for one in temperatures)
    nodes = [0.0, *[1 / one for one in reversed(temperatures)]]
    at = 1 / temperature
    above = next(number for number, node in enumerate(nodes) if node > at)
    first = max(0, min(above - 2, len(nodes) - 4))
    near = nodes[first : first + 4]
    weight = {
        one: prod((at - other) / (one - other) for other in near if other != one) for one in near
    }
    by_node = [weight.get(node, 0.0) for node in nodes]
    return by_node[0], tuple(reversed(by_node[1:]))


@dataclass(frozen=True, slots=True)
class Mix:
    """Whom the samples of a batch are mixed with."""

    index_B: Tensor
    """int64 [B], the partners' positions in the data set."""
    labels_B: Tensor
    """int64 [B], the partners' labels."""
    weight_B: Tensor
    """float32 [B], share of a sample's own label, 0..1."""


def all_classes(targets: Targets, what: str) -> Tensor:
    """The logits of all classes, [B, C], for `what`, which cannot do without them.

    Raises:
        ConfigError: the targets keep the largest alone.
    """
    if isinstance(targets, DenseTargets):
        return targets.logits_BC
    raise ConfigError(
        f"{what} needs the logits of all {targets.num_classes} classes, the cache keeps the "
        f"largest {targets.ids_BK.shape[1]} (cache.encoding = 'topk'): build a cache with "
        "cache.encoding = 'float16', 'int8' or 'int4'"
    )


def mixed_targets(own: Targets, other: Targets, weight_B: Tensor) -> DenseTargets:
    """What a teacher that saw both images clean would say of their mixture.

    Its probabilities (temperature 1) are the weighted means of both; what is returned are their
    logarithms, [B, C].

    Raises:
        ConfigError: the targets do not hold all classes.
    """
    weight_B1 = weight_B.unsqueeze(1)
    one_BC, two_BC = (all_classes(t, "mixing the teacher's answers") for t in (own, other))
    own_BC = one_BC.log_softmax(1) + weight_B1.log()
    other_BC = two_BC.log_softmax(1) + (1 - weight_B1).log()
    return DenseTargets(torch.logaddexp(own_BC, other_BC))


# --------------------------------------------------------------------------- encodings


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

    @property
    def id_dtype(self) -> np.dtype:
        """The smallest unsigned integer that holds `num_classes`, so one is left for absence."""
        return np.min_scalar_type(self.num_classes)

    @property
    def bytes_per_target(self) -> int:
        """Stored bytes of one sample's answer in one view, before compression."""
        classes = self.num_classes
        if self.name == "topk":
            assert self.top_k is not None, "an encoding of this kind says how many it keeps"
            kept = self.id_dtype.itemsize + _KEPT_DTYPE.itemsize
            return self.top_k * kept + 4 * len(self.temperatures)
        if self.name in _LEVELS:
            return (classes if self.name == "int8" else -(-classes // 2)) + 8
        return classes * np.dtype(self.name).itemsize


def encode(logits_BC: Tensor, encoding: Encoding) -> dict[str, np.ndarray]:
    """What is stored for logits [B, C], by array name; computed where the logits are.

    Raises:
        CacheError: a value is not finite, or beyond the encoding's range.
    """
    if not torch.isfinite(logits_BC).all():
        raise CacheError(
            "the teacher gave logits that are not finite: check its weights and input, "
            "or set teacher.precision = 'float32'"
        )
    stored_BC = logits_BC.detach().float()
    if encoding.name == "topk":
        return _encode_top_k(stored_BC, encoding)
    if encoding.name in _LEVELS:
        return _encode_integers(stored_BC, encoding)
    return {"logits": _narrowed(stored_BC, encoding.name, encoding.name)}


def decode(arrays: Mapping[str, np.ndarray], encoding: Encoding) -> Targets:
    """The targets from what was stored; the inverse of `encode` up to the encoding's rounding."""
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
    if encoding.name == "topk":
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
    if encoding.name not in _LEVELS:
        return DenseTargets(parts["logits"].float())
    codes = parts["codes"]
    if encoding.name == "int4":
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
    # Two roundings, that of the product and that of the sum: never one fused operation.
    logits_BC = codes[:, : encoding.num_classes].float()
    logits_BC *= parts["scale"].unsqueeze(1)
    logits_BC += parts["offset"].unsqueeze(1)
    return DenseTargets(logits_BC)


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


def log_sums(logits_BC: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Log-sum-exp of logits over each of some temperatures, [B, G]."""
    return torch.stack([(logits_BC / one).logsumexp(1) for one in temperatures], dim=1)
