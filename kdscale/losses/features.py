"""Losses between features of the student and the teacher's: vectors or maps of named modules.

Each is a mean over the batch, computed in float32 or wider. Their weights are the recipe's, so what
a paper multiplies a whole loss by stands in the docstring and not in the function.

Shapes: B samples, D features of a vector, C channels, H and W of a map, P pairs of samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdscale.errors import ConfigError
from kdscale.losses.logits import wide
from kdscale.published_losses import HINT, RKD


def cosine_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """One minus the cosine of the angle between the features of student and teacher.

    As PyTorch's distillation tutorial trains with (`CosineEmbeddingLoss` of pairs that agree), and
    like there neighbouring features of a teacher that has a multiple of the student's are averaged.
    Maps are read as vectors. A vector of zeros has no direction: its cosine counts as 0.

    Args:
        student_BD: student's features [B, D], or maps.
        teacher_BD: teacher's features [B, n·D], or maps.

    Returns:
        Scalar, 0 to 2.

    Raises:
        ConfigError: the teacher has no multiple of the student's features.
    """
    student_BD, teacher_BD = wide(student_BD.flatten(1)), wide(teacher_BD.flatten(1))
    size = student_BD.shape[1]
    if teacher_BD.shape[1] % size:
        raise ConfigError(
            f"the cosine loss compares {size} features of the student with {teacher_BD.shape[1]} "
            "of the teacher: wanted as many, or a multiple of them. Choose other modules, or the "
            "loss 'hint', which learns to map one to the other"
        )
    teacher_BD = teacher_BD.unflatten(1, (size, -1)).mean(2)
    return (1 - (_unit(student_BD) * _unit(teacher_BD)).sum(1)).mean()


class HintRegressor(nn.Module):
    """What maps a student's features to the teacher's channels: trained with it, then dropped.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), section 2.2: a convolution, as hints
    are maps; of vectors a linear layer. The paper's kernel is as large as the maps' sizes differ;
    here a larger map is averaged to the teacher's size first, and the kernel may be chosen. Of a
    kernel of 1 that is the same as to average what it maps, but for the time.

    Args:
        student_shape: one sample's features, [D] or [C, H, W].
        teacher_shape: the teacher's, likewise.
        kernel_size: kernel of the map, odd, so that maps do not change their size.

    Raises:
        ConfigError: one is a vector and the other a map, or the kernel is even.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        kernel_size: int = HINT["kernel_size"],
    ) -> None:
        super().__init__()
        if len(student_shape) != len(teacher_shape) or len(student_shape) not in (1, 3):
            raise ConfigError(
                f"a hint maps features of one shape to another, got {list(student_shape)} of the "
                f"student and {list(teacher_shape)} of the teacher: wanted two vectors or two maps"
            )
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {kernel_size}: wanted an odd one, such as 1 or 3")
        inputs, outputs = student_shape[0], teacher_shape[0]
        self.map: nn.Module = nn.Linear(inputs, outputs)
        self._size: tuple[int, int] | None = None
        if len(student_shape) == 3:
            (_, *ours), (_, *theirs) = student_shape, teacher_shape
            self._size = (min(ours[0], theirs[0]), min(ours[1], theirs[1]))
            self.map = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)

    def forward(self, student: Tensor) -> Tensor:
        """Features [B, D] or [B, C, H, W], as many channels as the teacher's, none larger."""
        if self._size is not None and self._size != tuple(student.shape[2:]):
            student = F.adaptive_avg_pool2d(student, self._size)
        mapped: Tensor = self.map(student)
        return mapped


