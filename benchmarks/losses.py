"""All losses between logits from one cache: students of sweeps by their loss, and cost of a step.

    python benchmarks/losses.py runs/losses > losses.json

Of each loss of the sweeps: the results of its students by seed; the processor time of a training
step of `cifar10-lightnn` on one fixed batch of 128, in rounds that take all losses in turn, as a
ratio to that of labels alone; and of the loss by itself, forward and backward, at two sizes. One
thread. Prints JSON for `benchmarks/results.py collect`.
"""

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor

from kdscale.config.loss_sections import LossSection
from kdscale.losses.objective import Objective
from kdscale.models.reference import cifar10_lightnn
from kdscale.sweep.status import status
from kdscale.targets import DenseTargets

ROUNDS, STEPS = 15, 2
SIZES = {"128 x 10": (128, 10, 20), "256 x 1000": (256, 1000, 4)}
"""Samples and classes of the losses that are timed by themselves, and repetitions of a round."""

Run = Callable[[], None]


def students(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the losses of sweeps, in their order, with their finished students."""
    losses: dict[str, dict[str, Any]] = {}
    for row in (row for folder in folders for row in status(folder)["rows"]):
        loss = row["parameters"]["loss"]
        found = losses.setdefault(json.dumps(loss, sort_keys=True), {"loss": loss, "results": []})
        if row["state"] == "finished":
            names = ("top1_accuracy", "value", "train_seconds")
            seed = {"seed": row["parameters"].get("seed", 0)}
            found["results"].append(seed | {name: row[name] for name in names})
    return list(losses.values())


def objective_of(loss: dict[str, Any]) -> Objective:
    """Return the objective of a table `[loss]`."""
    section = LossSection.model_validate(loss)
    return Objective(
        section.hard_weight, section.soft_weight, section.temperature,
        kind=section.kind, options=section.options, standardize=section.standardize,
    )  # fmt: skip


def step_of(objective: Objective) -> Run:
    """Return a training step of the small student on one batch."""
    torch.manual_seed(0)
    student = cifar10_lightnn()
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    pixels = torch.randn(128, 3, 32, 32)
    compute = _loss_of(objective, 128, 10)

    def step() -> None:
        optimizer.zero_grad()
        compute(student(pixels)).backward()
        optimizer.step()

    return step


def loss_by_itself(objective: Objective, samples: int, classes: int, times: int) -> Run:
    """Return some forward and backward passes of a loss."""
    logits = torch.randn(samples, classes, requires_grad=True)
    compute = _loss_of(objective, samples, classes)

    def passes() -> None:
        for _ in range(times):
            compute(logits).backward()

    return passes


def _loss_of(objective: Objective, samples: int, classes: int) -> Callable[[Tensor], Tensor]:
    labels = torch.randint(classes, (samples,))
    targets = DenseTargets(3 * torch.randn(samples, classes))
    return lambda logits: objective(logits, targets, labels).total()


def in_turn(runs: list[Run], times: int = 1) -> list[list[float]]:
    """Return the processor seconds of each run, round by round, after one that does not count."""
    rounds = []
    for _ in range(ROUNDS + 1):
        began = [process_time()]
        for run in runs:
            for _ in range(times):
                run()
            began.append(process_time())
        rounds.append([(b - a) / times for a, b in pairwise(began)])
    return list(map(list, zip(*rounds[1:], strict=True)))


def costs(losses: list[dict[str, Any]]) -> None:
    """Add what each loss costs; the first is that of labels alone."""
    objectives = [objective_of(row["loss"]) for row in losses]
    steps = in_turn([step_of(one) for one in objectives], STEPS)
    for row, seconds in zip(losses, steps, strict=True):
        ratios = [ours / alone for ours, alone in zip(seconds, steps[0], strict=True)]
        quarter = len(ratios) // 4
        row["step_milliseconds"] = round(1e3 * median(seconds), 2)
        row["step_over_labels"] = round(median(ratios), 3)
        row["step_quartiles"] = [round(sorted(ratios)[n], 3) for n in (quarter, -1 - quarter)]
        row["loss_milliseconds"] = {}
    for name, (samples, classes, times) in SIZES.items():
        alone = in_turn([loss_by_itself(one, samples, classes, times) for one in objectives])
        for row, seconds in zip(losses, alone, strict=True):
            row["loss_milliseconds"][name] = round(1e3 * median(seconds) / times, 3)


def main() -> None:
    """Gather, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of a sweep over whole tables of losses")
    parser.add_argument(
        "others", type=Path, nargs="*", help="more of them, whose cost is not measured"
    )
    parser.add_argument("--no-cost", action="store_true", help="gather only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    losses = students([arguments.sweep, *arguments.others])
    if not arguments.no_cost:
        costs(losses[: len(students([arguments.sweep]))])
    print(json.dumps({"losses": losses}, indent=1))


if __name__ == "__main__":
    main()
