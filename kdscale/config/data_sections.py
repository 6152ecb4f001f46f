"""Sections of a recipe for images, views, caches and ensembles."""

from typing import TYPE_CHECKING, Annotated, Literal

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
from kdscale.encodings import ENCODINGS, FeaturesOnly, Float16
from kdscale.formatting import number_of

NO_SPLIT = "none"
"""Value of `data.test_split` where no image has a label."""
_MOST_VIEWS = 1 << 20
"""Most views that a pipeline with finitely many may have."""


class DataSection(ConfigSection):
    """Data set, splits and classes."""

    source: UserPath = Field(
        description="Name of a data set on the Hugging Face hub, a local folder of parquet, arrow"
        " or image files or tars, a pattern of files, or `embedded:NAME`."
    )
    config: str | None = Field(
        None,
        description="Configuration of a data set that has several, as its README.md names them. "
        "Not set: the only one.",
    )
    revision: str | None = Field(
        None,
        pattern=r"^[\w./-]+$",
        max_length=255,
        description="Branch, tag or commit of a data set on the Hugging Face hub. Not set: the "
        "newest. A local copy given with --data has none.",
    )
    train_split: str = Field("train", description="Split for training and for the cache.")
    test_split: str = Field(
        "test",
        description='Split on which accuracy is reported. "none": no image has a label; a student '
        "without a classifier is then trained without evaluations.",
    )
    image: str | None = Field(
        None, description="Column of images. Not set: the only column of images."
    )
    label: str | None = Field(
        None, description="Column of labels. Not set: the only column of class labels."
    )
    unlabelled: bool = Field(
        False,
        description="Whether the training split is read without labels: folders of any depth, and "
        "no column of labels. The test split has labels all the same.",
    )
    classes: list[str | int] | None = Field(
        None,
        min_length=2,
        description="Names or numbers of the classes to use, in the order of the new labels. Not "
        "set: all classes.",
    )
    class_names: UserPath | None = Field(
        None,
        description="File of class names: one in each line, or a JSON list, in the order of the "
        "labels; or a JSON object of a new name for each class. Not set: the names of the data "
        "set, else the numbers.",
    )
    grey_range: list[float] | None = Field(
        None,
        description="Levels of black and white in grey images of more than 8 bits, such as [0, "
        "4095]. Not set: the images must use 0..65535, and are reduced to their upper"
        " 8 bits.",
    )
    test: Fraction = Field(
        0.0,
        description="Share of the labelled images of the training split, 0..1, that are cut off to "
        "test on, the same of each class; for data sets without a test split. 0: `test_split` is "
        "read.",
    )
    validation: Fraction = Field(
        0.0,
        description="Share of the training split, 0..1, that is not trained on and chooses the "
        "best weights. 0: no validation split.",
    )
    clean: Operations = Field(
        [],
        description="Operations without random parameters, such as resize and center_crop, "
        "applied to images for evaluation, and as the only view where "
        "`views.operations` is empty. Needed where images differ in size.",
    )
    device_memory: int | str | None = Field(
        None,
        description="Largest size of decoded images, bytes as a number or text like "
        '"512 MiB", up to which all images of a split stay on the training device; larger splits '
        "are copied to it batch by batch, two ahead. Not set: half of the free memory of a GPU, "
        "any size on a CPU. Changes no result.",
    )

    @property
    def is_tested(self) -> bool:
        """Whether there is a test split."""
        return self.test_split != NO_SPLIT

    @property
    def device_memory_bytes(self) -> int | None:
        """Return `device_memory` as a number."""
        return None if self.device_memory is None else parse_bytes(self.device_memory)

    @model_validator(mode="after")
    def _labels_to_cut_by(self) -> "DataSection":
        if self.test and (self.unlabelled or not self.is_tested):
            setting = "unlabelled is true" if self.unlabelled else f"test_split is '{NO_SPLIT}'"
            raise ValueError(
                f"{setting} and test is {self.test:g}, but images to test on need labels: leave "
                "one of both out"
            )
        return self

    @field_validator("device_memory")
    @classmethod
    def _number_of_bytes(cls, memory: int | str | None) -> int | str | None:
        if memory is not None:
            parse_bytes(memory)
        return memory

    @field_validator("grey_range")
    @classmethod
    def _black_below_white(cls, levels: list[float] | None) -> list[float] | None:
        if levels is not None and (len(levels) != 2 or not levels[0] < levels[1]):
            raise ValueError("wanted the levels of black and white, such as [0, 4095]")
        return levels


