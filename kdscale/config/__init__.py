"""Recipes as typed, frozen, strict sections.

A recipe is a TOML file (YAML reads `1e-3` as text). Each field's description gives its meaning and
unit; `kdscale recipes NAME` prints a recipe, and every run stores the resolved one. What lies
below `experiment/` takes plain arguments.
"""

from kdscale.config.base_section import (
    ConfigSection,
    Fraction,
    MemoryFormat,
    Positive,
    Precision,
    Weight,
    parse_bytes,
)
from kdscale.config.data_sections import (
    NO_SPLIT,
    CacheSection,
    DataSection,
    EnsembleSection,
    FeatureSection,
    ViewsSection,
)
from kdscale.config.ineffective import ineffective_settings
from kdscale.config.loss_sections import FeatureLossSection, LossSection
from kdscale.config.model_sections import InputSection, ModelSection, TeacherSection
from kdscale.config.recipe import (
    Recipe,
    differences,
    dump_recipe,
    flatten,
    load_recipe,
    parse_recipe,
    read_table,
    recipe_names,
    recipe_text,
    set_field,
    set_local_data,
)
from kdscale.config.recipe_paths import adopt_equal_paths, folder_of_paths, take_paths_from
from kdscale.config.sweep_section import RangeSection, SweepSection
from kdscale.config.train_section import TeacherTrainSection, TrainSection
from kdscale.config.variants import Variants

__all__ = [
    "NO_SPLIT",
    "CacheSection",
    "ConfigSection",
    "DataSection",
    "EnsembleSection",
    "FeatureLossSection",
    "FeatureSection",
    "Fraction",
    "InputSection",
    "LossSection",
    "MemoryFormat",
    "ModelSection",
    "Positive",
    "Precision",
    "RangeSection",
    "Recipe",
    "SweepSection",
    "TeacherSection",
    "TeacherTrainSection",
    "TrainSection",
    "Variants",
    "ViewsSection",
    "Weight",
    "adopt_equal_paths",
    "differences",
    "dump_recipe",
    "flatten",
    "folder_of_paths",
    "ineffective_settings",
    "load_recipe",
    "parse_bytes",
    "parse_recipe",
    "read_table",
    "recipe_names",
    "recipe_text",
    "set_field",
    "set_local_data",
    "take_paths_from",
]
