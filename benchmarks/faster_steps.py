"""float16 and `compile` against float32: losses of `cifar10-tutorial-best` on a subset, and a kill.

    python benchmarks/faster_steps.py --data FOLDER --teacher FILE --out WORK > faster-steps.json

trains the student from one cache with three seeds and each setting, then kills one training of each
setting (SIGKILL) and resumes it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from gpu_steps import subset
from safetensors.torch import load_file

from kdscale.runs.log import read_metrics

SETTINGS = {"float32": [], "float16": ["precision=float16"], "compiled": ["compile=true"]}
SEEDS, EPOCHS, KILLED_AFTER = 3, 3, 13
TRAIN, TEST, BATCH = 320, 200, 32  # in float16 a CPU takes seconds a step


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--data", "--teacher", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    out, teacher = arguments.out, str(arguments.teacher.resolve())
    images = out / "images"
    if not images.exists():
        subset(str(arguments.data), str(images), str(TRAIN), str(TEST))
    common = ["cifar10-tutorial-best", "--data", str(images), "--cache-root", str(out / "cache")]
    common += [
        "--set",
        f"teacher.weights={teacher}",
        "--set",
        "teacher.rename={'f.'='features.','c.'='classifier.'}",
    ]
    common += ["--set", f"student.train.epochs={EPOCHS}"]
    common += ["--set", f"student.train.global_batch_size={BATCH}"]
    common += ["--set", "student.train.log_every=1", "--set", "student.train.checkpoint_every=5"]

    def command(setting: str, run: Path, seed: int) -> list[str]:
        changes = [word for one in SETTINGS[setting] for word in ("--set", f"student.train.{one}")]
        words = ["train", *common, *changes, "--targets", "cache", "--seed", str(seed)]
        return [sys.executable, "-m", "kdscale", *words, "--run", str(run)]

    for setting in SETTINGS:
        for seed in range(SEEDS):
            run = out / f"{setting}-seed{seed}"
            if not (run / "result.json").exists():
                subprocess.run(command(setting, run, seed), check=True, stdout=sys.stderr)
        _kill_and_resume(command(setting, out / f"{setting}-killed", 0), out / f"{setting}-killed")
    print(json.dumps(_summary(out), indent=1))


def _kill_and_resume(command: list[str], run: Path) -> None:
    if (run / "result.json").exists():
        return
    with subprocess.Popen(command, stdout=sys.stderr) as training:
        while training.poll() is None and len(_losses(run)) < KILLED_AFTER:
            time.sleep(0.01)
        training.kill()
    subprocess.run([*command, "--resume"], check=True, stdout=sys.stderr)


def _losses(run: Path) -> list[float]:
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().count("\n")
    return [one["loss"] for one in read_metrics(run) if "loss" in one] if lines else []


def _summary(out: Path) -> dict[str, str]:
    steps = EPOCHS * -(-TRAIN // BATCH)
    found = {}
    exact = [_losses(out / f"float32-seed{seed}") for seed in range(SEEDS)]
    for setting in SETTINGS:
        runs = [out / f"{setting}-seed{seed}" for seed in range(SEEDS)]
        losses = [_losses(run) for run in runs]
        last = [mean(one[-10:]) for one in losses]
        results = [json.loads((run / "result.json").read_text()) for run in runs]
        found[f"{setting}: loss, mean of the last 10 of {steps} steps"] = _each(last, 4)
        if setting != "float32":
            apart = [
                max(abs(a - b) for a, b in zip(one, other, strict=True))
                for one, other in zip(losses, exact, strict=True)
            ]
            found[f"{setting}: largest distance from float32 in a step, same seed"] = _each(
                apart, 4
            )
        top1 = [100 * one["top1_accuracy"] for one in results]
        found[f"{setting}: top-1 on {TEST:,} test images, %"] = _each(top1, 1)
        if setting == "float16":
            skipped = [one["skipped_steps"] for one in results]
            found["float16: steps without finite gradients"] = _each(skipped, 0)
        if setting == "compiled":
            seconds = [one["compile_seconds"] for one in results]
            found["compiled: first step, s"] = _each(seconds, 0)
        found[f"{setting}: killed after step {KILLED_AFTER} or later, resumed"] = _compared(
            out / f"{setting}-killed", runs[0]
        )
    return found


def _compared(one: Path, other: Path) -> str:
    ours, theirs = (load_file(run / "weights.safetensors") for run in (one, other))
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    alike = _losses(one) == _losses(other)
    return "weights and losses bit-identical" if same and alike else "DIFFERENT"


def _each(values: list[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    main()
