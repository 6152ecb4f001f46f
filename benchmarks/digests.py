"""What the view digest notices: misses among changes, false alarms among equal views.

Each row shows views of real images in two ways and counts the samples whose pixels differ, those of
them whose digests are equal (misses), and samples of equal pixels whose digests differ (false
alarms). Prints JSON for `benchmarks/results.py collect`.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale.data.decode import decode_image
from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.loader import DeviceImages
from kdscale.data.source import SourceOptions, open_source
from kdscale.data.views.digest import digest
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline

NUM_SAMPLES = 20_000
CROP, FLIP = {"name": "random_crop", "padding": 4}, "random_horizontal_flip"
PIPELINES: dict[str, list[Any]] = {
    "crop and flip": [CROP, FLIP],
    "random resized crop, flip": [{"name": "random_resized_crop", "size": 32}, FLIP],
    "RandAugment": ["rand_augment"],
    "crop, flip, colour jitter": [
        CROP, FLIP,
        {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    ],
    "crop, flip, mixup or CutMix": [CROP, FLIP, "mixup_or_cutmix"],
}  # fmt: skip
CHANGED_ARGUMENT: dict[str, dict[str, Any]] = {
    "random_crop": {"padding_mode": "reflect"},
    "random_resized_crop": {"scale": (0.09, 1.0)},
    "rand_augment": {"magnitude": 10},
    "color_jitter": {"hue": 0.11},
    "mixup_or_cutmix": {"mixup_alpha": 0.9},
}


def pixels_of(
    images: DeviceImages, pipeline: Pipeline, view: int, index: Tensor, size: int
) -> Tensor:
    """Views of samples, made in batches of `size`."""
    parts = [images.render_views(pipeline, view, part).pixels for part in index.split(size)]
    return torch.cat(parts)


def count(one: Tensor, other: Tensor) -> dict[str, int]:
    """Samples whose pixels differ, and where pixels and digests disagree."""
    differs = (one != other).flatten(1).any(1)
    alarm = digest(one) != digest(other)
    return {
        "samples": len(one),
        "pixels_differ": int(differs.sum()),
        "misses": int((differs & ~alarm).sum()),
        "false_alarms": int((~differs & alarm).sum()),
    }


def with_changed_argument(pipeline: Pipeline, name: str) -> Pipeline:
    """One argument of one operation changed."""
    entries = []
    for entry in pipeline.describe()["operations"]:
        changed = {**entry, **CHANGED_ARGUMENT[name]} if entry["name"] == name else entry
        entries.append(json.loads(json.dumps(changed)))
    return Pipeline.parse(entries, pipeline.seed, pairing=pipeline.pairing)


def changes(split: ImageDataset, name: str, operations: list[Any], index: Tensor) -> dict[str, Any]:
    """All that can go wrong with one pipeline's views."""
    images = DeviceImages(split, torch.device("cpu"))
    pipeline = Pipeline.parse(operations, 0, pairing=MixPairs(len(images.labels)))
    made = pixels_of(images, pipeline, 0, index, 512)
    small = index[:512]
    found = {
        "the same again": pixels_of(images, pipeline, 0, index, 512),
        "another view": pixels_of(images, pipeline, 1, index, 512),
        "another seed": pixels_of(images, replace(pipeline, seed=1), 0, index, 512),
        "one grey level in one pixel": _one_level(made),
        "one pixel to the side": made.roll(1, -1),
    }
    for operation in pipeline.describe()["operations"]:
        if (argument := CHANGED_ARGUMENT.get(operation["name"])) is not None:
            changed = with_changed_argument(pipeline, operation["name"])
            text = ", ".join(f"{key} = {value}" for key, value in argument.items())
            found[f"{operation['name']}: {text}"] = pixels_of(images, changed, 0, index, 512)
    rows = {f"{name}: {what}": count(made, other) for what, other in found.items()}
    one = pixels_of(images, pipeline, 0, small, 1)
    rows[f"{name}: batches of 1 against 512"] = count(made[: len(small)], one)
    rows[f"{name}: another sample's view"] = count(made[:-1], made[1:])
    if torch.cuda.is_available():
        on_gpu = pixels_of(DeviceImages(split, torch.device("cuda")), pipeline, 0, index, 512).cpu()
        rows[f"{name}: GPU against CPU"] = count(made, on_gpu)
    return rows


def _one_level(pixels: Tensor) -> Tensor:
    """A grey level more or less in another place of each sample."""
    changed = pixels.clone().flatten(1)
    rows = torch.arange(len(pixels))
    places = rows * 7919 % changed.shape[1]
    values = changed[rows, places].int()
    changed[rows, places] = torch.where(values < 255, values + 1, values - 1).to(torch.uint8)
    return changed.view(pixels.shape)


def other_decoder(source: str, num_images: int) -> dict[str, Any]:
    """The same JPEG bytes through torchvision's reader."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as by_torchvision

    encoded = open_source(source, split="train", require_labels=True, options=SourceOptions())
    taken: list[bytes] = []
    for batch in encoded.read():
        taken += batch
        if len(taken) >= num_images:
            break
    ours = np.stack([decode_image(one, 3) for one in taken[:num_images]])
    theirs = torch.stack(
        [
            by_torchvision(torch.frombuffer(bytearray(one), dtype=torch.uint8), ImageReadMode.RGB)
            for one in taken[:num_images]
        ]
    )
    kind = "JPEG" if taken[0][:2] == b"\xff\xd8" else "PNG"
    return {f"{kind} decoded by Pillow and by torchvision": count(torch.from_numpy(ours), theirs)}


def main() -> None:
    """Count everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="CIFAR-10: a hub name or a local copy")
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    a = parser.parse_args()
    split = load_images(a.source, split="train", root=a.cache_root)
    index = torch.arange(NUM_SAMPLES)
    rows: dict[str, Any] = {}
    for name, operations in PIPELINES.items():
        rows |= changes(split, name, operations, index)
    rows |= other_decoder(a.source, 2000)
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    print(json.dumps({"digests": {**rows, "all rows": total}}, indent=1))


if __name__ == "__main__":
    main()
