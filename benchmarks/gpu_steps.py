"""The steps of `benchmarks/gpu.py` that are not commands; each prints one JSON object."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from kdscale.commands.timing import TimedLoop, TimedSetup, synchronize
from kdscale.config import load_recipe
from kdscale.data.image_dataset import load_images
from kdscale.data.loader import DeviceImages
from kdscale.data.views.schedule import ViewSchedule
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.locations import Locations
from kdscale.losses.objective import SUPERVISED
from kdscale.target_sources.base import NoTargets

ROOT = Path(__file__).parents[1]
_CLASSES = 1000
_TESTS = ("tests/gpu", "tests/data/test_equality.py", "tests/data/test_geometry.py")
"""Where tests that need a GPU are; other files need more packages than such a machine has."""
_WARM_UP, _PROFILED = 5, 5
"""Optimizer steps before, and in, a profile."""
_LONGEST = 10
"""Kernels named in a profile."""
_COMPILE = {"eager": "false", "compiled": "true", "graphs": '"reduce-overhead"'}
"""`student.train.compile` of the steps that `graphs` compares."""
_GRAPHS_ROUNDS, _GRAPHS_STEPS = 30, 10
"""Rounds of each kind of step, and steps in a round."""
_WORTH = 0.10
"""Share of the time of compiled steps that CUDA graphs have to save to be worth their limits."""


def environment() -> dict[str, Any]:
    """Return what the machine is, and how fast it copies and multiplies."""
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "cores": os.cpu_count(),
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    device = _device()
    size = 8192 if device.type == "cuda" else 512
    bytes_copied = 2**30 if device.type == "cuda" else 2**24
    source = torch.randint(0, 255, (bytes_copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source))
    found["copy_bytes_per_second"] = round(2 * bytes_copied / seconds)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = _seconds(lambda a=a: a @ a)
        found[f"matmul_{name}_flops_per_second"] = round(2 * size**3 / seconds)
    return found


def tests() -> dict[str, Any]:
    """Run the tests that need a GPU; count them, and name those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *_TESTS, "-m", "gpu", "-n", "0", "-q"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314
    if suite is None:
        raise SystemExit("pytest wrote no report")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed, "seconds": float(suite.get("time", 0.0))}


