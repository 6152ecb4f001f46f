"""A teacher and a data set in memory: a cache, and a student trained on its views in PyTorch.

The data are random pictures of two classes, so that this runs anywhere, in seconds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.utils.data import DataLoader

import kdscale


def pictures(count: int) -> list[tuple[torch.Tensor, int]]:
    """Grey images [1, 16, 16] that are bright on the left or on the right, with labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    samples = []
    for index, image in enumerate(images):
        label = index % 2
        image[:, :, 8 * label : 8 * label + 8] += 100
        samples.append((image, label))
    return samples


def model(width: int) -> nn.Module:
    """A small network."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 2))


def main() -> float:
    """Train a student, and return its accuracy on the views of the last epoch."""
    torch.manual_seed(0)
    samples, teacher = pictures(256), model(64)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
    for image, label in samples * 2:  # a teacher must be trained: here in a moment
        loss = nn.functional.cross_entropy(
            teacher((image[None] / 255 - 0.5) / 0.25), torch.tensor([label])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with TemporaryDirectory() as folder:
        cache = kdscale.build_cache(
            teacher, samples, [{"name": "random_crop", "padding": 2}], Path(folder) / "mine.zarr",
            input={"mean": [0.5], "std": [0.25]}, num_views=4,
        )  # fmt: skip
        dataset = kdscale.CachedDataset(cache, samples)
        student = model(8)
        optimizer = torch.optim.Adam(student.parameters(), 3e-3)
        loader = DataLoader(dataset, batch_size=32, shuffle=True)
        for epoch in range(4):
            dataset.set_epoch(epoch)
            correct = 0
            for images, labels, logits in loader:
                answers = student((images / 255 - 0.5) / 0.25)
                loss = kdscale.kl_loss(answers, logits, temperature=2.0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                correct += int((answers.argmax(1) == labels).sum())
        dataset.close()
    return correct / len(samples)


if __name__ == "__main__":
    print(f"top-1 {100 * main():.1f} %")
