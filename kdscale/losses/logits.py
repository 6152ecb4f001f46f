"""Losses from the student's logits, the teacher's targets and the labels.

Shapes: B samples, C classes, K kept classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.targets import Mix, TopKTargets


def kl_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) of softened probabilities, mean over the batch, in nats.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; the
    factor T² keeps the gradient's size the same at every temperature.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        temperature: T > 0.

    Returns:
        Scalar, at least 0 up to rounding.
    """
    return _divergence(
        student_BC.float() / temperature, teacher_BC.float() / temperature, temperature
    )


def bucket_kl_loss(student_BC: Tensor, targets: TopKTargets, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) over the kept classes and one bucket of all others, in nats.

    Teacher and student are read on the same K + 1 outcomes, each with all its mass, so the loss is
    at most `kl_loss` on all classes, and equal to it where the two agree on how likely the others
    are among themselves. The student's bucket is the log-sum-exp of its other logits, never one
    minus the kept: that would be rounding noise where the bucket is small.

    Args:
        student_BC: student's logits [B, C].
        targets: the teacher's largest logits, and its tails.
        temperature: T, within the targets' grid.

    Returns:
        Scalar, at least 0 up to rounding; mean over the batch.

    Raises:
        ConfigError: the temperature is beyond the grid.
    """
    softened_BC, ids_BK = student_BC.float() / temperature, targets.ids_BK.long()
    rest_B = softened_BC.scatter(1, ids_BK, -torch.inf).logsumexp(1)
    student = torch.cat([softened_BC.gather(1, ids_BK), rest_B.unsqueeze(1)], dim=1)
    return _divergence(student, targets.bucket_logits(temperature), temperature)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL of softened logits over the same outcomes."""
    student, teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def label_loss(student_BC: Tensor, labels_B: Tensor, mix: Mix | None = None) -> Tensor:
    """Cross-entropy on the labels (int64 [B]), mean over the batch, in nats.

    Of mixed images it is the weighted mean of the losses on both labels (Zhang et al., "mixup:
    Beyond Empirical Risk Minimization", ICLR 2018, equation 1).
    """
    if mix is None:
        return F.cross_entropy(student_BC.float(), labels_B)
    log_probability_BC = F.log_softmax(student_BC.float(), dim=1)
    own_B = F.nll_loss(log_probability_BC, labels_B, reduction="none")
    other_B = F.nll_loss(log_probability_BC, mix.labels_B, reduction="none")
    return (other_B + mix.weight_B * (own_B - other_B)).mean()
