"""A student in Hugging Face's `Trainer`, from a cache: `compute_loss` is all that changes."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import kdscale

sys.path.insert(0, str(Path(__file__).parent))

from cache_from_python import model, pictures


class Epochs(TrainerCallback):
    """Tells the data set which epoch it is: each has other views."""

    def __init__(self, dataset: kdscale.CachedDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Choose the views of the epoch."""
        self.dataset.set_epoch(round(state.epoch))


class Distillation(Trainer):
    """Learns from the teacher's logits."""

    def compute_loss(self, model, inputs, **kwargs):
        """Return the loss of a batch."""
        answers = model((inputs["pixels"] / 255 - 0.5) / 0.25)
        return kdscale.kl_loss(answers, inputs["logits"], temperature=2.0)


def batch(samples: list[tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """Join samples."""
    pixels, labels, logits = (torch.stack(one) for one in zip(*samples, strict=True))
    return {"pixels": pixels, "labels": labels, "logits": logits}


def main() -> list[float]:
    """Train a student for two epochs, and return the loss of each step."""
    torch.manual_seed(0)
    samples: list[tuple[torch.Tensor, int]] = pictures(128)
    teacher: nn.Module = model(64)
    with TemporaryDirectory() as folder:
        cache = kdscale.build_cache(
            teacher, samples, [{"name": "random_crop", "padding": 2}], Path(folder) / "mine.zarr",
            input={"mean": [0.5], "std": [0.25]}, num_views=2,
        )  # fmt: skip
        dataset = kdscale.CachedDataset(cache, samples)
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=2, per_device_train_batch_size=32,
            learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to=[],
            remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Distillation(
            model(8), arguments, train_dataset=dataset, data_collator=batch,
            callbacks=[Epochs(dataset)],
        )  # fmt: skip
        trainer.train()
        dataset.close()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
