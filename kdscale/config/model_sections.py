"""The tables of a recipe that say which models, and how they are trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdscale.config.base_section import (
    ConfigSection,
    Fraction,
    MemoryFormat,
    Operations,
    Plain,
    Positive,
    Precision,
    Side,
    UserPath,
    Weight,
)
from kdscale.formatting import number_of

_TORCHVISION = "torchvision/"
_LARGEST_STD = 2
"""Numbers within 0..1 deviate by 0.5 at most; 1 leaves pixels unscaled, 2 is still no mistake."""


class InputSection(ConfigSection):
    """What a model wants to be shown; belongs to the model, never to the view."""

    mean: list[float] = Field(description="per channel, of pixels scaled to 0..1")
    std: list[Annotated[float, Field(ge=1e-4)]] = Field(description="per channel, likewise")
    size: Side | None = Field(None, description="pixels a side; the image's own when not set")

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


class TrainSection(ConfigSection):
    """How a model is trained."""

    epochs: Positive = Field(description="passes over the training split")
    pretrained: UserPath | None = Field(
        None,
        description="weights to begin from, all but a head for other classes: a file, or "
        "torchvision:NAME, such as torchvision:IMAGENET1K_V1, found or downloaded; random when not "
        'set, or "none"; where the model\'s `weights` are set they count alone',
    )
    pretrained_required: bool = Field(
        True,
        description="false: where pretrained weights are not here and cannot be downloaded, train "
        "from scratch, and say so in log, result and table",
    )
    global_batch_size: Positive = Field(128, description="samples an optimizer step, all processes")
    accumulation: Positive = Field(1, description="forward passes an optimizer step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="torch.optim's")
    learning_rate: float = Field(1e-3, ge=1e-12, le=1000, description="at its peak")
    momentum: Fraction = Field(0.9, description="sgd only")
    nesterov: bool = Field(False, description="sgd only")
    weight_decay: Weight = Field(0.0, description="decoupled with adamw, else an L2 penalty")
    decay_norm_and_bias: bool = Field(
        True,
        description="false: weight decay acts on matrices and convolutions alone, not on biases "
        "and the parameters of normalisation layers",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a label spread evenly over all classes in the cross-entropy",
    )
    schedule: Literal["constant", "steps", "plateau", "cosine", "one_cycle"] = Field(
        "constant",
        description="plateau: lower where the loss on the validation split no longer falls",
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear from 0; one_cycle: the rising part")
    milestones: list[Positive] = Field([], description="steps only: epochs at which to decay")
    gamma: float = Field(
        0.1, ge=1e-6, le=1, description="steps and plateau: factor at each milestone or plateau"
    )
    patience: Positive = Field(
        5, description="plateau only: evaluations without a smaller validation loss that make one"
    )
    stop_after: Positive | None = Field(
        None,
        description="evaluations without a smaller validation loss after which training ends; "
        "all epochs when not set",
    )
    restore_best: bool = Field(
        False,
        description="the result is the weights of the best top-1 on the validation split, not the "
        "last ones",
    )
    gradient_clip: float | None = Field(None, ge=1e-6, description="largest norm of all gradients")
    precision: Precision = Field(
        "float32",
        description="of forward and backward; weights stay float32. float16: with a loss scale",
    )
    allow_tf32: bool = Field(
        False,
        description="whether CUDA GPUs may round inputs of float32 products to TF32 in training "
        "steps: faster, and logits move by about 1e-3; never in teachers and evaluations",
    )
    compile: Literal["reduce-overhead"] | bool = Field(
        False,
        description="true: torch.compile of the model's training steps, which costs time before "
        'the first one; "reduce-overhead": likewise, with CUDA graphs',
    )
    memory_format: MemoryFormat = Field(
        "contiguous",
        description="channels_last is faster for most convolutional networks, above all in "
        "bfloat16; a few models do not take it, and are told so",
    )
    sync_batch_norm: bool = Field(
        False,
        description="with several processes: batch-norm over the samples of all of them, as one "
        "process has it, not over each one's own",
    )
    evaluate_every: Positive = Field(
        1, description="epochs between evaluations; the last always is"
    )
    log_every: Positive = Field(50, description="optimizer steps between logged losses")
    checkpoint_every: Positive | None = Field(
        None, description="optimizer steps between checkpoints; each epoch's end when not set"
    )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov is true and momentum 0: wanted a momentum above 0, such as 0.9, or no "
                "nesterov"
            )
        return self

    @field_validator("pretrained")
    @classmethod
    def _none_is_none(cls, source: str | None) -> str | None:
        if source == "":
            raise ValueError('wanted a weights file, torchvision:NAME, or "none"')
        return None if source == "none" else source

    @model_validator(mode="after")
    def _warm_up_within_the_epochs(self) -> "TrainSection":
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, more than all "
                f"{number_of(self.epochs, 'epoch')}"
            )
        return self

    @property
    def asks_for_validation(self) -> str | None:
        """What only a validation split can decide, as a recipe says it; the first of several."""
        if self.schedule == "plateau":
            return "schedule = 'plateau'"
        if self.stop_after is not None:
            return f"stop_after = {self.stop_after}"
        return "restore_best = true" if self.restore_best else None


class ModelSection(ConfigSection):
    """A model, its weights and how to get them."""

    model: str = Field(max_length=5000, description="registry name, see below")
    options: Plain = Field({}, description="arguments of the model's factory")
    weights: UserPath | None = Field(
        None, description="safetensors (or weights-only checkpoint) to load"
    )
    rename: dict[str, str] = Field({}, description="prefixes of the weights' keys: theirs = ours")
    input: InputSection | None = Field(None, description="taken from the weights when not set")
    train: TrainSection | None = None

    @property
    def loads_weights(self) -> bool:
        """Whether creating the model gives it trained weights of its library."""
        asked = self.options.get("weights") is not None or bool(self.options.get("pretrained"))
        return self.model.startswith("transformers/") or (
            self.model.startswith(("torchvision/", "timm/")) and asked
        )

    @model_validator(mode="after")
    def _pretrained_are_those_of_its_library(self) -> "ModelSection":
        source = self.train.pretrained if self.train else None
        if source and source.startswith("torchvision:") and not self.model.startswith(_TORCHVISION):
            raise ValueError(
                f"train.pretrained is {source!r}, weights of torchvision's models, and model is "
                f"{self.model!r}: name a weights file, or a model {_TORCHVISION}NAME"
            )
        return self


class TeacherTrainSection(TrainSection):
    """How a teacher is trained, which nothing binds to the views that it will be asked about."""

    operations: Operations | None = Field(
        None,
        description="teacher only: its augmentation, a new view each epoch; [views] when not set",
    )


class TeacherSection(ModelSection):
    """The model that is asked once."""

    train: TeacherTrainSection | None = None
    classes: list[str] | None = Field(
        None,
        description="names of its classes in the order of its logits, to be compared with the data "
        "set's; taken from the weights when not set, where they say it",
    )

    precision: Precision = Field("float32", description="of the forward pass; part of the identity")
    memory_format: MemoryFormat = Field("channels_last", description="part of the identity")
    batch_size: Positive = Field(512, description="images a forward pass while building")
    compile: bool = Field(
        False,
        description="torch.compile of the forward pass in builds and online training; moves logits "
        "by rounding alone, and is no part of the identity",
    )

    @property
    def is_trained(self) -> bool:
        """Whether the recipe names a trained teacher: weights, or a library's model as it comes."""
        return self.weights is not None or (self.train is None and self.loads_weights)
