"""A teacher and a data set in memory: a cache, and a student trained from it in plain PyTorch.

python examples/cache_from_python.py
"""

from pathlib import Path

import torch
from torch.utils.data import DataLoader
from toy import INPUT, VIEWS, inputs, model, pictures, trained_teacher

import kdscale


def main(folder: Path) -> float:
    """Train a student, and return its accuracy on the views of the last epoch."""
    samples = pictures(256)  # any map-style data set, without augmentation
    # The teacher sees each view once; the same call again finds the finished cache.
    cache = kdscale.build_cache(
        trained_teacher(), samples, VIEWS, folder / "toy.zarr", input=INPUT, num_views=4
    )
    dataset = kdscale.CachedDataset(cache, samples)
    student = model(8)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    correct = 0
    for epoch in range(4):
        dataset.set_epoch(epoch)  # each epoch has another view of every image
        correct = 0
        for pixels, labels, teacher_logits in loader:
            logits = student(inputs(pixels))
            loss = kdscale.kl_loss(logits, teacher_logits, temperature=2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += int((logits.argmax(1) == labels).sum())
    dataset.close()
    return correct / len(samples)


if __name__ == "__main__":
    print(f"top-1 {100 * main(Path('toy')):.1f} %")
