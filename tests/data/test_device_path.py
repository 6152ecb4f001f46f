"""Where a device may not be asked anything, other code makes the views: bit for bit the same ones.

It runs here on a CPU, as it would on a GPU.
"""

import sys

import pytest
import torch

from kdscale.data.rng import bits_KB
from kdscale.data.views import batch_plan
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.operation_registry import OPERATIONS, parse_operation
from kdscale.data.views.pipeline import Pipeline

JITTER = {"brightness": 0.9, "contrast": [0.0, 16.0], "saturation": 0.7, "hue": 0.5}
ARGUMENTS = {
    "random_crop": {"padding": 3}, "center_crop": {"size": 8}, "resize": {"size": [12, 17]},
    "random_resized_crop": {"size": [11, 14]}, "random_rotation": {"degrees": 200.0},
    "random_affine": {"degrees": 90.0, "translate": [0.3, 0.2], "scale": [0.5, 2.0], "shear": 30.0},
    "color_jitter": JITTER, "gaussian_blur": {"kernel_size": 3}, "random_posterize": {"bits": 3},
    "random_solarize": {"threshold": 100.0}, "random_adjust_sharpness": {"sharpness_factor": 3.0},
    "cutout": {"size": 5},
}  # fmt: skip
ENTRIES = [
    *({"name": name, **ARGUMENTS.get(name, {})} for name in OPERATIONS),
    {"name": "random_resized_crop", "size": 9, "interpolation": "nearest", "scale": [0.9, 1.0]},
    {"name": "random_resized_crop", "size": 60},
    {"name": "color_jitter", "contrast": 0.5, "hue": 0.2},
    {"name": "color_jitter", "brightness": 0.5, "contrast": 0.5, "saturation": 0.5},
    {"name": "rand_augment", "num_ops": 4, "magnitude": 30, "fill": 9},
    {"name": "rand_augment", "num_ops": 3, "interpolation": "bilinear"},
    {"name": "trivial_augment_wide", "interpolation": "bilinear", "fill": 200},
]


def as_on_a_device(monkeypatch):
    for module in list(sys.modules.values()):
        if module.__name__.startswith("kdscale.data.views") and hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda tensor: False)


def images(kind, shape):
    pixels = torch.randint(0, 256, (150, *shape), generator=torch.Generator().manual_seed(1))
    if kind == "smooth":  # few grey levels, and some images of a single one
        pixels = pixels // 64 * 16 + 90
        pixels[:20] = pixels[:20, :, :1, :1]
    return pixels.to(torch.uint8)


@pytest.mark.parametrize("shape", [(3, 16, 23), (1, 17, 9), (3, 2, 40)], ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: "-".join(map(str, entry.values())))
def test_device_path_equals_host_path(monkeypatch, entry, shape):
    operation = parse_operation(entry)
    if entry["name"] == "gaussian_blur" and min(shape[1:]) < 3:
        pytest.skip("the kernel is larger than the image")
    draws = [(0, draw) for draw in range(operation.num_draws)]
    bits = bits_KB(5, draws, 2, torch.arange(150))
    both = [images(kind, shape) for kind in ("noise", "smooth")]
    expected = [operation(pixels, bits) for pixels in both]
    as_on_a_device(monkeypatch)
    for pixels, made in zip(both, expected, strict=True):
        assert operation(pixels, bits).equal(made)


CROP, FLIP = {"name": "random_crop", "padding": 2}, "random_horizontal_flip"
PIPELINES = {
    "mixed": [CROP, "mixup_or_cutmix", {"name": "random_erasing", "value": "random"}],
    "plain": [{"name": "random_resized_crop", "size": 8}, FLIP],
    "nothing drawn": [{"name": "center_crop", "size": 6}],
}


@pytest.mark.parametrize("views", [3, torch.arange(1000) % 3], ids=["one view", "a view each"])
@pytest.mark.parametrize("name", PIPELINES)
def test_words_drawn_ahead_for_many_batches_give_the_same_views(monkeypatch, name, views):
    pipeline = Pipeline.parse(PIPELINES[name], 7, pairing=MixPairs(1000))
    pixels = torch.randint(0, 256, (1000, 3, 9, 9), dtype=torch.uint8)
    index = torch.randperm(1000)

    def rendered():
        plans = pipeline.plan(views, index, 12)
        for plan in [plans[70], *plans]:  # resumed, then from the start
            made = pipeline.render(pixels[plan.images.host_index], plan)
            yield made.pixels, plan.words

    expected = list(rendered())
    assert all(words is None for _, words in expected)
    monkeypatch.setattr(batch_plan, "_draws_ahead", lambda device: True)
    found = list(rendered())
    assert all(words is not None for _, words in found)
    assert all(one.equal(other) for (one, _), (other, _) in zip(found, expected, strict=True))
