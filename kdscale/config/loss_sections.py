"""The tables of a recipe that say what a student learns from."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from kdscale.config.base_section import ConfigSection, Temperature, Weight, unknown
from kdscale.published_losses import FEATURE_LOSSES, LOGIT_LOSSES, STANDARDIZED_TEMPERATURE


class FeatureLossSection(ConfigSection):
    """How features of the student are compared with the teacher's."""

    kind: Literal["cosine", "hint", "attention", "rkd"] = Field(description="see `docs/losses.md`")
    student: str = Field(description="module of the student, dotted name as of `named_modules`")
    teacher: str = Field(description="module of the teacher, one of cache.features")
    options: dict[str, Weight] = Field(
        {}, description="rkd: distance_weight 25, angle_weight 50; hint: kernel_size 1"
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
    """What the student learns from."""

    kind: Literal["kd", "mse", "dkd", "nkd", "dist", "wttm"] = Field(
        "kd", description="how its logits are compared with the teacher's; see `docs/losses.md`"
    )
    options: dict[str, Weight] = Field(
        {}, description="weights of the kind's parts; the published ones when not set"
    )
    standardize: bool = Field(
        False, description="bring logits of both to mean 0 and deviation 1 first"
    )
    temperature: Temperature = Field(
        4.0,
        description="softens teacher and student alike (wttm: the teacher); the kind's published "
        "one when not set, 2 with standardize; mse has none",
    )
    hard_weight: Weight = Field(0.5, description="of cross-entropy on the labels")
    soft_weight: Weight = Field(0.5, description="of the kind: kd is T²·KL(teacher‖student)")
    warmup_epochs: int = Field(
        0,
        ge=0,
        lt=1 << 31,
        description="epochs over which soft_weight rises linearly; dkd 20 when not set",
    )
    feature_weight: Weight = Field(0.0, description="of the sum of the losses in features")
    features: list[FeatureLossSection] = Field(
        [], description="losses between features of student and teacher: [[loss.features]]"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, table: Any) -> Any:
        """Fill in what the kind was published with, so that a run's recipe shows it."""
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
