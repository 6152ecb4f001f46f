"""Measure kdscale on one bare GPU machine in minutes: tests, steps, views, a profile, runs.

    python benchmarks/gpu.py --minutes 10 --out DIR [--data DIR] [--device cuda|cpu]

The steps below are done in order of their worth, each in a process of its own and within a limit,
so that a fault or a shortage of memory costs one of them. Each leaves `DIR/NAME.json` when it is
finished, and the same command goes on where it stopped: what is finished is not done again, what
failed or ran out of time is. `DIR/gpu.json` holds all of it, for

    python benchmarks/results.py collect DIR/gpu.json docs/results/gpu.json --title T --command C

No network is used. Bring kdscale's dependencies (`--missing` prints those that this Python lacks;
`pip download` fetches their wheels on another machine), and in `--data` local copies of the data
sets, in folders `cifar10` and, if there is one, `tiny-imagenet`, and in
`tiny-imagenet-teacher.safetensors` the teacher of `tiny-imagenet-200.toml`, which also needs timm
(benchmarks/README.md makes both); without them, the steps that need them are left out by name.
`--device cpu` tries all of it small, without a GPU.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS_FILE = Path(__file__).with_name("gpu_steps.py")
RECIPE = Path(__file__).with_name("resnet.toml")
TINY_IMAGENET = Path(__file__).with_name("tiny-imagenet-200.toml")
_RESERVE = 5.0
"""Seconds at the end for the table."""
_LEAST = 8.0
"""Seconds below which no step is begun: libraries are not even loaded by then."""
_GRAPHS = (("resnet20", 128), ("torchvision/resnet18", 256))
"""Students whose steps are timed with CUDA graphs, and their batches: the small one is bound by the
launches of its kernels, which CUDA graphs save."""
_TO_STOP = 20.0
"""Seconds that a step gets to save its state after its limit."""


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement: a command that prints one JSON object as its last output."""

    name: str
    seconds: float
    """Limit, of 10 minutes in all."""
    command: Sequence[str]
    data: str | None = None
    """Folder or file below `--data` that it needs."""
    result: str | None = None
    """File below the output folder that holds its result, where it prints none."""
    needs_gpu: bool = False


# --------------------------------------------------------------------------- what is measured


def steps_of(data: Path, out: Path, minutes: float, *, on_gpu: bool) -> list[Step]:
    """Return all steps in order of their worth, with limits for so many minutes."""
    scale = minutes / 10
    common = ["--cache-root", str(out / "cache")]
    prepare, cifar10 = [], data / "cifar10"
    if not on_gpu:
        small = out / "small" / "cifar10"
        prepare = [Step("subset", 60, _own("subset", cifar10, small, 512, 256), "cifar10")]
        cifar10 = small
    steps = [
        Step("environment", 20, _own("environment")),
        Step("tests", 90, _own("tests")),
        *prepare,
        _bench(
            "cifar10-tutorial-best", 15 * scale, ["--data", str(cifar10), *common], data="cifar10"
        ),
        *_resnets(out, common, scale, on_gpu=on_gpu),
        Step("views", 40 * scale + 60, _own("views", cifar10, 30 * scale), "cifar10"),
        Step("profile", 60, _own("profile", out, 64)),
        *[_graphs(out, student, batch) for student, batch in _GRAPHS],
    ]
    runs = _runs(data, common, out) if on_gpu else [_small_run(cifar10, common, out)]
    return [*steps, *runs]


def _graphs(out: Path, student: str, batch: int) -> Step:
    name, command = student.rpartition("/")[2], _own("graphs", out, 64, student, batch)
    return Step(f"graphs-{name}", 120, command, needs_gpu=True)


def _own(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(STEPS_FILE), name, *map(str, arguments)]


def _bench(
    recipe: str, seconds: float, options: list[str], *, name: str = "", data: str | None = None
) -> Step:
    command = [sys.executable, "-m", "kdscale", "bench", recipe, *options]
    command += ["--seconds", f"{max(1.0, seconds):.0f}", "--json"]
    return Step(f"bench-{name or recipe}", 5 * seconds + 60, command, data)


def _resnets(out: Path, common: list[str], scale: float, *, on_gpu: bool) -> list[Step]:
    """ResNet-50 to ResNet-18: by size and precision, then compiled, then by batch size."""
    kinds = [(64, "float32", False, 8)]
    if on_gpu:
        kinds = [
            *product((64, 224), ("bfloat16", "float32", "float16"), (False,), (256,)),
            *product((64, 224), ("bfloat16",), (True,), (256,)),
            *product((64, 224), ("bfloat16",), (False,), (128, 512, 1024)),
        ]
    images = [
        Step(f"images-{size}", 60, _own("images", out, size, 2048 if on_gpu else 64))
        for size in dict.fromkeys(kind[0] for kind in kinds)
    ]
    return images + [_resnet(out, common, scale, *kind) for kind in kinds]


def _resnet(
    out: Path,
    common: list[str],
    scale: float,
    size: int,
    precision: str,
    compiled: bool,
    batch: int,
) -> Step:
    crop = f'{{name="random_resized_crop", size={size}}}'
    fields = {
        "views.operations": f'[{crop}, "random_horizontal_flip"]',
        "student.train.precision": precision,
        "teacher.precision": precision,
        "student.train.global_batch_size": batch,
        **({"student.train.compile": "true"} if compiled else {}),
    }
    options = ["--data", str(out / f"synthetic-{size}"), *common]
    for field, value in fields.items():
        options += ["--set", f"{field}={value}"]
    name = f"resnet-{size}-{precision}-{batch}{'-compiled' if compiled else ''}"
    return _bench(str(RECIPE), 8 * scale, options, name=name)


