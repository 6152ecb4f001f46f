"""A student in Hugging Face's `Trainer`, from a cache: `compute_loss` is all that changes.

python examples/hugging_face_trainer.py
"""

from pathlib import Path

import torch
from toy import cached, inputs, model
from transformers import Trainer, TrainerCallback, TrainingArguments

import kdscale


class Views(TrainerCallback):
    """Chooses the views of each epoch: `Trainer` knows samplers' epochs alone."""

    def __init__(self, dataset: kdscale.CachedDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Choose them before the first batch is loaded."""
        self.dataset.set_epoch(round(state.epoch))


class Distillation(Trainer):
    """Learns from the teacher's logits."""

    def compute_loss(self, model, inputs, **kwargs):
        """Return the loss of a batch."""
        return kdscale.kl_loss(model(inputs["pixels"]), inputs["logits"], temperature=2.0)


def batch(samples: list[tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """Join samples; `Trainer` wants names."""
    pixels, labels, logits = (torch.stack(one) for one in zip(*samples, strict=True))
    return {"pixels": inputs(pixels), "labels": labels, "logits": logits}


def main(folder: Path, batch_size: int = 32) -> list[float]:
    """Train a student for two epochs, and return the loss of each step."""
    dataset = cached(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), num_train_epochs=2, learning_rate=1e-2,
        per_device_train_batch_size=batch_size, logging_steps=1, save_strategy="no", report_to=[],
        remove_unused_columns=False,  # else it drops all but what the student's forward names
    )  # fmt: skip
    trainer = Distillation(
        model(8), arguments, train_dataset=dataset, data_collator=batch,
        callbacks=[Views(dataset)],
    )  # fmt: skip
    trainer.train()
    dataset.close()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


if __name__ == "__main__":
    losses = main(Path("toy"))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
