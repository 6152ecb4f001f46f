"""One call trains a student on as many processes as torchrun starts.

    torchrun --standalone --nproc_per_node 2 examples/torchrun_distill.py

On a CPU with `ACCELERATE_USE_CPU=true` before it, since kdscale runs on Accelerate.
Stopped and started again, it goes on from its last checkpoint, as `torchrun --max-restarts` does;
when it is finished, it prints the result again.
"""

from pathlib import Path

from toy import cached, model, pictures

import kdscale


def main(folder: Path) -> float:
    """Train a student, and return its top-1 accuracy on a test set."""
    student, metrics = kdscale.distill(
        model(8),
        cached(folder),
        pictures(64, seed=1),  # a test set, which has not been trained on
        train={"epochs": 8, "global_batch_size": 64, "learning_rate": 3e-3, "log_every": 4},
        loss={"temperature": 2.0, "hard_weight": 0.2, "soft_weight": 0.8},
        run=folder / "runs" / "student",
    )
    assert not student.training  # it is ready to be used
    return metrics["top1_accuracy"]


if __name__ == "__main__":
    print(f"top-1 {100 * main(Path('toy')):.1f} %")
