"""A student in timm's training loop, from a cache: the parts of timm's train.py, in its order.

    python examples/timm_loop.py

The augmentation is the cache's, so timm's is left out: no `create_transform`, no `Mixup`.
"""

from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, NativeScaler, accuracy, random_seed
from torch.utils.data import DataLoader
from toy import cached

import kdscale

EPOCHS = 4


def main(folder: Path) -> float:
    """Train a student, and return its top-1 accuracy on the views of the last epoch, 0..100."""
    random_seed(0)
    dataset = cached(folder)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    student = timm.create_model("test_resnet", in_chans=1, num_classes=len(dataset.class_names))
    # Normalising belongs to the student: what timm states, not what the teacher takes.
    config = resolve_model_data_config(student)
    mean, std = config["mean"][0], config["std"][0]
    optimizer = create_optimizer_v2(student, opt="adamw", lr=5e-3, weight_decay=0.02)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=EPOCHS, updates_per_epoch=len(loader), step_on_epochs=False
    )
    scaler = NativeScaler(device="cpu")  # scales losses of float16 on a GPU, and does the step
    updates = 0
    for epoch in range(EPOCHS):
        dataset.set_epoch(epoch)
        losses = AverageMeter()
        student.train()
        for pixels, labels, teacher_logits in loader:
            logits = student((pixels / 255 - mean) / std)
            hard = torch.nn.functional.cross_entropy(logits, labels)
            loss = 0.5 * hard + 0.5 * kdscale.kl_loss(logits, teacher_logits, temperature=2.0)
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=1.0, parameters=student.parameters())
            updates += 1
            losses.update(loss.item(), len(labels))
            scheduler.step_update(updates)
        scheduler.step(epoch + 1)
        print(f"epoch {epoch}: loss {losses.avg:.4f}")
    student.eval()
    top1 = AverageMeter()
    with torch.inference_mode():
        for pixels, labels, _ in loader:
            logits = student((pixels / 255 - mean) / std)
            top1.update(accuracy(logits, labels)[0].item(), len(labels))
    dataset.close()
    return top1.avg


if __name__ == "__main__":
    print(f"top-1 {main(Path('toy')):.1f} %")