def hint_loss(mapped: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of mapped and teacher's features.

    Romero et al. (2015), equation 3, up to a constant: half the sum over features there, their mean
    here, as usual in published code. The larger of two maps is averaged to the size of the other.

    Args:
        mapped: what a `HintRegressor` makes of the student's features, [B, D] or [B, C, H, W].
        teacher: teacher's features, with the same channels.

    Returns:
        Scalar, at least 0.
    """
    mapped, teacher = _same_size(wide(mapped), wide(teacher))
    return F.mse_loss(mapped, teacher.to(mapped.dtype))


def attention_loss(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Mean squared difference of where both look: of squared activations, averaged over channels.

    Zagoruyko & Komodakis, "Paying More Attention to Attention" (ICLR 2017), equation 2 with p = 2,
    each map divided by its norm. The equation takes the norm of the difference; this, like the
    authors' code, its mean square, over positions and samples. The paper's weight of it, β, is
    1000. Channels may differ; the larger of two maps is averaged to the size of the other.

    Args:
        student_BCHW: student's map [B, C, H, W].
        teacher_BCHW: teacher's map.

    Returns:
        Scalar, at least 0.

    Raises:
        ConfigError: one of them is no map.
    """
    if student_BCHW.ndim != 4 or teacher_BCHW.ndim != 4:
        raise ConfigError(
            "attention is where a map [C, H, W] is active, got features "
            f"{list(student_BCHW.shape[1:])} of the student and {list(teacher_BCHW.shape[1:])} of "
            "the teacher: choose modules that give maps, or the loss 'cosine' or 'rkd'"
        )
    student, teacher = _same_size(wide(student_BCHW), wide(teacher_BCHW))
    student, teacher = (_unit(one.square().mean(1).flatten(1)) for one in (student, teacher))
    return (student - teacher).square().mean()


def rkd_loss(
    student_BD: Tensor,
    teacher_BD: Tensor,
    *,
    distance_weight: float = RKD["distance_weight"],
    angle_weight: float = RKD["angle_weight"],
) -> Tensor:
    """Huber loss of the distances between samples and of the angles that three of them span.

    Park et al., "Relational Knowledge Distillation" (CVPR 2019), sections 3.2.1 (distances over
    their mean) and 3.2.2 (cosines of angles), with the weights that are used for classification.
    Means over pairs and triples of different samples, as there; published code counts each sample's
    relation to itself too, which is always met. Of fewer samples than a relation takes, it is 0.
    Features of student and teacher may differ in number; maps are read as vectors.

    It couples the samples of a batch, and takes memory for [B, B, D].

    Args:
        student_BD: student's features [B, D], or maps.
        teacher_BD: teacher's features, or maps.
        distance_weight: λ of RKD-D.
        angle_weight: λ of RKD-A.

    Returns:
        Scalar, at least 0.
    """
    student, teacher = wide(student_BD.flatten(1)), wide(teacher_BD.flatten(1))
    teacher = teacher.to(student.dtype)
    count, loss = len(student), student.sum() * 0.0
    if count > 1:
        distances = F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
        loss = loss + distance_weight * distances
    if count > 2:
        angles = F.smooth_l1_loss(_angles(student), _angles(teacher), reduction="sum")
        loss = loss + angle_weight * angles / (count * (count - 1) * (count - 2))
    return loss


def _relative_distances(features_BD: Tensor) -> Tensor:
    """Between all pairs of samples, over their mean, [P]."""
    distances_P = F.pdist(features_BD)
    mean = distances_P.mean()
    return distances_P / torch.where(mean > 0, mean, 1.0)


def _angles(features_BD: Tensor) -> Tensor:
    """Cosines of the angle at a sample between two others, [B, B, B]; 0 where two are the same."""
    edges_BBD = _unit(features_BD.unsqueeze(0) - features_BD.unsqueeze(1))
    cosines = edges_BBD @ edges_BBD.transpose(1, 2)
    return cosines - torch.diag_embed(cosines.diagonal(dim1=1, dim2=2))


def _unit(values: Tensor) -> Tensor:
    """Divided by their norm along the last dimension; zeros stay, and have no gradient."""
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return torch.where(norm > 0, values, 0.0) / torch.where(norm > 0, norm, 1.0)


def _same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, each averaged to the smaller height and width of both; vectors as they are."""
    if one.ndim != 4 or one.shape[2:] == other.shape[2:]:
        return one, other
    height, width = (min(sides) for sides in zip(one.shape[2:], other.shape[2:], strict=True))
    one, other = (F.adaptive_avg_pool2d(both, (height, width)) for both in (one, other))
    return one, other