def _runs(data: Path, common: list[str], out: Path) -> list[Step]:
    """Whole recipes; what does not end within its limit goes on at the next call."""
    recipes = {
        "cifar10-tutorial-best": "cifar10",
        "cifar10-keras-best": "cifar10",
        "cifar10-features-best": "cifar10",
        "tiny-imagenet-best": "tiny-imagenet",
    }
    steps = [
        _run(recipe, data / folder, folder, [*common, "--seeds", "3"], out)
        for recipe, folder in recipes.items()
    ]
    return [*steps[:-1], _given_teacher(data, common, out), steps[-1]]


def _given_teacher(data: Path, common: list[str], out: Path) -> Step:
    """All classes of Tiny ImageNet, with a teacher that is brought along."""
    weights = "tiny-imagenet-teacher.safetensors"
    options = [*common, "--set", f"teacher.weights={data / weights}"]
    step = _run(str(TINY_IMAGENET), data / "tiny-imagenet", weights, options, out)
    return replace(step, seconds=600)


def _small_run(cifar10: Path, common: list[str], out: Path) -> Step:
    options = [*common, "--set", "views.count=1"]
    for model in ("teacher", "student"):
        options += ["--set", f"{model}.train.epochs=1"]
    return _run("cifar10-tutorial-best", cifar10, "cifar10", options, out)


def _run(recipe: str, source: Path, folder: str, options: list[str], out: Path) -> Step:
    run = f"runs/{Path(recipe).stem}"
    command = [sys.executable, "-m", "kdscale", "run", recipe, "--data", str(source), "--online"]
    command += ["--run", str(out / run), *options]
    return Step(f"run-{Path(recipe).stem}", 300, command, folder, f"{run}/result.json")


# --------------------------------------------------------------------------- how it is done


def measure(steps: Sequence[Step], data: Path, out: Path, ends: float, device: str) -> None:
    """Do the steps that are not finished, while there is time."""
    for step in steps:
        target = out / f"{step.name}.json"
        left = ends - monotonic() - _RESERVE
        if target.exists() and "error" not in json.loads(target.read_text()):
            print(f"{step.name}: finished before", flush=True)
        elif step.needs_gpu and device == "cpu":
            print(f"{step.name}: left out, it needs a GPU", flush=True)
        elif step.data is not None and not (data / step.data).exists():
            print(f"{step.name}: left out, there is no {data / step.data}", flush=True)
        elif left < _LEAST:
            print(f"{step.name}: left out, {max(0.0, left):.0f} s are left", flush=True)
        else:
            began = monotonic()
            found = _do(step, out, min(step.seconds, left), device)
            found["wall_seconds"] = round(monotonic() - began, 1)
            _write(target, found)
            ended = found.get("error", "done")
            print(f"{step.name}: {ended} ({found['wall_seconds']:.0f} s)", flush=True)


def _do(step: Step, out: Path, seconds: float, device: str) -> dict[str, Any]:
    """Run a step within its limit; a fault is a result too."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with (out / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        printed, timed_out = _communicate(process, seconds)
    if timed_out:
        return {"error": f"stopped after {seconds:.0f} s"}
    if process.returncode:
        lines = [line for line in (out / f"{step.name}.log").read_text().splitlines() if line]
        return {"error": f"exit code {process.returncode}: {lines[-1] if lines else printed}"}
    if step.result is not None:
        return dict(json.loads((out / step.result).read_text()))
    return dict(json.loads(printed[printed.index("{") :]))


def _communicate(process: subprocess.Popen[str], seconds: float) -> tuple[str, bool]:
    """Return what a process prints, and whether it had to be stopped."""
    try:
        return process.communicate(timeout=seconds)[0], False
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                return process.communicate(timeout=_TO_STOP)[0], True
            except subprocess.TimeoutExpired:
                continue
        raise


def _write(path: Path, found: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.replace(path)


def gather(steps: Sequence[Step], out: Path) -> dict[str, Any]:
    """Return the results of all steps that have one, by name, as one object."""
    paths = {step.name: out / f"{step.name}.json" for step in steps}
    return {"gpu": {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}}


def missing() -> list[str]:
    """Return the packages that kdscale needs and this Python lacks, as pip names them."""
    wanted = [line for line in requires("kdscale") or [] if "extra ==" not in line]
    names = [re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in (*wanted, "pytest")]
    lacking = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    return lacking


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="to spend in all")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", default=(), help="beginnings of steps' names")
    parser.add_argument("--missing", action="store_true", help="print packages to bring, and end")
    a = parser.parse_args()
    if a.missing:
        print("\n".join(missing()))
        return
    ends = monotonic() + 60 * a.minutes
    out, data = a.out.absolute(), a.data.absolute()
    out.mkdir(parents=True, exist_ok=True)
    steps = steps_of(data, out, a.minutes, on_gpu=a.device == "cuda")
    if a.only:
        steps = [step for step in steps if step.name.startswith(tuple(a.only))]
    measure(steps, data, out, ends, a.device)
    found = gather(steps, out)
    _write(out / "gpu.json", found)
    from gpu_table import gpu_tables  # kdscale, which may have been what failed

    print(f"\n{gpu_tables(found['gpu'])}")


if __name__ == "__main__":
    main()
