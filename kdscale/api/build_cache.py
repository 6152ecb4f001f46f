"""Build a cache from Python: a teacher in memory, a data set in memory, no recipe."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kdscale.api.given_settings import images_root, interruptible, recipe_of
from kdscale.api.given_views import Views, pipeline_of
from kdscale.api.own_state import own_state
from kdscale.commands.build import build
from kdscale.data.given_images import MapDataset, images_of
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.views.pipeline import Pipeline
from kdscale.encodings import FeaturesOnly
from kdscale.errors import ConfigError
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.given_objects import GivenObjects
from kdscale.experiment.locations import Locations
from kdscale.models.headless import NUM_CLASSES
from kdscale.models.statements import statement_of

_DEFAULTS: Mapping[str, Any] = MappingProxyType({})
_UNUSED_STUDENT = "cifar10-lightnn"
"""A recipe names a student; a build creates none."""


def build_cache(
    teacher: nn.Module,
    dataset: MapDataset | ImageDataset,
    views: Views,
    path: str | Path,
    *,
    input: Mapping[str, Any] | None = None,
    num_views: int = 30,
    forward: Mapping[str, Any] = _DEFAULTS,
    cache: Mapping[str, Any] = _DEFAULTS,
) -> Path:
    """Run a teacher on every view of every image once, and store its logits.

    The cache is the one that `kdscale cache build` writes for the same weights, images and views:
    a build that was stopped is resumed, a finished cache is found, and the command line reads it.

    Args:
        teacher: gives logits [B, classes] of preprocessed images; without logits, with `cache` of
            `encoding` "none" and `features` ["output"], an embedding, tokens or a map. It is put
            into evaluation mode, without gradients, on the device of this process, and restored
            afterwards.
        dataset: any map-style data set without augmentation and normalisation, or what
            `kdscale.images_of` or `kdscale.load_images` returned.
        views: augmentation, in order: operations of kdscale by name or as tables, or transforms of
            one uint8 image [C, H, W] such as torchvision's. Or a `kdscale.Pipeline` of them, which
            has a seed of its own.
        path: folder of the cache, `NAME.zarr`. Decoded images are stored beside it.
        input: what the teacher takes, as `[teacher.input]` of a recipe: `mean` and `std` of each
            channel of pixels scaled to 0..1, and `size`, pixels a side, if not that of the views.
            None = as timm's `pretrained_cfg` of the teacher states.
        num_views: views of each image.
        forward: fields of `[teacher]` of the forward pass: `precision`, `batch_size`, ...
        cache: fields of `[cache]`: `encoding` ("auto" if it is not set), `features`, ...

    Returns:
        `path`.

    Raises:
        KdscaleError: the data set, the views or the teacher cannot be used, or the cache at `path`
            is another one, which is left as it is.
        KeyboardInterrupt: Ctrl-C or SIGTERM; whole shards are stored, and the same call resumes.
    """
    path = Path(path).absolute()
    if isinstance(dataset, ImageDataset):
        images = dataset
    else:
        images = images_of(dataset, name=path.stem, root=images_root(path))
    headless = cache.get("encoding") == FeaturesOnly.name
    _check_images(images, needs_classes=not headless)
    pipeline = pipeline_of(views, num_samples=images.num_samples, seed=0)
    kind = type(teacher)
    settings = {"memory_format": "contiguous", "input": input or _stated_input(teacher), **forward}
    recipe = recipe_of(
        "build_cache",
        path,
        data={"source": images.name},
        views={"operations": pipeline.describe()["operations"], "count": num_views},
        cache={"encoding": "auto", **cache},
        teacher={
            **settings,
            "model": f"{kind.__module__}:{kind.__qualname__}",
            "options": {NUM_CLASSES: 0} if headless else {},
        },
        student={"model": _UNUSED_STUDENT},
        loss={"hard_weight": 0.0, "soft_weight": 1.0},
    )
    given = GivenObjects(train_set=images, views=pipeline, teacher=teacher)
    with own_state(), _restored(teacher), interruptible(path):
        build(Experiment(recipe, Locations(cache_root=images_root(path), cache=path), given=given))
    return path


def _stated_input(teacher: nn.Module) -> Mapping[str, Any]:
    """Return what a module of timm states about its input.

    Raises:
        ConfigError: it states nothing.
    """
    stated = statement_of("timm/", teacher, {"pretrained": True})
    if stated is None or stated.preprocess is None:
        raise ConfigError(
            f"{type(teacher).__name__} does not state what it takes: give input={{'mean': [...], "
            "'std': [...]}}, one value a channel, of pixels scaled to 0..1"
        )
    return stated.preprocess.describe()


def _check_images(images: ImageDataset, *, needs_classes: bool) -> None:
    """Refuse images that the teacher cannot be checked on.

    Raises:
        ConfigError: they differ in size without a clean size, or their classes have no names.
    """
    if not images.one_size and not Pipeline.parse(images.clean, field="clean").leading:
        raise ConfigError(
            f"{images.name} has images of several sizes, and the teacher is checked on images that "
            'are not augmented: give kdscale.images_of(dataset, clean=[{"name": "resize", "size": '
            "[224, 224]}]), with a size that fits the teacher"
        )
    if needs_classes and not images.classes:
        raise ConfigError(
            f"{images.name} has no labels and names no classes: give kdscale.images_of(dataset, "
            "class_names=[...]), in the order of the teacher's logits"
        )


@contextmanager
def _restored(teacher: nn.Module) -> Iterator[None]:
    """Restore a module's modes, gradients and device afterwards; a copy would double its memory."""
    modes = {name: module.training for name, module in teacher.named_modules()}
    trainable = {name: one.requires_grad for name, one in teacher.named_parameters()}
    device = next((one.device for one in teacher.parameters()), torch.device("cpu"))
    try:
        yield
    finally:
        teacher.to(device)
        for name, module in teacher.named_modules():
            module.training = modes[name]
        for name, one in teacher.named_parameters():
            one.requires_grad_(trainable[name])
