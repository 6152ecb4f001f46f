"""The tables of a recipe that say which images, views, cache and models."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdscale.config.section import (
    Fraction,
    MemoryFormat,
    Positive,
    Precision,
    Section,
    Weight,
    parse_bytes,
)

_TORCHVISION = "torchvision/"


class Data(Section):
    """Where images come from."""

    source: str = Field(
        description="hub name, local parquet, arrow or image folder, or embedded:NAME"
    )
    train_split: str = Field("train", description="split to train and build on")
    test_split: str = Field("test", description="split that accuracy is reported on")
    image: str | None = Field(None, description="column of images; found when not set")
    label: str | None = Field(None, description="column of labels; found when not set")
    classes: list[str | int] | None = Field(None, description="subset of classes, in label order")
    validation: Fraction = Field(
        0.0, description="share of the training split held out to choose the best weights; 0 = none"
    )
    clean: list[str | dict[str, Any]] = Field(
        [],
        description="resize, center_crop and others without draws: the image to evaluate on, and "
        "to show where no views are named; needed where sizes differ",
    )


class Views(Section):
    """The augmented versions of each training image."""

    operations: list[str | dict[str, Any]] = Field(
        [], description="operations of `docs/views.md`, or `v2.NAME` of torchvision, in order"
    )
    count: Positive | Literal["all"] = Field(
        1,
        description="number of distinct views, which epochs cycle through; "
        '"all" shows each view of a finite pipeline once',
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="seed of every draw")
    shift_every: Positive | None = Field(
        None,
        description="consecutive samples that show the same view in an epoch, all when not set; "
        "a multiple of cache.shard_samples reads each chunk once an epoch",
    )
    pair_within: int | None = Field(
        None,
        ge=2,
        description="where views mix, consecutive samples that are paired among themselves, all "
        "when not set; a multiple of cache.shard_samples keeps partners together where targets do "
        "not fit cache.targets_memory",
    )
    mode: Literal["replayed", "fixed"] = Field(
        "replayed",
        description="replayed: the teacher sees what the student is shown; fixed: for comparison "
        "only, the teacher sees each image clean, once",
    )

    @field_validator("count", mode="before")
    @classmethod
    def _number_or_all(cls, count: object) -> object:
        if count == "all" or (type(count) is int and count >= 1):
            return count
        raise ValueError('wanted a whole number, 1 or more, or "all"')

    @model_validator(mode="after")
    def _one_clean_view_in_fixed_mode(self) -> "Views":
        if self.mode == "fixed" and (self.count != 1 or self.shift_every is not None):
            raise ValueError(
                "mode is 'fixed', where the teacher is asked about the clean images alone: leave "
                "out count and shift_every"
            )
        return self

    @model_validator(mode="after")
    def _one_view_without_operations(self) -> "Views":
        if not self.operations and self.count != 1:
            raise ValueError(
                f"count is {self.count}, but without operations all views are alike: "
                "set count = 1, or name operations"
            )
        return self


class Feature(Section):
    """What a module inside the teacher gives, to be stored beside its logits."""

    module: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$", description="dotted name, as of `named_modules`"
    )
    pool: Positive | None = Field(
        None, description="average maps to so many pixels a side; 1 makes a vector"
    )


class Cache(Section):
    """How the teacher's answers are stored."""

    encoding: Literal["float32", "float16", "int8", "int4", "topk", "embedding", "auto"] = Field(
        "float16",
        description="how logits are stored; embedding: as what enters the teacher's linear head, "
        "and the head; auto: float16, int8, int4 or topk, the first of them within budget_bytes",
    )
    features: list[Feature] = Field(
        [],
        description="modules of the teacher whose outputs are stored too: names, or tables of "
        "module and pool (not identity: a cache with more of them fits)",
    )
    top_k: Positive = Field(20, description="topk only: classes kept of each answer")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0],
        description="topk only, ascending: where the weight of the other classes is exact; "
        "interpolated between them, refused beyond",
    )
    budget_bytes: Positive = Field(
        256, description="auto only: largest size of one answer, before compression"
    )
    shard_samples: Positive = Field(
        4096, description="samples of one view that are committed together (not identity)"
    )
    targets_memory: int | str = Field(
        "4 GiB",
        description="bytes of targets, as stored, that a training process holds, as a number or as "
        'text like "512 MiB" (not identity); twice what an epoch shows is fastest; where less than '
        "that of one epoch fits, samples are shuffled within windows of shards, whose size it "
        "decides",
    )

    @property
    def targets_memory_bytes(self) -> int:
        """`targets_memory` as a number."""
        return parse_bytes(self.targets_memory)

    @field_validator("targets_memory")
    @classmethod
    def _number_of_bytes(cls, memory: int | str) -> int | str:
        parse_bytes(memory)
        return memory

    @field_validator("features", mode="before")
    @classmethod
    def _names_or_tables(cls, features: object) -> object:
        if not isinstance(features, list) or not all(
            isinstance(one, str | dict) for one in features
        ):
            raise ValueError('wanted modules: ["layer4", { module = "layer3", pool = 4 }]')
        return [{"module": one} if isinstance(one, str) else one for one in features]

    @field_validator("features")
    @classmethod
    def _each_module_once(cls, features: list[Feature]) -> list[Feature]:
        names = [one.module for one in features]
        if len(set(names)) < len(names):
            raise ValueError("a module is named twice: one output is stored of each")
        return features

    @field_validator("temperatures")
    @classmethod
    def _ascending_about_one(cls, grid: list[float]) -> list[float]:
        if not grid or grid != sorted(set(grid)) or not grid[0] <= 1 <= grid[-1]:
            raise ValueError(
                "wanted ascending temperatures, the first at most 1 and the last at least 1, where "
                "the teacher's own probabilities are"
            )
        return grid


