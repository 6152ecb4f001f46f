"""How many views a second: kdscale's batches against torchvision's per-sample transforms.

Both work on the same uint8 images in one run, in turns: kdscale in batches of 512 in this process
with all threads, torchvision in a DataLoader with as many worker processes, from tensors and from
Pillow images, of which the faster one counts. Prints JSON for `benchmarks/results.py collect`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Generator
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.loader import DeviceImages
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import reuse_freed_memory

BATCH_SIZE = 512
_FETCHED_AHEAD = 2  # batches a worker, as is torch's default
_OF_TORCHVISION = 25_600  # images, enough for a measurement without a new epoch's start
CROP = {"name": "random_crop", "padding": 4}
FLIP = "random_horizontal_flip"
MIX = {"alpha": 1.0, "num_classes": 10}

# Our operations, torchvision's transforms, and torchvision's of whole batches (mixing).
Row = tuple[list[Any], list[Callable[[], Any]], Callable[[], Any] | None]
ROWS: dict[str, Row] = {
    "crop and flip": ([CROP, FLIP], [lambda: v2.RandomCrop(32, 4), v2.RandomHorizontalFlip], None),
    "random resized crop": (
        [{"name": "random_resized_crop", "size": 32}], [lambda: v2.RandomResizedCrop(32)], None,
    ),
    "RandAugment": (["rand_augment"], [v2.RandAugment], None),
    "TrivialAugmentWide": (["trivial_augment_wide"], [v2.TrivialAugmentWide], None),
    "crop, flip, mixup": (
        [CROP, FLIP, "mixup"],
        [lambda: v2.RandomCrop(32, 4), v2.RandomHorizontalFlip],
        lambda: v2.MixUp(**MIX),
    ),
    "crop, flip, CutMix": (
        [CROP, FLIP, "cutmix"],
        [lambda: v2.RandomCrop(32, 4), v2.RandomHorizontalFlip],
        lambda: v2.CutMix(**MIX),
    ),
    "random resized crop, flip, RandAugment, mixup or CutMix, erasing": (
        [{"name": "random_resized_crop", "size": 32}, FLIP, "rand_augment",
         {"name": "random_erasing", "p": 0.25}, "mixup_or_cutmix"],
        [lambda: v2.RandomResizedCrop(32), v2.RandomHorizontalFlip, v2.RandAugment,
         lambda: v2.RandomErasing(0.25)],
        lambda: v2.RandomChoice([v2.MixUp(**MIX), v2.CutMix(**MIX)]),
    ),
    "random_crop": ([CROP], [lambda: v2.RandomCrop(32, 4)], None),
    "random_crop, reflect": (
        [{**CROP, "padding_mode": "reflect"}],
        [lambda: v2.RandomCrop(32, 4, padding_mode="reflect")], None,
    ),
    "center_crop": ([{"name": "center_crop", "size": 24}], [lambda: v2.CenterCrop(24)], None),
    "resize": ([{"name": "resize", "size": [48, 48]}], [lambda: v2.Resize((48, 48))], None),
    "random_horizontal_flip": ([FLIP], [v2.RandomHorizontalFlip], None),
    "random_vertical_flip": (["random_vertical_flip"], [v2.RandomVerticalFlip], None),
    "random_rotation": (
        [{"name": "random_rotation", "degrees": 15.0}], [lambda: v2.RandomRotation(15)], None,
    ),
    "random_rotation, bilinear": (
        [{"name": "random_rotation", "degrees": 15.0, "interpolation": "bilinear"}],
        [lambda: v2.RandomRotation(15, v2.InterpolationMode.BILINEAR)], None,
    ),
    "random_affine": (
        [{"name": "random_affine", "degrees": 15.0, "translate": [0.1, 0.1], "scale": [0.9, 1.1],
          "shear": 5.0}],
        [lambda: v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 5)], None,
    ),
    "color_jitter": (
        [{"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
          "hue": 0.1}],
        [lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], None,
    ),
    "random_grayscale": (["random_grayscale"], [v2.RandomGrayscale], None),
    "gaussian_blur": (
        [{"name": "gaussian_blur", "kernel_size": 5}], [lambda: v2.GaussianBlur(5)], None,
    ),
    "random_invert": (["random_invert"], [v2.RandomInvert], None),
    "random_posterize": (
        [{"name": "random_posterize", "bits": 4}], [lambda: v2.RandomPosterize(4)], None,
    ),
    "random_solarize": (
        [{"name": "random_solarize", "threshold": 128.0}], [lambda: v2.RandomSolarize(128)], None,
    ),
    "random_adjust_sharpness": (
        [{"name": "random_adjust_sharpness", "sharpness_factor": 2.0}],
        [lambda: v2.RandomAdjustSharpness(2)], None,
    ),
    "random_autocontrast": (["random_autocontrast"], [v2.RandomAutocontrast], None),
    "random_equalize": (["random_equalize"], [v2.RandomEqualize], None),
    "random_erasing": (["random_erasing"], [v2.RandomErasing], None),
    "cutout": ([{"name": "cutout", "size": 16}], [], None),
    "v2.RandomPerspective, sample by sample": (
        ["v2.RandomPerspective"], [v2.RandomPerspective], None,
    ),
}  # fmt: skip
"""The first three carry marks: 15, 8 and 6 times torchvision."""


class Samples(Dataset):  # type: ignore[type-arg]
    """torchvision's way: one image at a time."""

    def __init__(self, pixels: Tensor, transform: Callable[[Any], Any], *, pillow: bool) -> None:
        self.images = [functional.to_pil_image(one) for one in pixels] if pillow else pixels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), index % 10


