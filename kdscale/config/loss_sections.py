"""Sections of a recipe for the loss."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from kdscale.config.base_section import ConfigSection, Temperature, Weight, unknown
from kdscale.published_losses import FEATURE_LOSSES, LOGIT_LOSSES, STANDARDIZED_TEMPERATURE


class FeatureLossSection(ConfigSection):
    """A loss between features of student and teacher."""

    kind: Literal["cosine", "hint", "attention", "rkd"] = Field(
        description="Feature loss; `docs/losses.md` defines them."
    )
    student: str = Field(
        description="Dotted name of a module of the student, as in `named_modules`; `output`: what "
        "the student returns."
    )
    teacher: str = Field(
        description="Dotted name of a module of the teacher, one of `cache.features`."
    )
    project: bool = Field(
        False,
        description="true: a projector, trained with the student and then dropped, maps its "
        "features to as many as the teacher's before the loss: a linear layer, of maps a "
        "convolution of 1 x 1. `hint` always has one.",
    )
    options: dict[str, Weight] = Field(
        {},
        description="Parameters of the loss. `rkd`: `distance_weight` (25), `angle_weight` (50). "
        "`hint`: `kernel_size` (1).",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        known = FEATURE_LOSSES.get(str(table.get("kind")))
        options = table.get("options", {})
        if known is None or not isinstance(options, Mapping):
            return table
        for name in options:
            if name not in known:
                message = f"kind {table['kind']!r} has no option {name!r}"
                raise ValueError(unknown(message, str(name), list(known)))
        return {**table, "options": {**known, **options}}


class LossSection(ConfigSection):
    """Loss of the student: labels, the teacher's logits, the teacher's features."""

    kind: Literal["kd", "mse", "dkd", "nkd", "dist", "wttm"] = Field(
        "kd",
        description="Loss between the logits of student and teacher; `docs/losses.md` defines "
        "them.",
    )
    options: dict[str, Weight] = Field(
        {}, description="Weights of the parts of the loss. Not set: the published ones."
    )
    standardize: bool = Field(
        False,
        description="Standardise the logits of both models to mean 0 and standard deviation 1 "
        "before the loss.",
    )
    temperature: Temperature = Field(
        4.0,
        description="Divides the logits of both models (`wttm`: of the teacher) before the "
        "softmax. Not set: the published value of the kind, 2 with `standardize`. Not"
        " used by `mse`.",
    )
    hard_weight: Weight = Field(0.5, description="Weight of the cross-entropy on labels.")
    soft_weight: Weight = Field(
        0.5, description="Weight of the loss between logits; `kd` is T²·KL(teacher‖student)."
    )
    warmup_epochs: int = Field(
        0,
        ge=0,
        lt=1 << 31,
        description="Number of epochs over which `soft_weight` rises linearly from 0. Not set: 20"
        " for `dkd`, else 0.",
    )
    feature_weight: Weight = Field(0.0, description="Weight of the sum of all feature losses.")
    features: list[FeatureLossSection] = Field(
        [],
        description="Losses between features of student and teacher, each a table "
        "`[[loss.features]]`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, table: Any) -> Any:
        """Fill in the published values of the kind, so that a run's recipe states them."""
        if not isinstance(table, Mapping):
            return table
        kind, options = table.get("kind", "kd"), table.get("options", {})
        published = LOGIT_LOSSES.get(kind) if isinstance(kind, str) else None
        if published is None or not isinstance(options, Mapping):
            return table  # to be refused by their fields
        known = published.options
        for name in options:
            if name not in known:
                message = f"kind {kind!r} has no option {name!r}"
                raise ValueError(unknown(message, str(name), list(known)))
        temperature = published.temperature
        if table.get("standardize") is True and published.softened:
            temperature = STANDARDIZED_TEMPERATURE
        defaults = {"temperature": temperature, "warmup_epochs": published.warmup_epochs}
        filled = {**defaults, **table, "options": {**known, **options}}
        if not published.softened and filled["temperature"] != temperature:
            raise ValueError(
                f"kind {kind!r} compares logits as they are, temperature is "
                f"{filled['temperature']!r}: leave it out"
            )
        return filled

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "LossSection":
        if self.hard_weight == self.soft_weight == self.feature_weight == 0:
            raise ValueError(
                "hard_weight, soft_weight and feature_weight are all 0: nothing would be learned"
            )
        return self

    @model_validator(mode="after")
    def _features_weigh_something(self) -> "LossSection":
        if bool(self.features) != (self.feature_weight > 0):
            raise ValueError(
                f"feature_weight is {self.feature_weight:g} and features names "
                f"{len(self.features)}: set both or neither"
            )
        return self