def images(out: str, size: str, count: str) -> dict[str, Any]:
    """Write a labelled split of synthetic images of 1,000 classes as parquet."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Pillow

    generator, side = torch.Generator().manual_seed(0), int(size)
    coarse = torch.rand(int(count), 3, 8, 8, generator=generator) * 255
    pixels = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    arrays = pixels.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = {
        "image": [Pillow.fromarray(array) for array in arrays],
        "label": [index % _CLASSES for index in range(len(arrays))],
    }
    names = [f"class-{label:03}" for label in range(_CLASSES)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    folder = Path(out) / f"synthetic-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train-00000-of-00001.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return {"images": len(arrays), "bytes": path.stat().st_size}


def subset(source: str, target: str, num_train: str, num_test: str) -> dict[str, Any]:
    """Write the first images of the splits of a local data set as another one."""
    from pyarrow import parquet

    Path(target).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("test", num_test)):
        (path,) = Path(source).glob(f"{split}-*.parquet")
        parquet.write_table(parquet.read_table(path).slice(0, int(count)), f"{target}/{path.name}")
    return {"train": int(num_train), "test": int(num_test)}


def views(source: str, seconds: str) -> dict[str, Any]:
    """Time the views of every pipeline of `benchmarks/views.py` on the device."""
    import views as throughput

    split = load_images(source, split="train", root=Path(tempfile.gettempdir()) / "kdscale-views")
    pictures = DeviceImages(split, _device())
    each = float(seconds) / len(throughput.ROWS)
    rates = {}
    for name, row in throughput.ROWS.items():
        batches = throughput.our_batches(row, pictures)
        for _ in islice(batches, 3):
            pass
        synchronize()
        count, began = 0, perf_counter()
        while perf_counter() - began < each:
            next(batches)
            count += throughput.BATCH_SIZE
            synchronize()
        rates[name] = round(count / (perf_counter() - began))
    return {"images_per_second": rates, "batch_size": throughput.BATCH_SIZE}


def graphs(out: str, size: str, student: str, batch: str) -> dict[str, Any]:
    """Time supervised steps of a student eager, compiled, and compiled with CUDA graphs, in turns.

    Ratios are taken within a round.
    """
    loops, first = {}, {}
    for name, value in _COMPILE.items():
        changes = [f"student.model={student}", f"student.train.compile={value}"]
        setup = _resnet_setup(out, size, int(batch), *changes)
        trainer = setup.trainer(NoTargets(ViewSchedule(2, 0)), SUPERVISED)
        loops[name] = TimedLoop(lambda count, of=trainer: of.run(of.state.step + count))
        first[name] = round(loops[name].timed(_WARM_UP), 3)  # compiles, and records the graphs
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(_GRAPHS_ROUNDS):
        for name in sorted(loops, reverse=bool(turn % 2)):
            seconds[name].append(loops[name].timed(_GRAPHS_STEPS) / _GRAPHS_STEPS)
    over = {
        name: median(a / b for a, b in zip(seconds["graphs"], seconds[name], strict=True))
        for name in ("eager", "compiled")
    }
    return {
        "batch_size": int(batch),
        **{f"{name}_step_seconds": round(median(found), 6) for name, found in seconds.items()},
        **{f"graphs_over_{name}_time": round(ratio, 4) for name, ratio in over.items()},
        "saves_more_than_10_percent": over["compiled"] < 1 - _WORTH,
        "first_steps_seconds": first,
        "memory_bytes": torch.cuda.max_memory_allocated(),
    }


def _resnet_setup(out: str, size: str, batch: int, *changes: str) -> TimedSetup:
    """Return steps of `resnet.toml`, with some fields changed, on synthetic images of one size."""
    crop = f'{{name="random_resized_crop", size={size}}}'
    fields = [
        f'views.operations=[{crop}, "random_horizontal_flip"]',
        f"student.train.global_batch_size={batch}",
        *changes,
    ]
    data = str(Path(out) / f"synthetic-{size}")
    recipe = load_recipe(str(Path(__file__).with_name("resnet.toml")), fields, data)
    locations = Locations(cache_root=Path(out) / "cache")
    return TimedSetup(Experiment(recipe, locations, random_teacher=True), batch)


def profile(out: str, size: str) -> dict[str, Any]:
    """Profile supervised steps of ResNet-18: kernels, how long the device idles, what it waits for.

    Also times steps against the same ones on one fixed batch, which need no data path.
    """
    batch = 256 if _device().type == "cuda" else 8
    setup = _resnet_setup(out, size, batch)
    trainer = setup.trainer(NoTargets(ViewSchedule(2, 0)), SUPERVISED)

    def step() -> None:
        trainer.run(trainer.state.step + 1)

    for _ in range(_WARM_UP):
        step()
    synchronize()
    found = _kernels(step)
    loader = setup.loader(ViewSchedule(2, 0))
    fixed = loader.batch(0)
    with_views, count = _seconds(step), cycle(range(loader.steps_per_epoch))
    rendering = _seconds(lambda: loader.batch(next(count)))
    return found | {
        "batch_size": batch,
        "pixels": list(fixed.pixels.shape[-2:]),
        "step_seconds": with_views,
        "views_seconds": rendering,
    }


def _kernels(step: Callable[[], None]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    began = perf_counter()
    with record(activities=activities) as recorded:
        for _ in range(_PROFILED):
            step()
        synchronize()
    wall = perf_counter() - began
    totals = [one for one in recorded.key_averages() if one.self_device_time_total > 0]
    totals.sort(key=lambda one: -one.self_device_time_total)
    host = {one.key: one.count for one in recorded.key_averages()}
    busy = sum(one.self_device_time_total for one in totals) / 1e6
    return {
        "kernels_per_step": sum(one.count for one in totals) / _PROFILED,
        "device_busy_share": round(busy / wall, 4),
        "synchronizations_per_step": (
            sum(n for name, n in host.items() if "Synchronize" in name) / _PROFILED
        ),
        "copies_per_step": (
            sum(one.count for one in totals if one.key.startswith("Memcpy")) / _PROFILED
        ),
        "longest_kernels": {
            one.key[:80]: round(one.self_device_time_total / 1e3 / _PROFILED, 3)
            for one in totals[:_LONGEST]
        },
    }


def _seconds(work: Callable[[], Any], rounds: int = 10) -> float:
    """Median of some calls, after two that do not count."""
    times = []
    for _ in range(rounds + 2):
        synchronize()
        began = perf_counter()
        work()
        synchronize()
        times.append(perf_counter() - began)
    return median(times[2:])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = {
        one.__name__: one for one in (environment, tests, subset, images, views, graphs, profile)
    }
    parser.add_argument("step", choices=steps)
    parser.add_argument("arguments", nargs="*")
    a = parser.parse_args()
    print(json.dumps(steps[a.step](*a.arguments)))


if __name__ == "__main__":
    main()
