"""The training objective: which losses, at which weights. One for all target sources."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from kdscale.errors import ConfigError
from kdscale.losses.features import attention_loss, cosine_loss, hint_loss, rkd_loss
from kdscale.losses.logits import (
    bucket_kl_loss,
    bucket_wttm_loss,
    dist_loss,
    kl_loss,
    label_loss,
    mse_loss,
    standardized,
    wttm_loss,
)
from kdscale.losses.target_class import dkd_loss, nkd_loss
from kdscale.published_losses import LOGIT_LOSSES
from kdscale.targets import (
    FeatureTargets,
    Mix,
    Targets,
    TopKTargets,
    needs_all_classes,
    needs_logits,
)

Need = Literal["labels", "one label", "all classes", "whole batch", "features"]
"""Requirements of a loss: a label of each sample; only one label of each, so no mixed images; the
teacher's logits of all classes; all samples of a step, of which one process may have a part;
outputs of modules inside the teacher."""


@dataclass(frozen=True, slots=True)
class SoftLoss:
    """A loss between the student's and the teacher's logits, and its requirements."""

    of_all: Callable[..., Tensor]
    """Function of the student's and the teacher's logits [B, C], then labels, then the temperature,
    if it takes them; weights of its parts by keyword."""
    of_largest: Callable[[Tensor, TopKTargets, float], Tensor] | None = None
    """Function of the student's logits and top-k targets; None if it requires all classes."""
    labels: bool = False
    """Whether the function takes labels, one of each sample."""
    whole_batch: bool = False
    """Whether the loss relates the samples of a batch to one another."""


SOFT_LOSSES = {
    "kd": SoftLoss(kl_loss, of_largest=bucket_kl_loss),
    "mse": SoftLoss(mse_loss),
    "dkd": SoftLoss(dkd_loss, labels=True),
    "nkd": SoftLoss(nkd_loss, labels=True),
    "dist": SoftLoss(dist_loss, whole_batch=True),
    "wttm": SoftLoss(wttm_loss, of_largest=bucket_wttm_loss),
}