class Ensemble(Section):
    """Further caches that teach the student beside the recipe's own."""

    caches: list[str] = Field(
        [], description="further caches of the same images and views, by another teacher each: "
        "folders (also below the cache root) or URLs"
    )  # fmt: skip
    weights: list[Annotated[float, Field(gt=0)]] = Field(
        [], description="one for each teacher, the recipe's own first; divided by their sum. "
        "Equal when not set"
    )  # fmt: skip
    mean: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="probabilities: their mean at loss.temperature; logits: their mean, which is "
        "the geometric one of probabilities",
    )

    @model_validator(mode="after")
    def _one_weight_a_teacher(self) -> "Ensemble":
        if self.weights and len(self.weights) != 1 + len(self.caches):
            raise ValueError(
                f"weights has {len(self.weights)} values for {1 + len(self.caches)} teachers: give "
                "one for each, first that of the recipe's own cache"
            )
        return self


class Input(Section):
    """What a model wants to be shown; belongs to the model, never to the view."""

    mean: list[float] = Field(description="per channel, of pixels scaled to 0..1")
    std: list[Annotated[float, Field(gt=0)]] = Field(description="per channel, likewise")
    size: Positive | None = Field(None, description="pixels a side; the image's own when not set")

    @model_validator(mode="after")
    def _one_of_each_per_channel(self) -> "Input":
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values, std has {len(self.std)}: give one per channel"
            )
        return self


class Train(Section):
    """How a model is trained."""

    epochs: Positive = Field(description="passes over the training split")
    pretrained: str | None = Field(
        None,
        description="weights to begin from, all but a head for other classes: a file, or "
        "torchvision:NAME, such as torchvision:IMAGENET1K_V1, found or downloaded; random when not "
        "set; where the model's `weights` are set they count alone",
    )
    pretrained_required: bool = Field(
        True,
        description="false: where pretrained weights are not here and cannot be downloaded, train "
        "from scratch, and say so in log, result and table",
    )
    global_batch_size: Positive = Field(128, description="samples an optimizer step, all processes")
    accumulation: Positive = Field(1, description="forward passes an optimizer step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="torch.optim's")
    learning_rate: float = Field(1e-3, gt=0, description="at its peak")
    momentum: Fraction = Field(0.9, description="sgd only")
    nesterov: bool = Field(False, description="sgd only")
    weight_decay: Weight = Field(0.0, description="decoupled with adamw, else an L2 penalty")
    schedule: Literal["constant", "steps", "plateau", "cosine", "one_cycle"] = Field(
        "constant",
        description="plateau: lower where the loss on the validation split no longer falls",
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear from 0; one_cycle: the rising part")
    milestones: list[Positive] = Field([], description="steps only: epochs at which to decay")
    gamma: float = Field(
        0.1, gt=0, le=1, description="steps and plateau: factor at each milestone or plateau"
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
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of all gradients")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of forward and backward; weights stay float32"
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
    def _warm_up_within_the_epochs(self) -> "Train":
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, more than all {self.epochs} epochs"
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


class Model(Section):
    """A model, its weights and how to get them."""

    model: str = Field(description="registry name; see `kdscale.models.registry`")
    options: dict[str, Any] = Field({}, description="arguments of the model's factory")
    weights: str | None = Field(
        None, description="safetensors (or weights-only checkpoint) to load"
    )
    rename: dict[str, str] = Field({}, description="prefixes of the weights' keys: theirs = ours")
    input: Input | None = Field(None, description="taken from the weights when not set")
    train: Train | None = None

    @model_validator(mode="after")
    def _pretrained_are_those_of_its_library(self) -> "Model":
        source = self.train.pretrained if self.train else None
        if source and source.startswith("torchvision:") and not self.model.startswith(_TORCHVISION):
            raise ValueError(
                f"train.pretrained is {source!r}, weights of torchvision's models, and model is "
                f"{self.model!r}: name a weights file, or a model {_TORCHVISION}NAME"
            )
        return self


class TeacherTrain(Train):
    """How a teacher is trained, which nothing binds to the views that it will be asked about."""

    operations: list[str | dict[str, Any]] | None = Field(
        None,
        description="teacher only: its augmentation, a new view each epoch; [views] when not set",
    )


class Teacher(Model):
    """The model that is asked once."""

    train: TeacherTrain | None = None

    precision: Precision = Field("float32", description="of the forward pass; part of the identity")
    memory_format: MemoryFormat = Field("channels_last", description="part of the identity")
    batch_size: Positive = Field(512, description="images a forward pass while building")
