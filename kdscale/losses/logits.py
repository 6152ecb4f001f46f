"""Losses from the student's logits, the teacher's targets and the labels.

Each is a mean over the batch, computed in float32 or wider from logits of any precision. Where a
temperature T softens student and teacher alike, the loss has the factor T², so that the
gradient's size is about the same at every T; each docstring states it, or why it has none.

Shapes: B samples, C classes, K stored classes.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.published_losses import DIST, KD, WTTM
from kdscale.targets import Mix, TopKTargets

_ROUNDING = 16  # epsilons of a value's size: a spread below them is what rounding left


def kl_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float = KD.temperature) -> Tensor:
    """T²·KL(teacher‖student) of softened probabilities, in nats.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; the
    factor T² is theirs.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        temperature: T > 0.

    Returns:
        Scalar, at least 0 up to rounding.
    """
    return _softened_divergence(
        wide(student_BC) / temperature, wide(teacher_BC) / temperature, temperature
    )


def bucket_kl_loss(
    student_BC: Tensor, targets: TopKTargets, temperature: float = KD.temperature
) -> Tensor:
    """T²·KL(teacher‖student) over the stored classes and one bucket of all others, in nats.

    Teacher and student are read on the same K + 1 outcomes, each with all its mass, so the loss is
    at most `kl_loss` on all classes, and equal to it where the two agree on how likely the others
    are among themselves. The student's bucket is the log-sum-exp of its other logits, never one
    minus the stored: that would be rounding noise where the bucket is small.

    Args:
        student_BC: student's logits [B, C].
        targets: the teacher's largest logits, and its tails.
        temperature: T, within the targets' grid.

    Returns:
        Scalar, at least 0 up to rounding.

    Raises:
        ConfigError: the temperature is beyond the grid.
    """
    student = _in_buckets(wide(student_BC) / temperature, targets)
    return _softened_divergence(student, targets.bucket_logits(temperature), temperature)


def mse_loss(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared difference of raw logits, over samples and classes.

    Ba & Caruana, "Do Deep Nets Really Need to be Deep?" (2014), equation 1, up to a constant: half
    the sum over classes there, their mean here, as Kim et al., "Comparing Kullback-Leibler
    Divergence and Mean Squared Error Loss in Knowledge Distillation" (2021), train with. There is
    no temperature, and no T².

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].

    Returns:
        Scalar, at least 0.
    """
    student_BC = wide(student_BC)
    return F.mse_loss(student_BC, teacher_BC.to(student_BC.dtype))


