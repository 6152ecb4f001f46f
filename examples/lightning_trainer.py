"""A student in PyTorch Lightning, from a cache.

pip install lightning
python examples/lightning_trainer.py
"""

from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from toy import cached, inputs, model

import kdscale


class Distillation(lightning.LightningModule):
    """Learns from labels and from the teacher's logits."""

    def __init__(self, student: torch.nn.Module, dataset: kdscale.CachedDataset) -> None:
        super().__init__()
        self.student, self.dataset = student, dataset

    def on_train_epoch_start(self):
        """Choose the views of the epoch: Lightning knows samplers' epochs alone."""
        self.dataset.set_epoch(self.current_epoch)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        pixels, labels, teacher_logits = batch
        logits = self.student(inputs(pixels))
        hard = torch.nn.functional.cross_entropy(logits, labels)
        loss = 0.5 * hard + 0.5 * kdscale.kl_loss(logits, teacher_logits, temperature=2.0)
        self.log("top1", (logits.argmax(1) == labels).float().mean(), on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.student.parameters(), 3e-3)


def main(folder: Path) -> float:
    """Train a student, and return its accuracy on the views of the last epoch."""
    dataset = cached(folder)
    trainer = lightning.Trainer(
        max_epochs=4, default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Distillation(model(8), dataset), DataLoader(dataset, batch_size=32, shuffle=True))
    dataset.close()
    return float(trainer.callback_metrics["top1"])


if __name__ == "__main__":
    print(f"top-1 {100 * main(Path('toy')):.1f} %")
