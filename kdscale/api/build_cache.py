"""Build a cache from Python: a teacher in memory, a data set in memory, no recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdscale.api.given_views import Views, pipeline_of
from kdscale.commands.build import build
from kdscale.config import parse_recipe
from kdscale.data.given_images import MapDataset, images_of
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError, Interrupted
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.locations import Locations

_UNUSED_STUDENT = "cifar10-lightnn"
"""A recipe names a student; a build creates none."""


def build_cache(
    teacher: nn.Module,
    dataset: MapDataset | ImageDataset,
    views: Views,
    path: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None = None,
    num_views: int = 30,
    class_names: Sequence[str] | None = None,
    clean: Sequence[str | Mapping[str, Any]] = (),
    encoding: str = "auto",
    features: Sequence[str] = (),
    precision: str = "float32",
    batch_size: int = 512,
    seed: int = 0,
    cache_root: str | Path = "cache",
) -> Path:
    """Run a teacher on every view of every image once, and store its logits.

    The cache is the one that `kdscale cache build` writes for the same weights, images and views:
    it is resumed where it was stopped, found finished, verified, and read by the command line too.

    Args:
        teacher: gives logits [B, classes] of preprocessed images; put into evaluation mode, without
            gradients, on the device of this process.
        dataset: any map-style data set, see `kdscale.data.given_images.images_of`, or what
            `kdscale.load_images` returned. No augmentation, no normalisation.
        views: the augmentation, see `kdscale.api.given_views.pipeline_of`.
        path: folder of the cache, `NAME.zarr`.
        mean: of the teacher's input, per channel on the scale 0..1.
        std: the same.
        size: side of the square that the teacher takes, pixels; None = that of the views.
        num_views: views of each image.
        class_names: in the order of the logits; None = the data set's.
        clean: operations without draws, such as `{"name": "resize", "size": [224, 224]}`, for the
            images on which the teacher is checked; needed where images differ in size.
        encoding: how logits are stored, a value of `cache.encoding` in docs/recipes.md.
        features: modules of the teacher whose outputs are stored, too.
        precision: of the teacher's forward pass.
        batch_size: images of a forward pass.
        seed: of the views.
        cache_root: folder of decoded images.

    Returns:
        `path`.

    Raises:
        KdscaleError: the data set, the views or the teacher cannot be used, or the cache at `path`
            is another one; what is stored stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; whole shards are stored, and the same call goes on.
    """
    path, root = Path(path).absolute(), Path(cache_root).absolute()
    if isinstance(dataset, ImageDataset):
        images = dataset
    else:
        images = images_of(dataset, class_names=class_names, name=path.stem, root=root)
    if clean:
        images = replace(images, clean=tuple(clean))
    if not images.one_size and not Pipeline.parse(images.clean, field="clean").leading:
        raise ConfigError(
            f"{images.name} has images of several sizes, and the teacher is checked on images that "
            'are not augmented: give clean=[{"name": "resize", "size": [224, 224]}], or what fits '
            "the teacher"
        )
    if not images.classes:
        raise ConfigError(
            f"{images.name} has no labels and names no classes: give class_names, in the order of "
            "the teacher's logits"
        )
    pipeline = pipeline_of(views, num_samples=images.num_samples, seed=seed)
    kind = type(teacher)
    recipe = parse_recipe(
        {
            "name": "python",
            "data": {"source": images.name},
            "views": {"operations": pipeline.describe()["operations"], "count": num_views},
            "cache": {
                "encoding": encoding,
                "features": [{"module": module} for module in features],
            },
            "teacher": {
                "model": f"{kind.__module__}:{kind.__qualname__}",
                "input": {"mean": list(mean), "std": list(std), "size": size},
                "precision": precision,
                "memory_format": "contiguous",
                "batch_size": batch_size,
            },
            "student": {"model": _UNUSED_STUDENT},
            "loss": {"hard_weight": 0.0, "soft_weight": 1.0},
        },
        "build_cache",
    )
    experiment = Experiment(
        recipe,
        Locations(cache_root=root, cache=path),
        teacher_views=pipeline,
        given_images=images,
        given_teacher=teacher,
    )
    # A copy would double its memory: what the build changes is put back.
    modes = {name: module.training for name, module in teacher.named_modules()}
    frozen = {name: one.requires_grad for name, one in teacher.named_parameters()}
    device = next((one.device for one in teacher.parameters()), torch.device("cpu"))
    try:
        build(experiment)
    except Interrupted as stop:  # no error that a loop over several builds should go on after
        raise KeyboardInterrupt(str(stop)) from stop
    finally:
        teacher.to(device)
        for name, module in teacher.named_modules():
            module.training = modes[name]
        for name, one in teacher.named_parameters():
            one.requires_grad_(frozen[name])
    return path
