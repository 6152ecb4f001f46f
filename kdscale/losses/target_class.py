"""Losses that set the label's class apart from all others, so each sample needs one label.

Shapes: B samples, C classes, R = C - 1 others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.errors import ConfigError
from kdscale.losses.logits import divergence, wide
from kdscale.published_losses import DKD, NKD


def dkd_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    temperature: float = DKD.temperature,
    *,
    target_weight: float = DKD.options["target_weight"],
    non_target_weight: float = DKD.options["non_target_weight"],
) -> Tensor:
    """T²·KL of label against all others, and T²·KL of the others among themselves, in nats.

    Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022), equation 7, α TCKD + β NCKD. With
    α = 1 and β the teacher's probability of all others it would be `kl_loss`. T² is the authors'
    code's. Both parts are computed from log-sum-exps, where the code takes the logarithm
    of probabilities that may be 0, and removes the label's class by subtracting 1000.

    The paper warms up: over 20 epochs the weight of the loss rises linearly.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        labels_B: int64 [B], 0..C - 1.
        temperature: T > 0.
        target_weight: α.
        non_target_weight: β; the paper tunes it, and this is its choice for most CIFAR-100 pairs.

    Returns:
        Scalar, at least 0 up to rounding.

    Raises:
        ConfigError: a sample has no label (on a CPU; a GPU is not waited for).
    """
    _check_labels(labels_B, "dkd")
    target, others = _split(wide(student_BC) / temperature, labels_B)
    teacher_target, teacher_others = _split(wide(teacher_BC) / temperature, labels_B)
    loss = target_weight * divergence(target, teacher_target)
    return temperature**2 * (loss + non_target_weight * divergence(others, teacher_others))


def nkd_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    temperature: float = NKD.temperature,
    *,
    non_target_weight: float = NKD.options["non_target_weight"],
) -> Tensor:
    """Cross-entropies on the label's probability, and on the others normalised, in nats.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels" (ICCV 2023): -(Tₜ log Sₜ + γ λ² Σ N(Tᵢ) log
    N(Sᵢ)), the sum over i ≠ t. λ, the temperature, softens the second term alone, which carries
    the factor λ². The others are those but the label's class, as in the paper: a published version
    of the authors' code leaves it among them by a mask of ones.

    A student that agrees has no gradient from the second term, but its loss is not 0.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        labels_B: int64 [B], 0..C - 1.
        temperature: λ > 0.
        non_target_weight: γ.

    Returns:
        Scalar, at least 0.

    Raises:
        ConfigError: a sample has no label (on a CPU; a GPU is not waited for).
    """
    _check_labels(labels_B, "nkd")
    target, others = _split(wide(student_BC), labels_B)
    teacher_target, teacher_others = _split(wide(teacher_BC), labels_B)
    own_B, teacher_own_B = (F.log_softmax(one, dim=1)[:, 0] for one in (target, teacher_target))
    others = F.log_softmax(others / temperature, dim=1)
    teacher_others = F.softmax(teacher_others / temperature, dim=1)
    others_B = (teacher_others * others).sum(1) * temperature**2
    return -(teacher_own_B.exp() * own_B + non_target_weight * others_B).mean()


def _split(logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the label's class and of all others as one, [B, 2], and of the others, [B, R]."""
    labels_B1 = labels_B.unsqueeze(1)
    # By index: a mask of unknown size would make the CPU wait for a GPU.
    others_R = torch.arange(logits_BC.shape[1] - 1, device=logits_BC.device)
    others_BR = logits_BC.gather(1, others_R + (others_R >= labels_B1))
    rest_B1 = others_BR.logsumexp(1, keepdim=True)
    return torch.cat([logits_BC.gather(1, labels_B1), rest_B1], dim=1), others_BR


def _check_labels(labels_B: Tensor, what: str) -> None:
    if labels_B.device.type == "cpu" and bool((labels_B < 0).any()):
        raise ConfigError(
            f"loss {what!r} sets the label's class apart, and {int((labels_B < 0).sum())} of "
            f"{len(labels_B)} samples have no label (-1): label them, or use the loss 'kd', 'mse', "
            "'dist' or 'wttm', which need none"
        )
