"""Losses from the student's logits, the teacher's targets and the labels.

Shapes: B samples, C classes.
"""

import torch.nn.functional as F
from torch import Tensor

from kdscale.targets import Mix


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
    student = F.log_softmax(student_BC.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC.float() / temperature, dim=1)
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
