"""A bare loop on several processes with Accelerate, from a cache.

On two GPUs:

    accelerate launch --num_processes 2 examples/accelerate_loop.py

On a CPU, where `accelerate launch` starts one process whatever it is told:

    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 examples/accelerate_loop.py
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from toy import cached, inputs, model

import kdscale


def main(folder: Path) -> float:
    """Train a student, and return its accuracy on the views of the last epoch, of all processes."""
    accelerator = Accelerator()
    dataset = cached(folder)  # called by all processes, which build the cache together
    set_seed(0)
    loader = DataLoader(dataset, batch_size=32, shuffle=True)  # 32 samples a process and step
    student = model(8)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    top1 = 0.0
    for epoch in range(8):
        dataset.set_epoch(epoch)  # the views
        loader.set_epoch(epoch)  # the order: Accelerate sets it again when the loop begins
        correct = []
        for pixels, labels, teacher_logits in loader:
            logits = student(inputs(pixels))
            accelerator.backward(kdscale.kl_loss(logits, teacher_logits, temperature=2.0))
            optimizer.step()
            optimizer.zero_grad()
            correct.append(accelerator.gather_for_metrics(logits.argmax(1) == labels))
        top1 = float(torch.cat(correct).float().mean())
    dataset.close()
    accelerator.print(f"top-1 {100 * top1:.1f} % on {accelerator.num_processes} processes")
    accelerator.end_training()
    return top1


if __name__ == "__main__":
    main(Path("toy"))
