"""From a recipe to the things it names: where configuration ends and plain objects begin."""

from kdscale.experiment.cache_spec import (
    check_recipe,
    library_versions,
    required_manifest,
    stored_outputs_of,
)
from kdscale.experiment.datasets import (
    check_splits,
    sample_indices,
    source_path,
    test_images,
    training_images,
    two_views,
)
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.locations import Locations
from kdscale.experiment.model_checks import Classifier
from kdscale.experiment.models import (
    frozen_teacher,
    frozen_teacher_or_random,
    model_of,
    model_to_train,
)
from kdscale.experiment.training_setup import (
    features_required,
    objective,
    optimizer,
    patience,
    schedule,
    supervised,
)
from kdscale.experiment.views import (
    cached_pipeline,
    clean_pipeline,
    few_views,
    fresh_views,
    num_views,
    pipeline,
    shared_views,
    training_pipeline,
)

__all__ = [
    "Classifier",
    "Experiment",
    "Locations",
    "cached_pipeline",
    "check_recipe",
    "check_splits",
    "clean_pipeline",
    "features_required",
    "few_views",
    "fresh_views",
    "frozen_teacher",
    "frozen_teacher_or_random",
    "library_versions",
    "model_of",
    "model_to_train",
    "num_views",
    "objective",
    "optimizer",
    "patience",
    "pipeline",
    "required_manifest",
    "sample_indices",
    "schedule",
    "shared_views",
    "source_path",
    "stored_outputs_of",
    "supervised",
    "test_images",
    "training_images",
    "training_pipeline",
    "two_views",
]
