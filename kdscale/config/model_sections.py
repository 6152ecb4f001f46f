"""Sections of a recipe for models."""

from typing import Annotated

from pydantic import Field, model_validator

from kdscale.config.base_section import (
    ConfigSection,
    MemoryFormat,
    Plain,
    Positive,
    Precision,
    Side,
    UserPath,
)
from kdscale.config.train_section import TeacherTrainSection, TrainSection
from kdscale.formatting import number_of

_TORCHVISION = "torchvision/"
_LARGEST_STD = 2
"""Largest plausible value: pixels in 0..1 have at most 0.5, and 1 leaves them unscaled."""


class InputSection(ConfigSection):
    """Scaling and size of a model's input; part of the model, never of the view."""

    mean: list[float] = Field(description="Mean of each channel, of pixels scaled to 0..1.")
    std: list[Annotated[float, Field(ge=1e-4)]] = Field(
        description="Standard deviation of each channel, of pixels scaled to 0..1."
    )
    size: Side | None = Field(
        None,
        description="Side in pixels to which images are resized. Not set: the size of the images.",
    )

    @model_validator(mode="after")
    def _of_pixels_scaled_to_1(self) -> "InputSection":
        if max(map(abs, self.mean), default=0) > 1 or max(self.std, default=0) > _LARGEST_STD:
            given = f"mean is {self.mean}, std {self.std}"
            raise ValueError(
                f"{given}: wanted those of pixels scaled to 0..1, so a mean of 0 to 1. If they "
                "are of 0..255, divide both by 255"
            )
        return self

    @model_validator(mode="after")
    def _one_of_each_per_channel(self) -> "InputSection":
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {number_of(len(self.mean), 'value')}, std has {len(self.std)}: give one "
                "per channel"
            )
        return self


class ModelSection(ConfigSection):
    """A model, its weights and its training."""

    model: str = Field(max_length=5000, description="Name of the model; `[teacher]` lists them.")
    options: Plain = Field(
        {},
        description="Arguments of the function that creates the model. `num_classes = 0`: the "
        "model without its classifier, whose output is an embedding, of a teacher also tokens or "
        "a map.",
    )
    weights: UserPath | None = Field(
        None,
        description="File of trained weights: safetensors, or a checkpoint of tensors. Not set: "
        "random weights, or those of the library that `options` requests.",
    )
    rename: dict[str, str] = Field(
        {}, description="Prefixes of keys in the file of weights, and their replacements."
    )
    input: InputSection | None = Field(
        None, description="Scaling and size of the model's input. Not set: stated by the weights."
    )
    train: TrainSection | None = None

    @property
    def headless(self) -> bool:
        """Return whether the model has no classifier."""
        return self.options.get("num_classes") == 0

    @property
    def loads_weights(self) -> bool:
        """Return whether the model is created with trained weights, by its library or factory."""
        requested = self.options.get("weights") is not None or bool(self.options.get("pretrained"))
        chosen = self.model.startswith(("torchvision/", "timm/")) or ":" in self.model
        return self.model.startswith("transformers/") or (chosen and requested)

    @model_validator(mode="after")
    def _pretrained_are_those_of_its_library(self) -> "ModelSection":
        source = self.train.pretrained if self.train else None
        if source and source.startswith("torchvision:") and not self.model.startswith(_TORCHVISION):
            raise ValueError(
                f"train.pretrained is {source!r}, weights of torchvision's models, and model is "
                f"{self.model!r}: name a weights file, or a model {_TORCHVISION}NAME"
            )
        return self


class TeacherSection(ModelSection):
    """The teacher, which runs once for all students."""

    train: TeacherTrainSection | None = None
    classes: list[str] | None = Field(
        None,
        description="Names of the teacher's classes in the order of its logits, compared with "
        "those of the data set. Not set: stated by the weights, if at all.",
    )

    precision: Precision = Field(
        "float32", description="Precision of the forward pass. Part of the cache's identity."
    )
    memory_format: MemoryFormat = Field(
        "channels_last",
        description="Memory format of the forward pass. Part of the cache's identity.",
    )
    batch_size: Positive = Field(512, description="Images per forward pass of the build.")
    compile: bool = Field(
        False,
        description="true: compile the forward pass of builds and online training by "
        "torch.compile, which changes logits by rounding only. Not part of the cache's identity.",
    )

    @property
    def is_trained(self) -> bool:
        """Return whether the recipe names a trained teacher: weights, or a library's model."""
        return self.weights is not None or (self.train is None and self.loads_weights)
