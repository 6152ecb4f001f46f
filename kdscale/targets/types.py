"""Targets of a student, as tensors.

Shapes: B samples, C classes, K stored classes, G temperatures of a grid, D values before the head.

Targets of any kind carry the `features` that were requested: what modules inside the teacher gave
of the same pictures, by module, float32 [B, ...].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import log, prod
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from kdscale.encodings import FULL_ENCODINGS, FeaturesOnly, TopK
from kdscale.errors import ConfigError

Features = Mapping[str, Tensor]
"""By module: see above."""


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """A teacher's logits over all classes."""

    logits_BC: Tensor
    """float32 [B, C]"""
    features: Features = field(default_factory=dict)

    def rows(self, index_B: Tensor) -> Self:
        """Return the targets of some samples, int64 [B]."""
        logits_BC = self.logits_BC.index_select(0, index_B)
        return replace(self, logits_BC=logits_BC, features=_rows(self.features, index_B))

    def to(self, device: torch.device) -> Self:
        """Return a copy on a device."""
        logits_BC = self.logits_BC.to(device)
        return replace(self, logits_BC=logits_BC, features=_moved(self.features, device))

    def most_probable(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest probabilities at temperature 1 and their classes, [B, count]."""
        best = self.logits_BC.softmax(1).topk(min(count, self.logits_BC.shape[1]))
        return best.values, best.indices


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The largest logits, and the log-sum-exp of the others at some temperatures."""

    ids_BK: Tensor
    """int32 [B, K]: the stored classes, the most probable first."""
    logits_BK: Tensor
    """float32 [B, K]"""
    tails_BG: Tensor
    """float32 [B, G]: log-sum-exp of the other classes' logits over each of `temperatures`."""
    temperatures: tuple[float, ...]
    num_classes: int
    features: Features = field(default_factory=dict)

    def rows(self, index_B: Tensor) -> Self:
        """Return the targets of some samples, int64 [B]."""
        taken = self._with(lambda values: values.index_select(0, index_B))
        return replace(taken, features=_rows(self.features, index_B))

    def to(self, device: torch.device) -> Self:
        """Return a copy on a device."""
        moved = self._with(lambda values: values.to(device))
        return replace(moved, features=_moved(self.features, device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            ids_BK=change(self.ids_BK),
            logits_BK=change(self.logits_BK),
            tails_BG=change(self.tails_BG),
        )

    def bucket_logits(self, temperature: float) -> Tensor:
        """Softened logits of the stored classes and, last, of one bucket of the rest: [B, K + 1].

        Raises:
            ConfigError: the temperature is beyond the grid.
        """
        tail_B = self._log_tail(temperature)
        return torch.cat([self.logits_BK / temperature, tail_B.unsqueeze(1)], dim=1)

    def most_probable(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest probabilities at temperature 1 and their classes, [B, count]."""
        probabilities = self.bucket_logits(1.0).softmax(1)[:, :-1]
        return probabilities[:, :count], self.ids_BK[:, :count].long()

    def _log_tail(self, temperature: float) -> Tensor:
        """Return the tail's log-sum-exp, float32 [B]; it is interpolated off the grid."""
        at_infinity, weights = tail_weights(temperature, self.temperatures)
        terms = [w * self.tails_BG[:, g] for g, w in enumerate(weights) if w]
        sum_B = sum(terms[1:], terms[0])
        if not at_infinity:
            return sum_B
        return sum_B + at_infinity * log(self.num_classes - self.ids_BK.shape[1])


@dataclass(frozen=True, slots=True)
class FeatureTargets:
    """Features alone: the teacher gives no logits, or the cache stores none."""

    features: Features = field(default_factory=dict)

    def rows(self, index_B: Tensor) -> Self:
        """Return the targets of some samples, int64 [B]."""
        return replace(self, features=_rows(self.features, index_B))

    def to(self, device: torch.device) -> Self:
        """Return a copy on a device."""
        return replace(self, features=_moved(self.features, device))


Targets = DenseTargets | TopKTargets | FeatureTargets


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layer that ends a teacher: logits = inputs · Wᵀ + b."""

    weight_CD: Tensor
    """float32 [C, D]"""
    bias_C: Tensor
    """float32 [C], zeros where the layer has none."""

    @property
    def inputs(self) -> int:
        """D."""
        return self.weight_CD.shape[1]

    def __call__(self, inputs_BD: Tensor) -> Tensor:
        """Return the logits, float32 [B, C]."""
        return linear(inputs_BD.float(), self.weight_CD, self.bias_C)

    def gives(self, logits_BC: Tensor, inputs_BD: Tensor) -> bool:
        """Whether logits are these of these inputs, but for rounding.

        Each of a sum's terms may be off by 2^-6 of itself, as products in bfloat16 are, and as
        those of another calculation are not.
        """
        sizes_BC = linear(inputs_BD.float().abs(), self.weight_CD.abs(), self.bias_C.abs())
        difference_BC = self(inputs_BD) - logits_BC.float()
        return bool((difference_BC.abs() <= sizes_BC / 64 + 1e-6).all())

    def to(self, device: torch.device) -> "Head":
        """Return a copy on a device."""
        return Head(self.weight_CD.to(device), self.bias_C.to(device))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that a cache stores once, by name."""
        return {"head_weight": self.weight_CD.cpu().numpy(), "head_bias": self.bias_C.cpu().numpy()}

    @classmethod
    def parse(cls, arrays: Mapping[str, np.ndarray]) -> "Head":
        """Create a head from stored arrays."""
        return cls(*(torch.from_numpy(arrays[name]) for name in ("head_weight", "head_bias")))


def _rows(features: Features, index_B: Tensor) -> Features:
    return {name: one.index_select(0, index_B) for name, one in features.items()}


def _moved(features: Features, device: torch.device) -> Features:
    return {name: one.to(device) for name, one in features.items()}


@lru_cache(maxsize=64)
def tail_weights(
    temperature: float, temperatures: tuple[float, ...]
) -> tuple[float, tuple[float, ...]]:
    """Weights that make the tail's log-sum-exp at a temperature from those on a grid.

    As a function of 1/T it is smooth, and at 1/T = 0 it is known: ln(C - K), of the number of
    classes left out. Lagrange's cubic through the four nearest nodes, two on either side where
    there are; on the grid the stored value itself.

    Returns:
        The weight of the value at 1/T = 0, and one for each of `temperatures`.

    Raises:
        ConfigError: the temperature is beyond the grid.
    """
    if not temperatures[0] <= temperature <= temperatures[-1]:
        raise ConfigError(
            f"temperature {temperature:g} is beyond the cache's grid, {temperatures[0]:g} to "
            f"{temperatures[-1]:g}: set loss.temperature within it, or build a cache with "
            f"{temperature:g} in cache.temperatures, or with an encoding that stores all classes"
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
    """Partners that the samples of a batch are mixed with."""

    index_B: Tensor
    """int64 [B], the partners' positions in the data set."""
    labels_B: Tensor
    """int64 [B], the partners' labels."""
    weight_B: Tensor
    """float32 [B], share of a sample's own label, 0..1."""


def needs_logits(what: str) -> ConfigError:
    """Return the error for `what`, which cannot be computed from features alone."""
    return ConfigError(
        f"{what} needs the teacher's logits, and with cache.encoding = {FeaturesOnly.name!r} there "
        "are its features alone: set loss.soft_weight = 0 and learn from loss.features, or build a "
        f"cache with cache.encoding = {FULL_ENCODINGS} by a teacher that has a classifier"
    )


def needs_all_classes(targets: TopKTargets | FeatureTargets, what: str) -> ConfigError:
    """Return the error for `what`, which needs logits of more classes than the targets have."""
    if isinstance(targets, FeatureTargets):
        return needs_logits(what)
    return ConfigError(
        f"{what} needs the logits of all {targets.num_classes} classes, the cache stores the "
        f"largest {targets.ids_BK.shape[1]} (cache.encoding = {TopK.name!r}): build a cache with "
        f"cache.encoding = {FULL_ENCODINGS}"
    )


def all_classes(targets: Targets, what: str) -> Tensor:
    """Return the logits of all classes, [B, C], for `what`.

    Raises:
        ConfigError: the targets have the largest logits alone, or none.
    """
    if isinstance(targets, DenseTargets):
        return targets.logits_BC
    raise needs_all_classes(targets, what)


def mixed_targets(own: Targets, other: Targets, weight_B: Tensor) -> DenseTargets:
    """Return targets of mixtures of two images from the targets of both.

    Probabilities (temperature 1) are the weighted means of both; their logarithms, [B, C], are the
    logits.

    Raises:
        ConfigError: the targets lack logits of all classes, or they have features.
    """
    if own.features:
        raise ConfigError(
            "features of a mixed image are no mean of what a module gives of the two: with "
            "features, leave views.mode = 'fixed', or the operation that mixes"
        )
    weight_B1 = weight_B.unsqueeze(1)
    one_BC, two_BC = (all_classes(t, "mixing targets") for t in (own, other))
    own_BC = one_BC.log_softmax(1) + weight_B1.log()
    other_BC = two_BC.log_softmax(1) + (1 - weight_B1).log()
    return DenseTargets(torch.logaddexp(own_BC, other_BC))


def log_sums(logits_BC: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return the log-sum-exp of logits over each of some temperatures, [B, G]."""
    return torch.stack([(logits_BC / one).logsumexp(1) for one in temperatures], dim=1)
