"""Recipes: typed, frozen, strict. Parsed once at the door; parts take plain arguments.

A recipe is a TOML file (YAML reads `1e-3` as text). Each field's description gives its meaning and
unit; `kdscale recipes NAME` prints a recipe, and every run keeps the resolved one.
"""

from kdscale.config.ineffective import ineffective_settings
from kdscale.config.loss import FeatureLoss, Loss
from kdscale.config.models import Input, Model, Teacher, TeacherTrain, Train
from kdscale.config.recipe import (
    Recipe,
    differences,
    dump_recipe,
    load_recipe,
    parse_recipe,
    read_table,
    recipe_names,
    recipe_text,
    set_field,
)
from kdscale.config.section import (
    Fraction,
    MemoryFormat,
    Positive,
    Precision,
    Section,
    Weight,
    parse_bytes,
)
from kdscale.config.sections import Cache, Data, Ensemble, Feature, Views
from kdscale.config.sweep import Range, Sweep
from kdscale.config.variants import Variants

__all__ = [
    "Cache",
    "Data",
    "Ensemble",
    "Feature",
    "FeatureLoss",
    "Fraction",
    "Input",
    "Loss",
    "MemoryFormat",
    "Model",
    "Positive",
    "Precision",
    "Range",
    "Recipe",
    "Section",
    "Sweep",
    "Teacher",
    "TeacherTrain",
    "Train",
    "Variants",
    "Views",
    "Weight",
    "differences",
    "dump_recipe",
    "ineffective_settings",
    "load_recipe",
    "parse_bytes",
    "parse_recipe",
    "read_table",
    "recipe_names",
    "recipe_text",
    "set_field",
]