def one_thread(_: int) -> None:
    """Workers share the cores by process."""
    torch.set_num_threads(1)


def torchvision_batches(row: Row, pixels: Tensor, workers: int, *, pillow: bool) -> Generator[Any]:
    """Batches without end."""
    _, makers, mix = row
    steps = [make() for make in makers]
    transform = v2.Compose([*steps, v2.PILToTensor()] if pillow else [*steps, v2.Identity()])
    loader = DataLoader(
        Samples(pixels, transform, pillow=pillow), BATCH_SIZE, shuffle=True, num_workers=workers,
        drop_last=True, worker_init_fn=one_thread, prefetch_factor=_FETCHED_AHEAD,
    )  # fmt: skip
    mixed = mix() if mix else None
    while True:
        for images, labels in loader:
            yield mixed(images.float(), labels) if mixed else (images, labels)


def our_batches(row: Row, images: DeviceImages) -> Generator[Any]:
    """Batches without end."""
    num_samples = len(images.labels)
    pipeline = Pipeline.parse(row[0], 0, pairing=MixPairs(num_samples))
    for view in cycle(range(100)):
        if not pipeline.mixes:
            order = torch.randperm(num_samples)
        else:  # partners side by side, as training shows them
            partner = pipeline.partner(view, torch.arange(num_samples))
            first = torch.arange(num_samples)[torch.arange(num_samples) <= partner]
            order = torch.stack((first, partner[first]), 1)[torch.randperm(len(first))].flatten()
        for index in order.split(BATCH_SIZE):
            if len(index) == BATCH_SIZE:
                yield images.render_views(pipeline, view, index)


def images_per_second(batches: Generator[Any], seconds: float) -> float:
    """Of whole batches, over at least so many seconds."""
    shown, began = 0, perf_counter()
    while perf_counter() - began < seconds:
        next(batches)
        shown += BATCH_SIZE
    return shown / (perf_counter() - began)


def compare(
    row: Row, split: ImageDataset, seconds: float, workers: int, rounds: int
) -> dict[str, Any]:
    """Rates in turns; the ratio is taken within a round."""
    names = ["kdscale", *(("tensor", "pillow") if row[1] else ())]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            rates[name].append(_rate(name, row, split, seconds, workers))
    found: dict[str, Any] = {
        f"{name}_images_per_second": round(median(values)) for name, values in rates.items()
    }
    if row[1]:
        faster = max(("tensor", "pillow"), key=lambda name: median(rates[name]))
        ratios = [a / b for a, b in zip(rates["kdscale"], rates[faster], strict=True)]
        found |= {
            "faster": faster,
            "ratio": round(median(ratios), 1),
            "ratio_spread": [round(min(ratios), 1), round(max(ratios), 1)],
        }
    return found


def _rate(name: str, row: Row, split: ImageDataset, seconds: float, workers: int) -> float:
    """One measurement. Workers live for it alone: idle ones would fetch ahead beside the next."""
    if name == "kdscale":
        images = DeviceImages(split, torch.device("cpu"))
        batches, warm_up = our_batches(row, images), 2
    else:
        pixels = torch.tensor(split.pixels[:_OF_TORCHVISION])
        batches = torchvision_batches(row, pixels, workers, pillow=name == "pillow")
        warm_up = _FETCHED_AHEAD * workers + 2  # what was fetched before the clock starts
    for _ in range(warm_up):
        next(batches)
    rate = images_per_second(batches, seconds)
    batches.close()
    return rate


def main() -> None:
    """Measure all rows, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="CIFAR-10: a hub name or a local copy")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=ROWS)
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    a = parser.parse_args()
    reuse_freed_memory()  # as every command does; torchvision's workers inherit it
    split = load_images(a.source, split="train", root=a.cache_root)
    workers = os.cpu_count() or 1
    found: dict[str, Any] = {"workers": workers, "threads": torch.get_num_threads()}
    found |= {"batch_size": BATCH_SIZE, "view_rounds": a.rounds, "seconds": a.seconds, "views": {}}
    for name in a.only or ROWS:
        found["views"][name] = compare(ROWS[name], split, a.seconds, workers, a.rounds)
        print(name, found["views"][name], file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
