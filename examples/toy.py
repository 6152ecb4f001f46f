"""Images, a teacher and a cache that take seconds; in your code, yours take their place.

The images are random pictures of two classes, so that the examples run anywhere, without a network.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

import kdscale

CLASSES = ["left", "right"]
INPUT = {"mean": [0.5], "std": [0.25]}  # of pixels scaled to 0..1, as `[teacher.input]` of a recipe
VIEWS = [{"name": "random_crop", "padding": 2}]


def pictures(count: int, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Grey images [1, 16, 16] that are bright on the left or on the right, with labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    labels = [index % 2 for index in range(count)]
    for image, label in zip(images, labels, strict=True):
        image[:, :, 8 * label : 8 * label + 8] += 100
    return list(zip(images, labels, strict=True))


def inputs(pixels: Tensor) -> Tensor:
    """What the models take: normalising belongs to a model, so views are plain pixels."""
    return (pixels / 255 - INPUT["mean"][0]) / INPUT["std"][0]


def model(width: int) -> nn.Module:
    """A small network, the same at each call: processes must begin from equal weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 2))


def trained_teacher() -> nn.Module:
    """A teacher that is right, after a moment."""
    teacher = model(64)
    images, labels = (torch.stack(one) for one in zip(*labelled(256), strict=True))
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(20):
        loss = nn.functional.cross_entropy(teacher(inputs(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher


def labelled(count: int) -> list[tuple[Tensor, Tensor]]:
    """The pictures with their labels as tensors."""
    return [(image, torch.tensor(label)) for image, label in pictures(count)]


def cached(folder: Path) -> kdscale.CachedDataset:
    """The views of 256 pictures with labels and the teacher's logits; built once, then found.

    Under a launcher all processes call this, and build the cache together.
    """
    samples = pictures(256)
    cache = kdscale.build_cache(
        trained_teacher(), samples, VIEWS, folder / "toy.zarr", input=INPUT, num_views=4
    )
    return kdscale.CachedDataset(cache, samples)
