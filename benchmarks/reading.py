"""What reading targets costs: a cache of ImageNet's shape, read at a demanded rate.

`make` writes such a cache, of made-up answers; `pace` asks for batches at a rate and prints what it
had to wait; `gather` puts several of those and outputs of `kdscale bench --json` into one document
for `benchmarks/results.py`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
import psutil
import torch

from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.config import parse_bytes
from kdscale.data.rng import permutation
from kdscale.data.views.batch_plan import View
from kdscale.distributed import reuse_freed_memory
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.memory_plan import EVERYTHING

# --------------------------------------------------------------------------- a made-up cache


def made_up_cache(path: Path, samples: int, classes: int, views: int) -> None:
    """A finished float16 cache whose answers are noise, which hardly compresses."""
    asked = Manifest(
        dataset={
            "fingerprint": "0" * 64,
            "num_samples": samples,
            "classes": [str(number) for number in range(classes)],
            "source": "made-up",
            "split": "train",
        },
        views={
            "generator": 1,
            "seed": 0,
            "operations": [{"name": "random_horizontal_flip", "p": 0.5}],
        },
        teacher={
            "weights_sha256": "0" * 64,
            "preprocess": {"mean": [0.5], "std": [0.25], "size": None},
            "precision": "float32",
            "memory_format": "contiguous",
            "model": "none",
        },
        encoding="float16",
        num_views=views,
        num_samples=samples,
        num_classes=classes,
        shard_samples=4096,
        bytes_per_target=2 * classes,
    )
    manifest = create_or_resume(path, asked, np.arange(samples) % classes)
    writer = ShardWriter(path, manifest)
    noise = (np.random.default_rng(0).standard_normal((4096, classes)) * 2).astype(np.float16)
    for view, shard in np.argwhere(~writer.committed()).tolist():
        start, stop = manifest.shard_range(shard)
        rows = np.roll(noise, (17 * view + shard, shard), (0, 1))[: stop - start]
        digests = np.arange(start, stop, dtype=np.uint64) + 1
        writer.write(view, shard, {"logits": rows, "digests": digests}, 0.0)
    finish(path, manifest, {})


def prepare_page_cache(path: Path, *, cold: bool) -> None:
    """Let the system forget the files, so that they are read from the disk, or have them all."""
    for file in path.rglob("*"):
        if file.is_file() and cold:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        elif file.is_file():
            file.read_bytes()


# --------------------------------------------------------------------------- pace


def pace(
    path: Path,
    memory_bytes: int | None,
    *,
    rate: int,
    batch: int,
    seconds: float,
    cold: bool,
    epochs_before: int,
) -> dict[str, Any]:
    """Ask for one batch after another, so many targets a second, and see what that takes.

    A step asks for its batch's targets and gets them decoded; then the process sleeps until the
    next batch is due, as if a device computed. What comes too late moves all that follows.
    """
    prepare_page_cache(path, cold=cold)
    reuse_freed_memory()  # as a training on a CPU does
    began = perf_counter()
    cached = CachedTargets.open(path, memory=EVERYTHING if memory_bytes is None else memory_bytes)
    batches = _batches(cached, batch)
    cached.read(*next(batches))
    start_seconds = perf_counter() - began
    for _ in range(epochs_before * -(-cached.manifest.num_samples // batch)):
        cached.read(*next(batches))
    go_first()
    before, processor = cached.reading(), psutil.Process().cpu_times()
    took, waits, asked_for = [], [before.waited_seconds], 0
    began = due = perf_counter()
    ordering = 0.0
    while due - began < seconds:
        waited, asked = cached.reading().waited_seconds, perf_counter()
        view, index = next(batches)
        ordering += perf_counter() - asked - (cached.reading().waited_seconds - waited)
        asked = perf_counter()
        due = max(due, asked)
        cached.read(view, index)
        took.append(perf_counter() - asked)
        waits.append(cached.reading().waited_seconds)
        asked_for += len(index)
        due += len(index) / rate
        sleep(max(0.0, due - perf_counter()))
    elapsed = perf_counter() - began
    after, used = cached.reading(), psutil.Process().cpu_times()
    cached.close()
    return {
        "windows": after.num_windows,
        "held_bytes": after.buffer_bytes,
        "resident_set_bytes": psutil.Process().memory_info().rss,
        "cold": cold,
        "epochs_before": epochs_before,
        "demanded_per_second": rate,
        "targets_per_second": round(asked_for / elapsed),
        "ordering_share": ordering / elapsed,
        "seconds": round(elapsed, 2),
        "waited_share": (after.waited_seconds - before.waited_seconds) / elapsed,
        "longest_wait_seconds": max(b - a for a, b in pairwise(waits)),
        "gather_milliseconds": 1000 * median(took),
        "processor_share": (used.user + used.system - processor.user - processor.system) / elapsed,
        "read_amplification": after.amplification,
        "start_seconds": round(start_seconds, 2),
    }


def go_first() -> None:
    """Let this thread go before those that read, as a thread that wakes up usually does.

    Under a real-time policy (`chrt -f`), which keeps other work of the machine away, it would wait.
    """
    policy = os.sched_getscheduler(0)
    if policy in (os.SCHED_FIFO, os.SCHED_RR):
        priority = os.sched_getparam(0).sched_priority
        os.sched_setscheduler(0, policy, os.sched_param(priority + 1))


def _batches(cached: CachedTargets, batch: int) -> Iterator[tuple[View, torch.Tensor]]:
    """Views and samples in an order that training could have, without end."""
    for epoch in count():
        cached.start_epoch(epoch)
        order = permutation(cached.manifest.num_samples, epoch)
        if cached.windows is not None:
            order = order[cached.windows.number(epoch, order).argsort(stable=True)]
        for index in order.split(batch):
            yield cached.schedule.view(epoch, index), index


def main() -> None:
    """Make the cache, read it, or gather what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="verb", required=True)
    making = commands.add_parser("make")
    making.add_argument("cache", type=Path)
    making.add_argument("--samples", type=int, default=1_280_000)
    making.add_argument("--classes", type=int, default=1000)
    making.add_argument("--views", type=int, default=2)
    pacing = commands.add_parser("pace")
    pacing.add_argument("cache", type=Path)
    pacing.add_argument("--memory", help='such as "512 MiB"; none: all that two epochs show')
    pacing.add_argument("--rate", type=int, default=100_000, help="targets a second")
    pacing.add_argument("--batch", type=int, default=1024)
    pacing.add_argument("--seconds", type=float, default=26)
    pacing.add_argument("--cold", action="store_true", help="drop the page cache's copy first")
    pacing.add_argument("--epochs-before", type=int, default=0, help="epochs that do not count")
    gathering = commands.add_parser("gather")
    gathering.add_argument("paces", nargs="+", type=Path)
    gathering.add_argument("--bench", nargs="*", type=Path, default=[], help="kdscale bench --json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.verb == "make":
        made_up_cache(a.cache, a.samples, a.classes, a.views)
        return
    if a.verb == "pace":
        memory = None if a.memory is None else parse_bytes(a.memory)
        found = pace(
            a.cache,
            memory,
            rate=a.rate,
            batch=a.batch,
            seconds=a.seconds,
            cold=a.cold,
            epochs_before=a.epochs_before,
        )
    else:
        found = {
            "paces": [json.loads(path.read_text()) for path in a.paces],
            "benches": [json.loads(path.read_text()) for path in a.bench],
        }
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
