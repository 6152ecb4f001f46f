"""Decode photographs ahead of training: in threads or processes, the main thread idle or busy.

    python benchmarks/decoding.py [--images 256] [--rounds 9] > decoding.json

JPEG pictures of about 500 x 375 pixels are decoded and cropped to 224 pixels, as a training with
`random_resized_crop` prefetches them. Processes write into memory that is shared, so no pixel is
pickled. A busy main thread launches small operations all the time, as a training step on a GPU
does: it competes for the interpreter's lock with decoding threads, and for a core with both. Ways
and numbers of workers take turns; the first pass, which starts them, is timed apart.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.pixel_sources import _compute_alone, _decoded
from kdscale.data.views.pipeline import Pipeline

_PIPELINE = Pipeline.parse([{"name": "random_resized_crop", "size": 224}], 0)
_TASK = 8  # images: what a process is given at once
_state: dict[str, Any] = {}


def write_pictures(folder: Path, count: int) -> None:
    """Write smooth noise with grain: about 50 kB each, as a photograph of this size."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        smooth = np.asarray(
            coarse.resize((500 - number % 3, 375), Image.Resampling.BICUBIC), np.int16
        )
        grain = generator.normal(0, 6, smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        path = folder / "set" / "train" / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{number}.jpg", quality=88)


def opened(folder: Path) -> ImageDataset:
    """Open the pictures."""
    return load_images(str(folder / "set"), split="train", root=folder / "cache")


def begin(folder: Path | None, images: ImageDataset | None, buffer: Tensor) -> None:
    """Start a worker: a process opens the pictures itself."""
    _compute_alone()
    _state["images"] = opened(folder) if folder is not None else images
    _state["buffer"] = buffer


def decode(view: int, samples: range) -> float:
    """Decode and crop some pictures into the buffer; return the seconds of a core that it took."""
    began = thread_time()
    for sample in samples:
        pixels = _decoded(_state["images"].pixels, _PIPELINE, _PIPELINE.leading, view, sample)
        _state["buffer"][sample].copy_(pixels[0])
    return thread_time() - began


@dataclass(frozen=True, slots=True)
class Pass:
    """All pictures decoded once."""

    seconds: float
    core_seconds: float
    """Time of cores that the workers used."""
    operations: int
    """Operations that the main thread launched meanwhile."""


def timed(workers: Executor, view: int, count: int, busy: bool) -> Pass:
    """Decode all pictures once."""
    began, operations, one = perf_counter(), 0, torch.ones(64)
    parts = [range(at, min(at + _TASK, count)) for at in range(0, count, _TASK)]
    tasks = [workers.submit(decode, view, part) for part in parts]
    while busy and not all(task.done() for task in tasks):
        for _ in range(50):
            one.mul_(1.0).add_(0.0)
        operations += 100
    core_seconds = sum(task.result() for task in tasks)
    return Pass(perf_counter() - began, core_seconds, operations)


def ways(folder: Path, images: ImageDataset, buffer: Tensor) -> Iterator[tuple[str, int, Executor]]:
    """Threads and processes, one to as many as there are cores."""
    context = multiprocessing.get_context("forkserver")
    for number in range(1, len(os.sched_getaffinity(0)) + 1):
        yield (
            "threads",
            number,
            ThreadPoolExecutor(number, initializer=begin, initargs=(None, images, buffer)),
        )
        yield (
            "processes",
            number,
            ProcessPoolExecutor(
                number, context, initializer=begin, initargs=(folder, None, buffer)
            ),
        )


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Images a second of each way, by rounds that take turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, count)
        images = opened(folder)
        buffer = torch.zeros(count, 3, 224, 224, dtype=torch.uint8).share_memory_()
        pools = list(ways(folder, images, buffer))
        starts = {}
        for way, number, workers in pools:
            starts[way, number] = timed(workers, 0, count, False).seconds
            timed(workers, 0, count, False)
        passes: dict[tuple[str, int, bool], list[Pass]] = {}
        for turn in range(rounds):
            for way, number, workers in pools[turn % len(pools) :] + pools[: turn % len(pools)]:
                for busy in (False, True):
                    found = timed(workers, turn, count, busy)
                    passes.setdefault((way, number, busy), []).append(found)
        for _, _, workers in pools:
            workers.shutdown()
    rows = [
        {
            "workers": way, "number": number, "main thread": "busy" if busy else "idle",
            "images_per_second": median(count / one.seconds for one in found),
            "deviation": stdev(count / one.seconds for one in found),
            "core_ms_per_image": median(1000 * one.core_seconds / count for one in found),
            "operations_per_second": median(one.operations / one.seconds for one in found),
            "first_pass_seconds": starts[way, number],
        }
        for (way, number, busy), found in sorted(passes.items())
    ]  # fmt: skip
    return {
        "images": count,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "decoding": rows,
    }


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    json.dump(measure(options.images, options.rounds), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
