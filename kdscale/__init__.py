"""Knowledge distillation of image classifiers from a verified cache of teacher logits."""

from typing import TYPE_CHECKING, Any

from kdscale.version import __version__

if TYPE_CHECKING:
    from kdscale.api.build_cache import build_cache
    from kdscale.api.cached_dataset import CachedDataset
    from kdscale.api.distill import distill
    from kdscale.data.given_images import images_of
    from kdscale.data.image_dataset import load_images
    from kdscale.data.source import SourceOptions
    from kdscale.data.views.operations.torchvision_op import TorchvisionOp
    from kdscale.data.views.pipeline import Pipeline
    from kdscale.losses.logits import kl_loss
    from kdscale.models.deployable import load_student
    from kdscale.target_sources.cached import CachedTargets

# Imported on first use: `kdscale --help` and `kdscale cache info` must not pay for torch.
_PUBLIC = {
    "CachedDataset": "kdscale.api.cached_dataset",
    "CachedTargets": "kdscale.target_sources.cached",
    "Pipeline": "kdscale.data.views.pipeline",
    "SourceOptions": "kdscale.data.source",
    "TorchvisionOp": "kdscale.data.views.operations.torchvision_op",
    "build_cache": "kdscale.api.build_cache",
    "distill": "kdscale.api.distill",
    "images_of": "kdscale.data.given_images",
    "kl_loss": "kdscale.losses.logits",
    "load_images": "kdscale.data.image_dataset",
    "load_student": "kdscale.models.deployable",
}

__all__ = [
    "CachedDataset",
    "CachedTargets",
    "Pipeline",
    "SourceOptions",
    "TorchvisionOp",
    "__version__",
    "build_cache",
    "distill",
    "images_of",
    "kl_loss",
    "load_images",
    "load_student",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kdscale' has no attribute {name!r}")
