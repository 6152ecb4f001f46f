"""The tables of a recipe that say which images, views and caches."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kdscale.config.base_section import (
    ConfigSection,
    Fraction,
    Operations,
    Positive,
    Side,
    Temperature,
    UserPath,
    parse_bytes,
)
from kdscale.formatting import number_of

_MOST_VIEWS = 1 << 20
"""As many as an enumerated pipeline may have."""


class DataSection(ConfigSection):
    """Where images come from."""

    source: UserPath = Field(
        description="hub name, local parquet, arrow or image folder, or embedded:NAME"
    )
    config: str | None = Field(
        None,
        description="configuration of a data set that has several, as its README.md names them",
    )
    train_split: str = Field("train", description="split to train and build on")
    test_split: str = Field("test", description="split that accuracy is reported on")
    image: str | None = Field(None, description="column of images; found when not set")
    label: str | None = Field(None, description="column of labels; found when not set")
    classes: list[str | int] | None = Field(
        None, min_length=2, description="subset of classes, in label order"
    )
    grey_range: list[float] | None = Field(
        None,
        description="levels of black and white in grey images of more than 8 bits, such as "
        "[0, 4095]; when not set they have to use 0..65535, and keep their upper 8 bits",
    )
    validation: Fraction = Field(
        0.0, description="share of the training split held out to choose the best weights; 0 = none"
    )
    clean: Operations = Field(
        [],
        description="resize, center_crop and others without draws: the image to evaluate on, and "
        "to show where no views are named; needed where sizes differ",
    )

    @field_validator("grey_range")
    @classmethod
    def _black_below_white(cls, levels: list[float] | None) -> list[float] | None:
        if levels is not None and (len(levels) != 2 or not levels[0] < levels[1]):
            raise ValueError("wanted the levels of black and white, such as [0, 4095]")
        return levels


class ViewsSection(ConfigSection):
    """The augmented versions of each training image."""

    operations: Operations = Field(
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
        lt=1 << 31,
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
        if count == "all" or (type(count) is int and 1 <= count <= _MOST_VIEWS):
            return count
        raise ValueError(f'wanted a whole number, 1 to {_MOST_VIEWS:,}, or "all"')

    @model_validator(mode="after")
    def _one_clean_view_in_fixed_mode(self) -> "ViewsSection":
        if self.mode == "fixed" and (self.count != 1 or self.shift_every is not None):
            raise ValueError(
                "mode is 'fixed', where the teacher is asked about the clean images alone: leave "
                "out count and shift_every"
            )
        return self

    @model_validator(mode="after")
    def _one_view_without_operations(self) -> "ViewsSection":
        if not self.operations and self.count != 1:
            raise ValueError(
                f"count is {self.count}, but without operations all views are alike: "
                "set count = 1, or name operations"
            )
        return self


class FeatureSection(ConfigSection):
    """What a module inside the teacher gives, to be stored beside its logits."""

    module: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$", description="dotted name, as of `named_modules`"
    )
    pool: Side | None = Field(
        None, description="average maps to so many pixels a side; 1 makes a vector"
    )


class CacheSection(ConfigSection):
    """How the teacher's answers are stored."""

    encoding: Literal["float32", "float16", "int8", "int4", "topk", "embedding", "auto"] = Field(
        "float16",
        description="how logits are stored; embedding: as what enters the teacher's linear head, "
        "and the head; auto: float16, int8, int4 or topk, the first of them within budget_bytes",
    )
    features: list[FeatureSection] = Field(
        [],
        description="modules of the teacher whose outputs are stored too: names, or tables of "
        "module and pool (not identity: a cache with more of them fits)",
    )
    top_k: Positive = Field(20, description="topk only: classes kept of each answer")
    temperatures: list[Temperature] = Field(
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
    def _each_module_once(cls, features: list[FeatureSection]) -> list[FeatureSection]:
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


class EnsembleSection(ConfigSection):
    """Further caches that teach the student beside the recipe's own."""

    caches: list[UserPath] = Field(
        [], description="further caches of the same images and views, by another teacher each: "
        "folders (also below the cache root) or URLs"
    )  # fmt: skip
    weights: list[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(
        [], description="one for each teacher, the recipe's own first; divided by their sum. "
        "Equal when not set"
    )  # fmt: skip
    mean: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="probabilities: their mean at loss.temperature; logits: their mean, which is "
        "the geometric one of probabilities",
    )

    @model_validator(mode="after")
    def _one_weight_a_teacher(self) -> "EnsembleSection":
        if self.weights and len(self.weights) != 1 + len(self.caches):
            raise ValueError(
                f"weights has {number_of(len(self.weights), 'value')} for "
                f"{number_of(1 + len(self.caches), 'teacher')}: give one for each, first that of "
                "the recipe's own cache"
            )
        return self
