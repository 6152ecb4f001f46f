"""The training objective: which losses, at which weights. One for all target sources."""

from dataclasses import dataclass

from torch import Tensor

from kdscale.losses.logits import bucket_kl_loss, kl_loss, label_loss
from kdscale.targets import DenseTargets, Mix, Targets


@dataclass(frozen=True, slots=True)
class Objective:
    """hard_weight · cross-entropy + soft_weight · T²·KL."""

    hard_weight: float
    soft_weight: float
    temperature: float = 1.0

    def __call__(
        self,
        logits_BC: Tensor,
        targets: Targets | None,
        labels_B: Tensor,
        mix: Mix | None = None,
    ) -> Tensor:
        """The scalar to minimise; a term of weight 0 is not computed."""
        terms = []
        if self.hard_weight:
            terms.append(self.hard_weight * label_loss(logits_BC, labels_B, mix))
        if self.soft_weight:
            assert targets is not None, "an objective with a soft term is given targets"
            terms.append(self.soft_weight * self._soft_loss(logits_BC, targets))
        return sum(terms[1:], terms[0])

    def _soft_loss(self, logits_BC: Tensor, targets: Targets) -> Tensor:
        """The divergence from what the targets hold: all classes, or the largest and the rest."""
        if isinstance(targets, DenseTargets):
            return kl_loss(logits_BC, targets.logits_BC, self.temperature)
        return bucket_kl_loss(logits_BC, targets, self.temperature)


SUPERVISED = Objective(hard_weight=1.0, soft_weight=0.0)
"""Cross-entropy alone: `--targets none`, and how teachers are trained."""
