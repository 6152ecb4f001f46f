"""Every operation's views are bit-equal, whoever makes them and however."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.digest import digest
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.operation_registry import MIXING, OPERATIONS
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from tests.data import replay

ARGUMENTS = {
    "random_crop": {"padding": 4},
    "center_crop": {"size": 20},
    "resize": {"size": [17, 40]},
    "random_resized_crop": {"size": 24},
    "random_rotation": {"degrees": 30.0, "interpolation": "bilinear"},
    "random_affine": {"degrees": 20.0, "translate": [0.2, 0.1], "scale": [0.7, 1.4], "shear": 8.0},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "gaussian_blur": {"kernel_size": 5},
    "random_posterize": {"bits": 3},
    "random_solarize": {"threshold": 100},
    "random_adjust_sharpness": {"sharpness_factor": 1.7},
    "random_erasing": {"value": "random"},
    "cutout": {"size": 9},
}
ALL = [*OPERATIONS, *MIXING]
WHOLE = [
    {"name": "random_resized_crop", "size": 24},
    "random_horizontal_flip",
    "rand_augment",
    {"name": "random_erasing", "p": 0.25},
    "mixup_or_cutmix",
]


def operation(name):
    return {"name": name, **ARGUMENTS.get(name, {})}


def images(num_samples=512, shape=(3, 32, 26), device="cpu"):
    generator = np.random.default_rng(4)
    smooth = replay.sample_images(*shape, range(num_samples))
    pixels = np.where(np.arange(num_samples).reshape(-1, 1, 1, 1) % 2, smooth, 255)
    noise = generator.integers(0, 256, (num_samples, *shape))
    pixels = np.where(np.arange(num_samples).reshape(-1, 1, 1, 1) % 4 == 0, noise, pixels)
    pixels = pixels.astype(np.uint8)
    labels = np.zeros(num_samples, np.int64)
    split = ImageDataset(pixels, labels, ("one",), "", "synthetic", "train")
    return DeviceImages(split, torch.device(device))


def pipeline(*operations):
    return Pipeline.parse(operations, 11, pairing=MixPairs(512))


@pytest.mark.parametrize("name", ALL)
def test_batch_of_1_equals_batch_of_512(name):
    views, source, index = pipeline(operation(name)), images(), torch.arange(512)
    whole = source.render_views(views, 3, index).pixels
    for sample in range(0, 512, 23):
        alone = source.render_views(views, 3, index[sample : sample + 1]).pixels
        assert alone[0].equal(whole[sample])


@pytest.mark.parametrize("name", ALL)
def test_order_and_company_do_not_matter(name):
    views, source = pipeline(operation(name)), images()
    whole = source.render_views(views, 3, torch.arange(512)).pixels
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    for part in order.split(173):
        assert source.render_views(views, 3, part).pixels.equal(whole[part])


@pytest.mark.parametrize("name", ["rand_augment", "color_jitter", "random_affine", "resize"])
def test_number_of_threads_does_not_matter(name):
    views, source, index = pipeline(operation(name)), images(), torch.arange(512)
    whole = source.render_views(views, 3, index).pixels
    torch.set_num_threads(2)
    try:
        assert source.render_views(views, 3, index).pixels.equal(whole)
    finally:
        torch.set_num_threads(1)


def epoch_of_digests(process_index=0, num_processes=1):
    """Digests by sample of one epoch, as one of several processes shows it."""
    loader = BatchLoader(
        images(128), torch.arange(128), Pipeline.parse(WHOLE, 11, pairing=MixPairs(128)),
        ViewSchedule(3, 0), seed=0, global_batch_size=32,
        process=(process_index, num_processes),
    )  # fmt: skip
    found = {}
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        found |= dict(zip(batch.index.tolist(), digest(batch.pixels).tolist(), strict=True))
    return found


@pytest.mark.thorough
def test_two_processes_show_the_pixels_of_one():
    code = (
        "import json, sys, torch; torch.set_num_threads(1); "
        "from tests.data.test_equality import epoch_of_digests as d; "
        "print(json.dumps(d(int(sys.argv[1]), 2)))"
    )
    parts = [
        subprocess.run(
            [sys.executable, "-c", code, str(process)], capture_output=True, text=True, check=True
        ).stdout
        for process in range(2)
    ]
    together = {int(k): v for part in parts for k, v in json.loads(part).items()}
    assert together == epoch_of_digests()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_gpu_equals_cpu(name):
    views, index = pipeline(operation(name)), torch.arange(512)
    on_cpu, on_gpu = images(), images(device="cuda")
    assert (
        on_gpu.render_views(views, 3, index)
        .pixels.cpu()
        .equal(on_cpu.render_views(views, 3, index).pixels)
    )
