"""Recipes: typed, frozen, strict. Parsed once at the door; parts take plain arguments.

A recipe is a TOML file (YAML reads `1e-3` as text). Each field's description gives its meaning and
unit; `kdscale recipes NAME` prints a recipe, and every run keeps the resolved one.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdscale.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Precision = Literal["float32", "bfloat16", "float16"]
MemoryFormat = Literal["contiguous", "channels_last"]


_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: int | str) -> int:
    """A number of bytes, or text like "512 MiB" or "2 GB".

    Raises:
        ValueError: it is neither.
    """
    if isinstance(text, int):
        text = str(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    number = 0
    if match and not (match[3] and not match[2]):
        number = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])
    if number < 1:
        raise ValueError('wanted bytes, 1 or more, as a whole number or as text like "2 GiB"')
    return number


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    global_batch_size: Positive = Field(128, description="samples an optimizer step, all processes")
    accumulation: Positive = Field(1, description="forward passes an optimizer step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="torch.optim's")
    learning_rate: float = Field(1e-3, gt=0, description="at its peak")
    momentum: Fraction = Field(0.9, description="sgd only")
    nesterov: bool = Field(False, description="sgd only")
    weight_decay: Weight = Field(0.0, description="decoupled with adamw, else an L2 penalty")
    schedule: Literal["constant", "steps", "cosine", "one_cycle"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0, description="linear from 0; one_cycle: the rising part")
    milestones: list[Positive] = Field([], description="steps only: epochs at which to decay")
    gamma: float = Field(0.1, gt=0, le=1, description="steps only: factor at each milestone")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of all gradients")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of forward and backward; weights stay float32"
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


_PUBLISHED: dict[str, dict[str, Any]] = {
    "kd": {"temperature": 4.0},
    "mse": {},
    "dkd": {
        "temperature": 4.0,
        "warmup_epochs": 20,
        "options": {"target_weight": 1.0, "non_target_weight": 8.0},
    },
    "nkd": {"temperature": 1.0, "options": {"non_target_weight": 1.5}},
    "dist": {"temperature": 1.0, "options": {"inter_weight": 1.0, "intra_weight": 1.0}},
    "wttm": {"temperature": 4.0},
}
"""By `loss.kind`: the settings that it was published with."""
_PUBLISHED_OPTIONS: dict[str, dict[str, float]] = {
    "cosine": {},
    "hint": {"kernel_size": 1},
    "attention": {},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
}
"""By the kind of a feature loss."""
_STANDARDIZED_TEMPERATURE = 2.0  # published for kd and dkd alike


class FeatureLoss(Section):
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
        known = _PUBLISHED_OPTIONS.get(str(table.get("kind")))
        options = table.get("options", {})
        if known is None or not isinstance(options, Mapping):
            return table
        for name in options:
            if name not in known:
                message = f"kind {table['kind']!r} has no option {name!r}"
                raise ValueError(_unknown(message, str(name), list(known)))
        return {**table, "options": {**known, **options}}


class Loss(Section):
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
    temperature: float = Field(
        4.0,
        gt=0,
        description="softens teacher and student alike (wttm: the teacher); the kind's published "
        "one when not set, 2 with standardize; mse has none",
    )
    hard_weight: Weight = Field(0.5, description="of cross-entropy on the labels")
    soft_weight: Weight = Field(0.5, description="of the kind: kd is T²·KL(teacher‖student)")
    warmup_epochs: int = Field(
        0, ge=0, description="epochs over which soft_weight rises linearly; dkd 20 when not set"
    )
    feature_weight: Weight = Field(0.0, description="of the sum of the losses in features")
    features: list[FeatureLoss] = Field(
        [], description="losses between features of student and teacher: [[loss.features]]"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, table: Any) -> Any:
        """Fill in what the kind was published with, so that a run's recipe shows it."""
        if not isinstance(table, Mapping):
            return table
        kind, options = table.get("kind", "kd"), table.get("options", {})
        published = _PUBLISHED.get(kind) if isinstance(kind, str) else None
        if published is None or not isinstance(options, Mapping):
            return table  # to be refused by their fields
        known = published.get("options", {})
        for name in options:
            if name not in known:
                message = f"kind {kind!r} has no option {name!r}"
                raise ValueError(_unknown(message, str(name), list(known)))
        filled = {**published, **table, "options": {**known, **options}}
        if "temperature" not in published:
            if filled.setdefault("temperature", 1.0) != 1.0:
                raise ValueError(
                    f"kind {kind!r} compares logits as they are, temperature is "
                    f"{filled['temperature']!r}: leave it out"
                )
        elif table.get("standardize") is True and "temperature" not in table:
            filled["temperature"] = _STANDARDIZED_TEMPERATURE
        return filled

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "Loss":
        if self.hard_weight == self.soft_weight == self.feature_weight == 0:
            raise ValueError("hard_weight and soft_weight are both 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _features_weigh_something(self) -> "Loss":
        if bool(self.features) != (self.feature_weight > 0):
            raise ValueError(
                f"feature_weight is {self.feature_weight:g} and features names "
                f"{len(self.features)}: set both or neither"
            )
        return self


class Recipe(Section):
    """A named experiment."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names caches and run folders"
    )
    description: str = Field("", description="one line for `kdscale recipes`")
    data: Data
    views: Views = Views()
    cache: Cache = Cache()
    teacher: Teacher
    student: Model
    loss: Loss = Loss()
    ensemble: Ensemble = Ensemble()

    @model_validator(mode="after")
    def _features_are_those_of_the_cache(self) -> "Recipe":
        kept = [one.module for one in self.cache.features]
        for one in self.loss.features:
            if one.teacher not in kept:
                raise ValueError(
                    f"loss.features compares with the teacher's {one.teacher!r}, cache.features "
                    f"names {', '.join(map(repr, kept)) or 'none'}: add it there"
                )
        if self.loss.features and self.ensemble.caches:
            raise ValueError(
                "ensemble.caches names further teachers, of whose features there is no mean: leave "
                "out loss.features"
            )
        if self.loss.features and self.views.mode == "fixed":
            raise ValueError(
                "views.mode is 'fixed', where the teacher's features are of other pictures than "
                "the student's: leave out loss.features"
            )
        return self

    @model_validator(mode="after")
    def _mean_is_one_of_what_is_compared(self) -> "Recipe":
        raw = self.loss.kind == "mse" and not self.loss.standardize and self.loss.soft_weight > 0
        if raw and self.ensemble.caches and self.ensemble.mean == "probabilities":
            raise ValueError(
                "loss.kind 'mse' compares logits as they are, ensemble.mean is 'probabilities', of "
                "which logits follow only up to a constant: set ensemble.mean = 'logits', or "
                "loss.standardize = true"
            )
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with kdscale."""
    folder = files("kdscale") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_text(name_or_path: str) -> str:
    """The TOML text of a recipe, by name or path.

    Raises:
        ConfigError: there is no such recipe; the nearest name is suggested.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(
                f"no recipe file {name_or_path!r}: check the path, or see `kdscale recipes`"
            )
        return path.read_text(encoding="utf-8")
    if name_or_path in recipe_names():
        return (files("kdscale") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    raise ConfigError(_unknown(f"no recipe {name_or_path!r}", name_or_path, recipe_names()))


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), data: str | None = None
) -> Recipe:
    """Read a recipe, apply `section.field=value` overrides and check everything.

    Args:
        name_or_path: a name of `recipe_names()` or a TOML file.
        overrides: as after `--set`; values are TOML, bare words count as text.
        data: a local copy of the data set, in place of `data.source`.

    Raises:
        ConfigError: unknown recipe or key, wrong type or range; every problem is listed.
    """
    try:
        table = tomllib.loads(recipe_text(name_or_path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name_or_path} is not valid TOML: {error}") from None
    table.setdefault("name", Path(name_or_path).stem)
    for override in overrides:
        _apply(table, override)
    if data is not None:
        _apply(table, f"data.source={tomli_w.dumps({'v': data})[4:]}")
    return parse_recipe(table, name_or_path)


def parse_recipe(table: Mapping[str, object], origin: str) -> Recipe:
    """A recipe from a table; `origin` names it in messages."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, origin))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` reads it back to an equal one."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Every dotted field in which two nested tables differ: (field, ours, theirs)."""
    left, right = dict(_flatten(ours)), dict(_flatten(theirs))
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _apply(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: write section.field=value")
    *sections, field = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section")
    try:
        table[field] = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        table[field] = text.strip()


def _problems(error: ValidationError, origin: str) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        field = ".".join(location)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            yield _unknown(f"{origin}: unknown key {field!r}", location[-1], known)
        elif problem["type"] == "missing":
            yield f"{origin}: {field!r} is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], Mapping) else f" is {problem['input']!r}"
            yield f"{origin}: {field or 'recipe'}{got}: {message[0].lower()}{message[1:]}"


def _fields_at(location: Sequence[str]) -> list[str]:
    """Known keys of the table at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if part.isdigit():  # one of a list of tables
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)


def _unknown(message: str, name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known) or 'none'}"
    return f"{message}: {hint}"