@dataclass(frozen=True, slots=True)
class FeatureTerm:
    """A loss between features of a module of the student and of one of the teacher."""

    kind: str
    """One of `FEATURE_LOSSES`."""
    student: str
    teacher: str
    options: Mapping[str, float] = field(default_factory=dict)
    project: bool = False
    """Whether a projector maps the student's features first, although the kind needs none."""

    def __call__(
        self, mapped: Tensor, targets: Targets, gather: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """From the student's features, mapped where the kind maps them; see `Objective.gather`."""
        teacher = targets.features[self.teacher]
        if FEATURE_LOSSES[self.kind].whole_batch:
            mapped, teacher = gather(mapped), gather(teacher)
        return self.compare(mapped, teacher)

    def compare(self, mapped: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features, the student's mapped where the kind maps them."""
        loss = FEATURE_LOSSES[self.kind]
        options = {} if loss.mapped else self.options  # those of the map are the adapter's
        return loss.of_features(mapped, teacher, **options)


@dataclass(frozen=True, slots=True)
class FeatureLoss:
    """How features are compared."""

    of_features: Callable[..., Tensor]
    mapped: bool = False
    """Whether an adapter maps the student's features first."""
    whole_batch: bool = False
    """Whether the loss relates the samples of a batch to one another."""


FEATURE_LOSSES = {
    "cosine": FeatureLoss(cosine_loss),
    "hint": FeatureLoss(hint_loss, mapped=True),
    "attention": FeatureLoss(attention_loss),
    "rkd": FeatureLoss(rkd_loss, whole_batch=True),
}


def _as_they_are(values_B: Tensor) -> Tensor:
    """Return the values: one process has the whole batch."""
    return values_B


@dataclass(frozen=True, slots=True)
class WeightedLosses:
    """The terms of an objective on one batch, each times its weight."""

    terms: Sequence[tuple[str, Tensor]]
    """Name and scalar, in the order in which they are summed; `feature_loss` may occur often."""

    def total(self) -> Tensor:
        """Return the scalar to minimise."""
        values = [value for _, value in self.terms]
        return sum(values[1:], values[0])

    def by_name(self) -> dict[str, Tensor]:
        """Return the sum of the terms of each name, detached, on the device."""
        found: dict[str, Tensor] = {}
        for name, value in self.terms:
            found[name] = found[name] + value.detach() if name in found else value.detach()
        return found


@dataclass(frozen=True, slots=True)
class Objective:
    """hard_weight · cross-entropy + soft_weight · a loss from logits + feature_weight · features.

    Raises:
        ConfigError: there is no such loss, or it has no such option.
    """

    hard_weight: float
    soft_weight: float
    temperature: float = 1.0
    kind: str = "kd"
    """One of `SOFT_LOSSES`."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Weights of the loss's parts that differ from the published ones."""
    standardize: bool = False
    """Whether logits of both are brought to mean 0 and deviation 1 first."""
    warmup_epochs: int = 0
    """Over so many epochs the soft weight rises: from its n-th part in the first to all of it."""
    feature_weight: float = 0.0
    feature_terms: tuple[FeatureTerm, ...] = ()
    """Losses between features; `feature_weight` is the weight of their sum."""
    label_smoothing: float = 0.0
    """Share of a label that the cross-entropy spreads evenly over all classes, 0..1."""
    gather: Callable[[Tensor], Tensor] = _as_they_are
    """Gathers a step's samples from all processes, for losses that relate them to one another.
    Processes average their gradients, so its backward pass must sum those of all processes."""

    def __post_init__(self) -> None:
        if self.kind not in SOFT_LOSSES:
            raise ConfigError(f"no loss {self.kind!r}: known are {', '.join(SOFT_LOSSES)}")
        known = LOGIT_LOSSES[self.kind].options
        if unknown := sorted(self.options.keys() - known):
            raise ConfigError(
                f"loss {self.kind!r} has no option {unknown[0]!r}: "
                + (f"known are {', '.join(known)}" if known else "it has none")
            )

    @property
    def requires(self) -> frozenset[Need]:
        """Requirements of the terms of weight above 0."""
        needs: set[Need] = {"labels"} if self.hard_weight else set()
        if self.soft_weight:
            loss = SOFT_LOSSES[self.kind]
            needs |= {"labels", "one label"} if loss.labels else set()
            needs |= {"whole batch"} if loss.whole_batch else set()
            needs |= {"all classes"} if self.standardize or loss.of_largest is None else set()
        kinds = {term.kind for term in self.features}
        needs |= {"features"} if kinds else set()
        needs |= {"whole batch"} if any(FEATURE_LOSSES[k].whole_batch for k in kinds) else set()
        return frozenset(needs)

    @property
    def features(self) -> tuple[FeatureTerm, ...]:
        """Losses between features; none if their weight is 0."""
        return self.feature_terms if self.feature_weight else ()

    @property
    def with_logits(self) -> bool:
        """Whether a term of the student's logits has a weight above 0."""
        return self.hard_weight > 0 or self.soft_weight > 0

    def __call__(
        self,
        logits_BC: Tensor,
        targets: Targets | None,
        labels_B: Tensor,
        mix: Mix | None = None,
        epoch: int | None = None,
        features: Sequence[Tensor] = (),
    ) -> WeightedLosses:
        """Compute the weighted terms of a batch; a term of weight 0 is left out.

        Args:
            logits_BC: student's logits [B, C].
            targets: targets of the batch; None where there is no soft term.
            labels_B: int64 [B], -1 where unlabelled.
            mix: partners of mixed images, and weights; None if images are not mixed.
            epoch: whole epochs done; None = past any warm-up.
            features: student's features after their adapters, for each of `self.features`.

        Raises:
            ConfigError: the targets or labels are not those that the loss requires.
        """
        terms = []
        if self.hard_weight:
            hard = self.hard_weight * self._hard_loss(logits_BC, labels_B, mix)
            terms.append(("hard_loss", hard))
        if self.soft_weight:
            assert targets is not None, "an objective with a soft term is given targets"
            weight = self.soft_weight * self.warmup(epoch)
            soft = weight * self._soft_loss(logits_BC, targets, labels_B, mix)
            terms.append(("soft_loss", soft))
        for term, mapped in zip(self.features, features, strict=True):
            assert targets is not None, "an objective with features is given targets"
            feature = self.feature_weight * term(mapped, targets, self.gather)
            terms.append(("feature_loss", feature))
        return WeightedLosses(terms)

    def warmup(self, epoch: int | None) -> float:
        """The share of the soft weight in an epoch; a function of it alone, so resumed exactly.

        By whole epochs, as DKD's authors do: 1/20 throughout the first of 20.
        """
        if epoch is None or epoch >= self.warmup_epochs:
            return 1.0
        return (epoch + 1) / self.warmup_epochs

    def _hard_loss(self, logits_BC: Tensor, labels_B: Tensor, mix: Mix | None) -> Tensor:
        return label_loss(logits_BC, labels_B, mix, smoothing=self.label_smoothing)

    def _soft_loss(
        self, logits_BC: Tensor, targets: Targets, labels_B: Tensor, mix: Mix | None
    ) -> Tensor:
        """Return the loss from logits of all classes, or from the largest and the rest."""
        loss = SOFT_LOSSES[self.kind]
        if isinstance(targets, FeatureTargets):
            raise needs_logits(f"loss.soft_weight = {self.soft_weight:g}")
        if isinstance(targets, TopKTargets):
            if loss.of_largest is None or self.standardize:
                raise needs_all_classes(targets, self._what)
            return loss.of_largest(logits_BC, targets, self.temperature)
        teacher_BC = targets.logits_BC
        if self.standardize:
            logits_BC, teacher_BC = standardized(logits_BC), standardized(teacher_BC)
        if loss.labels and mix is not None:
            raise ConfigError(
                f"{self._what} sets the label's class apart from the others, and mixed images have "
                "two labels: take mixup and cutmix out of the views, or use a loss without labels"
            )
        if loss.whole_batch:
            logits_BC, teacher_BC = self.gather(logits_BC), self.gather(teacher_BC)
        more: list[Tensor | float] = [labels_B] if loss.labels else []
        more += [self.temperature] if LOGIT_LOSSES[self.kind].softened else []
        return loss.of_all(logits_BC, teacher_BC, *more, **self.options)

    @property
    def _what(self) -> str:
        """Name of the recipe's field, for messages."""
        kind = f"loss.kind = {self.kind!r}"
        return f"{kind} with loss.standardize" if self.standardize else kind


SUPERVISED = Objective(hard_weight=1.0, soft_weight=0.0)
"""Cross-entropy alone: `--targets none`, and how teachers are trained."""
