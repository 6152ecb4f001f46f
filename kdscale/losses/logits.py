"""Losses from the student's logits, the teacher's targets and the labels.

Shapes: B samples, C classes.
"""

import torch.nn.functional as F
from torch import Tensor


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


def label_loss(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy on the labels (int64 [B]), mean over the batch, in nats."""
    return F.cross_entropy(student_BC.float(), labels_B)
