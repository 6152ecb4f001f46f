"""Objects of Python code that an experiment uses in place of those that its recipe names."""

from dataclasses import dataclass

from torch import nn

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.views.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenObjects:
    """Objects in memory; None = as the recipe says."""

    train_set: ImageDataset | None = None
    """The training split."""
    test_set: ImageDataset | None = None
    """The test split."""
    views: Pipeline | None = None
    """Views of teacher and student; their operations may be callables (`TorchvisionOp`)."""
    teacher: nn.Module | None = None
    """The teacher, with its weights."""
    student: nn.Module | None = None
    """The student, with its initial weights; its teacher is the one that its cache records."""
