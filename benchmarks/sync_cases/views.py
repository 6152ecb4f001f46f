"""Views of 128 images of 32 px on the device: each operation alone, mixing, whole pipelines."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdscale.data.views.batch_plan import BatchPlan, SampleViews, View
from kdscale.data.views.digest import digest
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.operation_registry import MIXING, OPERATIONS
from kdscale.data.views.pipeline import Pipeline
from sync_cases.counting import CUDA, Case

BATCH_SIZE, NUM_SAMPLES, SIDE = 128, 50_000, 32

ARGUMENTS: dict[str, dict[str, Any]] = {
    "random_crop": {"padding": 4},
    "center_crop": {"size": 24},
    "resize": {"size": [48, 48]},
    "random_resized_crop": {"size": 32},
    "random_rotation": {"degrees": 15.0},
    "random_affine": {
        "degrees": 15.0, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 5.0,
    },
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "gaussian_blur": {"kernel_size": 5},
    "random_posterize": {"bits": 4},
    "random_solarize": {"threshold": 128.0},
    "random_adjust_sharpness": {"sharpness_factor": 2.0},
    "cutout": {"size": 16},
}  # fmt: skip
"""Of operations that need some."""

CROP, FLIP = {"name": "random_crop", **ARGUMENTS["random_crop"]}, "random_horizontal_flip"
PIPELINES: dict[str, list[Any]] = {
    **{name: [{"name": name, **ARGUMENTS.get(name, {})}] for name in OPERATIONS},
    "random_crop, reflect": [{**CROP, "padding_mode": "reflect"}],
    "random_resized_crop to 64 px": [{"name": "random_resized_crop", "size": 64}],
    "random_rotation, bilinear": [
        {"name": "random_rotation", "degrees": 15.0, "interpolation": "bilinear"}
    ],
    "rand_augment, bilinear": [{"name": "rand_augment", "interpolation": "bilinear"}],
    "random_erasing, noise": [{"name": "random_erasing", "value": "random"}],
    "crop and flip": [CROP, FLIP],
    **{name: [name] for name in MIXING},
    "crop, flip, mixup": [CROP, FLIP, "mixup"],
    "random resized crop, flip, RandAugment, mixup or CutMix, erasing": [
        {"name": "random_resized_crop", "size": 32}, FLIP, "rand_augment", "mixup_or_cutmix",
        {"name": "random_erasing", "p": 0.25},
    ],
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every operation, mixing, and whole pipelines; one view for all, or one for each sample."""
    for name, operations in PIPELINES.items():
        yield Case(f"views: {name}", partial(_views, operations))
    yield Case("views: crop and flip, a view for each sample", partial(_views, [CROP, FLIP], True))
    yield Case("views: mixup, a view for each sample", partial(_views, ["mixup"], True))
    yield Case("views: crop and flip, not drawn ahead", partial(_views, [CROP, FLIP], ahead=False))
    yield Case("views: all of 4", partial(_all_views, ["random_vertical_flip", FLIP]))
    yield Case("view digest", _digest)


def _views(
    operations: list[Any], view_each: bool = False, ahead: bool = True
) -> Callable[[], object]:
    pipeline = Pipeline.parse(operations, 0, pairing=MixPairs(NUM_SAMPLES))
    plan = _plan(_view(view_each), pipeline.mixes)
    if ahead:  # as `PlannedBatches` draws for 64 batches at a time
        words = pipeline.draw(plan.samples.view, plan.samples.index)
        plan = replace(plan, words=words, image_words=words)
    return partial(_rendered, pipeline, _images(), plan)


def _all_views(operations: list[Any]) -> Callable[[], object]:
    pipeline = Pipeline.parse(operations, 0, enumerated=True)
    return partial(_rendered, pipeline, _images(), _plan(3))


def _rendered(pipeline: Pipeline, images: Tensor, plan: BatchPlan) -> object:
    """Render the views alone: to gather the images is the loader's part."""
    return pipeline.render(images[: len(plan.images)], plan)


def _plan(view: View, mixes: bool = False) -> BatchPlan:
    """Plan a batch whose partners are all in it."""
    on_host = [torch.arange(BATCH_SIZE), torch.empty(BATCH_SIZE, dtype=torch.int64)]
    samples = SampleViews(_index(), view, on_host[0], view if isinstance(view, int) else on_host[1])
    if not mixes:
        return BatchPlan(samples, samples)
    place = torch.empty(2 * BATCH_SIZE, dtype=torch.int64, device=CUDA)
    return BatchPlan(samples, samples, samples, place)


def _digest() -> Callable[[], object]:
    return partial(digest, _images()[:BATCH_SIZE])


def _images() -> Tensor:
    return torch.empty(NUM_SAMPLES, 3, SIDE, SIDE, dtype=torch.uint8, device=CUDA)


def _index() -> Tensor:
    return torch.empty(BATCH_SIZE, dtype=torch.int64, device=CUDA)


def _view(each: bool) -> View:
    return torch.empty(BATCH_SIZE, dtype=torch.int64, device=CUDA) if each else 3