def dist_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    temperature: float = DIST.temperature,
    *,
    inter_weight: float = DIST.options["inter_weight"],
    intra_weight: float = DIST.options["intra_weight"],
) -> Tensor:
    """One minus Pearson's correlation of probabilities, within samples and within classes.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (NeurIPS 2022), equation 8 (of a
    sample's classes) and 9 (of a class over the batch's samples), weighted by β and γ. The factor
    T² is the authors' code's. That code adds 1e-8 to the product of the norms; here a
    correlation that is not defined, because one of the two is constant, counts as 0 and has no
    gradient, which otherwise explodes there.

    It couples the samples of a batch: the mean of the losses of two halves is another loss.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        temperature: T > 0; the code's 1 on ImageNet.
        inter_weight: β, of the relation between classes.
        intra_weight: γ, of the relation within a class.

    Returns:
        Scalar, 0 to 2·T²·(inter_weight + intra_weight).
    """
    student_BC = (wide(student_BC) / temperature).softmax(1)
    teacher_BC = (wide(teacher_BC) / temperature).softmax(1)
    inter = 1 - _correlation(student_BC, teacher_BC, dim=1).mean()
    intra = 1 - _correlation(student_BC, teacher_BC, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def wttm_loss(
    student_BC: Tensor, teacher_BC: Tensor, temperature: float = WTTM.temperature
) -> Tensor:
    """KL(teacher at T‖student at 1), weighted by how smooth the teacher is, in nats.

    Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (ICLR 2024),
    equation 23; the weight is the power sum of equation 22, Σ pᵢ^(1/T), at most C^(1 - 1/T). The
    student is not softened, so its gradient does not shrink with T, and there is no T². The
    paper tunes T, from 1.25 to 10, and the weight of the loss for each pair of models.

    Args:
        student_BC: student's logits [B, C].
        teacher_BC: teacher's logits [B, C].
        temperature: T > 0, of the teacher alone; the paper's are above 1.

    Returns:
        Scalar, at least 0 up to rounding.
    """
    teacher_BC = wide(teacher_BC)
    softened_BC = teacher_BC / temperature
    return _weighted_matching(wide(student_BC), softened_BC, teacher_BC, temperature)


def bucket_wttm_loss(
    student_BC: Tensor, targets: TopKTargets, temperature: float = WTTM.temperature
) -> Tensor:
    """`wttm_loss` over the stored classes and one bucket of all others, in nats.

    The divergence is that of K + 1 outcomes, as in `bucket_kl_loss`. The weight is that of all
    classes: the power sum follows from the log-sum-exp of all logits over T and over 1, and the
    tails' are stored.

    Args:
        student_BC: student's logits [B, C].
        targets: the teacher's largest logits, and its tails.
        temperature: T, within the targets' grid.

    Returns:
        Scalar, at least 0 up to rounding.

    Raises:
        ConfigError: the temperature is beyond the grid.
    """
    student = _in_buckets(wide(student_BC), targets)
    softened, teacher = targets.bucket_logits(temperature), targets.bucket_logits(1.0)
    return _weighted_matching(student, softened, teacher, temperature)


def standardized(logits_BC: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over their classes, [B, C].

    Sun et al., "Logit Standardization in Knowledge Distillation" (CVPR 2024), algorithm 1 but for
    its division by the base temperature, which the loss that they are given to does. The deviation
    is the paper's (over C); the authors' code takes torch's (over C - 1) plus 1e-7. Logits that are
    all equal become 0 and have no gradient.
    """
    centred_BC, norm_B1 = _centred(wide(logits_BC), dim=1)
    return centred_BC / norm_B1 * sqrt(logits_BC.shape[1])


def label_loss(
    student_BC: Tensor, labels_B: Tensor, mix: Mix | None = None, *, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy on the labels (int64 [B]), mean over the batch, in nats.

    The loss of mixed images is the weighted mean of the losses on both labels (Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", ICLR 2018, equation 1).

    Args:
        student_BC: the student's logits.
        labels_B: class indices.
        mix: second labels and weights of mixed images.
        smoothing: share of the label that is spread evenly over all classes, 0..1 (Szegedy et al.,
            "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7).
    """
    if mix is None:
        return F.cross_entropy(student_BC.float(), labels_B, label_smoothing=smoothing)
    own_B, other_B = (
        F.cross_entropy(student_BC.float(), labels, reduction="none", label_smoothing=smoothing)
        for labels in (labels_B, mix.labels_B)
    )
    return (other_B + mix.weight_B * (own_B - other_B)).mean()


# --------------------------------------------------------------------------- parts


def wide(values: Tensor) -> Tensor:
    """Values in float32, or in float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher‖student) of logits over the same outcomes, mean over the batch, in nats."""
    student, teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL of softened logits over the same outcomes."""
    return divergence(student, teacher) * temperature**2


def _in_buckets(logits_BC: Tensor, targets: TopKTargets) -> Tensor:
    """Return the student's logits of stored classes and of one bucket of the rest: [B, K + 1]."""
    ids_BK = targets.ids_BK.long()
    rest_B = logits_BC.scatter(1, ids_BK, -torch.inf).logsumexp(1)
    return torch.cat([logits_BC.gather(1, ids_BK), rest_B.unsqueeze(1)], dim=1)


def _weighted_matching(
    student: Tensor, softened: Tensor, teacher: Tensor, temperature: float
) -> Tensor:
    """The mean of power sum times KL; `softened` are the teacher's logits at T, `teacher` at 1."""
    student, matched = F.log_softmax(student, dim=1), F.log_softmax(softened, dim=1)
    largest = teacher.amax(1, keepdim=True)  # taken out, or it would leave but rounding below it
    over_1_B = (teacher - largest).logsumexp(1)
    power_sum_B = ((softened - largest / temperature).logsumexp(1) - over_1_B / temperature).exp()
    divergence_B = F.kl_div(student, matched, reduction="none", log_target=True).sum(1)
    return (power_sum_B * divergence_B).mean()


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's, along `dim`; 0 where one of the two does not vary."""
    parts = (_centred(values, dim) for values in (one, other))
    unit_one, unit_other = (centred / norm for centred, norm in parts)
    return (unit_one * unit_other).sum(dim)


def _centred(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Values minus their mean along `dim`, and the norm of that; 0 and 1 where they do not vary.

    Rounding leaves a spread where there is none: of logits that are all equal, in a network's first
    step, say. To divide by that would make a gradient of noise.
    """
    centred = values - values.mean(dim, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    rounding = _ROUNDING * torch.finfo(values.dtype).eps
    varies = norm > rounding * torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    return torch.where(varies, centred, 0.0), torch.where(varies, norm, 1.0)
