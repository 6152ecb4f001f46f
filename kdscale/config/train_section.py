"""Sections of a recipe for the training of a model."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from kdscale.config.base_section import (
    ConfigSection,
    Fraction,
    MemoryFormat,
    Operations,
    Plain,
    Positive,
    Precision,
    UserPath,
    Weight,
    unknown,
)
from kdscale.formatting import number_of

Tracker = Literal["tensorboard", "wandb", "mlflow"]
"""Trackers that a resumed run can continue without duplicates."""


def _known_optimizer(name: str) -> str:
    """Refuse what is neither an optimizer of torch nor the form `timm/NAME`."""
    if name not in _OPTIMIZERS and not re.fullmatch(r"timm/\w+", name):
        message = f"no optimizer {name!r}, wanted {', '.join(_OPTIMIZERS)} or timm/NAME"
        raise ValueError(unknown(message, name, _OPTIMIZERS))
    return name


_OPTIMIZERS = ("adam", "adamw", "sgd")
OptimizerName = Annotated[str, AfterValidator(_known_optimizer)]


class TrainSection(ConfigSection):
    """Settings of a model's training."""

    epochs: Positive = Field(description="Number of passes over the training split.")
    pretrained: UserPath | None = Field(
        None,
        description="Initial weights, except for a head of other classes: a file, or "
        "torchvision:NAME such as torchvision:IMAGENET1K_V1, which is downloaded if "
        'needed. Not set, or "none": random weights. Not used if the model\'s '
        "`weights` are set.",
    )
    pretrained_required: bool = Field(
        True,
        description="false: train from random weights if the pretrained ones are missing and "
        "cannot be downloaded; log, result and table state this.",
    )
    global_batch_size: Positive = Field(
        128, description="Samples per optimizer step, over all processes."
    )
    accumulation: Positive = Field(1, description="Forward and backward passes per optimizer step.")
    optimizer: OptimizerName = Field(
        "adam",
        description="Optimizer: `adam`, `adamw` or `sgd` of torch.optim, or `timm/NAME` such as "
        "`timm/lamb`, `timm/lion`, `timm/adan` or `timm/muon`.",
    )
    optimizer_options: Plain = Field(
        {},
        description="Further arguments of the optimizer, such as `betas = [0.9, 0.95]`. Not set: "
        "its defaults.",
    )
    learning_rate: float = Field(1e-3, ge=1e-12, le=1000, description="Peak learning rate.")
    momentum: Fraction = Field(
        0.9, description="Momentum. Used by `sgd`, and by optimizers of timm with momentum."
    )
    nesterov: bool = Field(False, description="Nesterov momentum. Used by `sgd` only.")
    weight_decay: Weight = Field(
        0.0,
        description="Weight decay: decoupled with `adamw`, an L2 penalty with `adam` and `sgd`, "
        "with `timm/NAME` as timm defines it.",
    )
    decay_norm_and_bias: bool = Field(
        True,
        description="false: apply weight decay to matrices and convolutions only, not to biases, "
        "the parameters of normalisation layers and position embeddings.",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer to the one before it, for models "
        "of timm; such as 0.75 for pretrained ones. Not set: one rate for all layers.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a label, 0..1, that is spread evenly over all classes in the cross-"
        "entropy.",
    )
    schedule: Literal["constant", "steps", "plateau", "cosine", "one_cycle"] = Field(
        "constant",
        description="Learning-rate schedule. `steps`: lower it at `milestones`. `plateau`: lower "
        "it when the loss on the validation split stops falling.",
    )
    warmup_epochs: float = Field(
        0.0,
        ge=0,
        description="Number of epochs over which the learning rate rises linearly from 0; with "
        "`one_cycle`, the rising part of the cycle.",
    )
    cooldown_epochs: float = Field(
        0.0,
        ge=0,
        description="Number of last epochs at `min_learning_rate`. Used by `cosine` only.",
    )
    min_learning_rate: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Learning rate at which the schedule ends. Used by `cosine` only.",
    )
    milestones: list[Positive] = Field(
        [],
        description="Epochs after which the learning rate is multiplied by `gamma`. Used by "
        "`steps` only.",
    )
    gamma: float = Field(
        0.1,
        ge=1e-6,
        le=1,
        description="Factor of the learning rate at each milestone or plateau. Used by `steps` "
        "and `plateau` only.",
    )
    patience: Positive = Field(
        5,
        description="Number of evaluations without a smaller validation loss after which the "
        "learning rate is lowered. Used by `plateau` only.",
    )
    stop_after: Positive | None = Field(
        None,
        description="Number of evaluations without a smaller validation loss after which training"
        " ends (early stopping). Not set: train all epochs.",
    )
    restore_best: bool = Field(
        False,
        description="true: the result is the checkpoint with the best top-1 accuracy on the "
        "validation split, not the last one.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights after each optimizer "
        "step, such as 0.9998; less in the first steps. Evaluated and saved beside the weights. "
        "Not set: none.",
    )
    gradient_clip: float | None = Field(
        None,
        ge=1e-6,
        description="Largest norm of the gradient of all parameters. Not set: gradients are not "
        "clipped.",
    )
    precision: Precision = Field(
        "float32",
        description="Precision of forward and backward passes; weights are always float32. "
        "`float16` uses a loss scale.",
    )
    allow_tf32: bool = Field(
        False,
        description="true: CUDA GPUs may round inputs of float32 products to TF32 in training "
        "steps, which is faster and changes logits by about 1e-3; never in teachers and "
        "evaluations.",
    )
    compile: Literal["reduce-overhead"] | bool = Field(
        False,
        description="true: compile the model's training steps by torch.compile, which takes time "
        'before the first one. "reduce-overhead": also with CUDA graphs.',
    )
    memory_format: MemoryFormat = Field(
        "contiguous",
        description="Memory format of model and images. `channels_last` is faster for most "
        "convolutional networks, above all in bfloat16; models that do not support it"
        " are refused.",
    )
    sync_batch_norm: bool = Field(
        False,
        description="true: batch norm uses the samples of all processes, not of each process "
        "alone.",
    )
    evaluate_every: Positive = Field(
        1, description="Number of epochs between evaluations; the last epoch is always evaluated."
    )
    log_every: Positive = Field(
        50, description="Optimizer steps between two lines of `metrics.jsonl`."
    )
    log_with: list[Tracker] = Field(
        [],
        exclude=True,  # no part of a run's identity, which is its recipe as it is dumped
        description="Trackers that also get what is written to `metrics.jsonl`. Not part of the "
        "run's own recipe: a training may be resumed with others.",
    )
    checkpoint_every: Positive | None = Field(
        None,
        description="Optimizer steps between checkpoints. Not set: one at the end of each epoch.",
    )

    @model_validator(mode="after")
    def _recorded_graphs_take_whole_steps(self) -> Self:
        if self.compile == "reduce-overhead" and self.accumulation > 1:
            raise ValueError(
                f"compile is 'reduce-overhead' and accumulation {self.accumulation}: CUDA graphs "
                "reuse the memory of gradients that accumulation adds to. Set compile = true, or "
                "accumulation = 1"
            )
        return self

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
    def _rates_rise_and_fall_within_the_epochs(self) -> Self:
        if self.warmup_epochs + self.cooldown_epochs > self.epochs:
            cooldown = (
                f" and cooldown_epochs {self.cooldown_epochs}" if self.cooldown_epochs else ""
            )
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}{cooldown}, more than all "
                f"{number_of(self.epochs, 'epoch')}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate is {self.min_learning_rate}, above learning_rate, "
                f"{self.learning_rate}"
            )
        if self.cooldown_epochs and not self.min_learning_rate and self.schedule == "cosine":
            raise ValueError(
                f"cooldown_epochs is {self.cooldown_epochs} and min_learning_rate 0, at which "
                "nothing is learned: set min_learning_rate, such as 1e-5"
            )
        return self

    @property
    def needs_validation(self) -> str | None:
        """Return the first setting that needs a validation split, as in a recipe; None without."""
        if self.schedule == "plateau":
            return "schedule = 'plateau'"
        if self.stop_after is not None:
            return f"stop_after = {self.stop_after}"
        return "restore_best = true" if self.restore_best else None


class TeacherTrainSection(TrainSection):
    """Settings of the teacher's training, which may use other views than the cache."""

    operations: Operations | None = Field(
        None,
        description="Augmentation of the teacher's own training, with a new view in each epoch. "
        "Not set: that of `[views]`.",
    )