class ViewsSection(ConfigSection):
    """Augmented versions of each training image."""

    operations: Operations = Field(
        [],
        description="Augmentation: operations of `docs/views.md`, or `v2.NAME` of torchvision, in"
        " order.",
    )
    count: Positive | Literal["all"] = Field(
        1,
        description='Number of different views of each image; epochs cycle through them. "all": '
        "every view of a pipeline with finitely many.",
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="Seed of all random parameters of the views."
    )
    shift_every: Positive | None = Field(
        None,
        description="Number of consecutive samples that have the same view in an epoch; a "
        "multiple of `cache.shard_samples` reads each chunk once an epoch. Not set: "
        "all samples have the same view.",
    )
    pair_within: int | None = Field(
        None,
        ge=2,
        lt=1 << 31,
        description="Number of consecutive samples among which mixing chooses partners; a "
        "multiple of `cache.shard_samples` where the targets of an epoch exceed "
        "`cache.targets_memory`. Not set: all samples.",
    )
    mode: Literal["replayed", "fixed"] = Field(
        "replayed",
        description="`replayed`: the teacher gets the same views as the student. `fixed`: the "
        "teacher gets each image once, without augmentation; for comparison only.",
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
                "mode is 'fixed', where the teacher gets clean images only: leave out count and "
                "shift_every"
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
    """A module of the teacher whose output is stored, beside the logits if there are any."""

    module: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Dotted name of a module of the teacher, as in `named_modules`; `output`: "
        "what the teacher returns.",
    )
    pool: Side | None = Field(
        None,
        description="Side in pixels to which feature maps are averaged; 1 gives a vector. Not "
        "set: maps are stored at their own size.",
    )


if TYPE_CHECKING:
    EncodingName = str
else:
    EncodingName = Literal[*ENCODINGS, "auto"]


class CacheSection(ConfigSection):
    """Encoding and layout of stored targets."""

    encoding: EncodingName = Field(
        Float16.name,
        description="Encoding of the logits. `embedding`: the inputs of the teacher's linear "
        "head, and the head. `auto`: the first of float16, int8, int4 and topk that "
        "needs at most `budget_bytes`. `none`: no logits, the cache stores `features` alone.",
    )
    features: list[FeatureSection] = Field(
        [],
        description="Modules of the teacher whose outputs are stored: names, or tables of "
        "`module` and `pool`. A cache with more features can be used, too.",
    )
    top_k: Positive = Field(
        20, description="Number of classes whose logits are stored. Used by `topk` only."
    )
    temperatures: list[Temperature] = Field(
        [1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0],
        description="Temperatures, ascending, at which the total probability of all other classes"
        " is stored. It is interpolated between them; training refuses temperatures "
        "outside. Used by `topk` only.",
    )
    budget_bytes: Positive = Field(
        256,
        description="Largest size of a sample's logits in bytes, before compression. Used by "
        "`auto` only.",
    )
    shard_samples: Positive = Field(
        4096,
        description="Number of samples of one view that are written and committed together. Not "
        "part of the cache's identity.",
    )
    targets_memory: int | str = Field(
        "4 GiB",
        description="Memory for targets in each training process: bytes as a number, or text like"
        ' "512 MiB". Twice the targets of an epoch are fastest. Less than one epoch: '
        "samples are shuffled within windows of shards, as large as fit. Not part of "
        "the cache's identity.",
    )

    @property
    def targets_memory_bytes(self) -> int:
        """Return `targets_memory` as a number."""
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

    @model_validator(mode="after")
    def _something_is_stored(self) -> "CacheSection":
        if self.encoding == FeaturesOnly.name and not self.features:
            raise ValueError(
                "encoding is 'none' and features is empty, so nothing would be stored: name "
                'modules of the teacher, such as features = ["output"]'
            )
        return self

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
    """Further caches whose targets are averaged with those of the recipe's own."""

    caches: list[UserPath] = Field(
        [],
        description="Further caches of the same images and views, each by another teacher: "
        "folders (relative ones also below the cache root) or URLs.",
    )
    weights: list[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(
        [],
        description="Weight of each teacher, the recipe's own first; they are divided by their "
        "sum. Empty: equal weights.",
    )
    mean: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="Mean of the teachers' outputs. `probabilities`: of probabilities at "
        "`loss.temperature`. `logits`: of logits, which is the geometric mean of "
        "probabilities.",
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
