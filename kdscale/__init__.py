"""Knowledge distillation of image classifiers from a verified cache of teacher logits."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdscale.data.image_dataset import load_images
    from kdscale.data.views.pipeline import Pipeline
    from kdscale.losses.logits import kl_loss
    from kdscale.models.deployable import load_student
    from kdscale.target_sources.cached import CachedTargets

# Imported on first use: `kdscale --help` and `kdscale cache info` must not pay for torch.
_PUBLIC = {
    "CachedTargets": "kdscale.target_sources.cached",
    "Pipeline": "kdscale.data.views.pipeline",
    "kl_loss": "kdscale.losses.logits",
    "load_images": "kdscale.data.image_dataset",
    "load_student": "kdscale.models.deployable",
}

__all__ = ["CachedTargets", "Pipeline", "__version__", "kl_loss", "load_images", "load_student"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kdscale' has no attribute {name!r}")
