"""Batches of the loader, of a training step up to its loss, of an evaluation and of a build."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, nn

from kdscale.building.shards import ShardBuilder
from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.evaluation.metrics import Counts, predict
from kdscale.losses.objective import Objective
from kdscale.models.preprocess import Preprocess
from kdscale.target_sources import cached
from kdscale.target_sources.base import LiveTeacher, NoTargets, TargetSource
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.clean_image import CleanImageTargets
from kdscale.target_sources.memory_plan import plan_memory
from kdscale.target_sources.prefetch import row_bytes
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher
from kdscale.training.trainer import ForwardPass, Trainer
from sync_cases.counting import CUDA, Case, SameThread

_SAMPLES, _SIDE, _CLASSES, _BATCH, _SHARD = 1024, 32, 10, 128, 64
_CLASS_NAMES = tuple(map(str, range(_CLASSES)))
_CROP = [{"name": "random_crop", "padding": 4}, "random_horizontal_flip"]
_PREPROCESS = Preprocess((0.5,) * 3, (0.25,) * 3, None)


def cases() -> Iterator[Case]:
    """Batches of the loader, steps by source of targets, and a batch of an evaluation."""
    yield Case("loader", partial(_loading, _CROP))
    yield Case("loader, mixup", partial(_loading, [*_CROP, "mixup"]))
    yield Case("loader, views shifted", partial(_loading, _CROP, shift_every=_SHARD))
    yield Case("loader, not resident", partial(_loading, _CROP, memory_bytes=0), 1)
    yield Case("step, no targets", partial(_training, "none"))
    yield Case("step, no targets, mixup", partial(_training, "none", mixing=["mixup"]))
    yield Case("step, live teacher", partial(_training, "teacher"))
    yield Case("step, cache", partial(_training, "cache"))
    yield Case("step, cache, digests compared", partial(_training, "cache", checks=True), 1)
    yield Case("step, cache by windows", partial(_training, "cache", windows=True))
    yield Case("step, cache, mixup", partial(_training, "cache", mixing=["mixup"]))
    yield Case("step, cache, images not resident", partial(_training, "cache", memory_bytes=0), 1)
    yield Case("step, clean images' targets, mixup", partial(_training, "fixed", mixing=["mixup"]))
    yield Case("evaluation", _evaluating)
    # Of a whole shard, which is one batch here: its samples to the device, its digests back.
    yield Case("build, a shard of one batch", _building, 2)


def _images(memory_bytes: int | None = None) -> DeviceImages:
    pixels = np.zeros((_SAMPLES, 3, _SIDE, _SIDE), np.uint8)
    labels = np.arange(_SAMPLES) % _CLASSES
    split = ImageDataset(pixels, labels, _CLASS_NAMES, "", "synthetic", "train")
    images = DeviceImages(split, CUDA, memory_bytes)
    if memory_bytes is not None:  # what is counted is counted in this thread
        images._pixels._threads = SameThread()  # type: ignore[attr-defined]
    return images


def _views(operations: list[Any]) -> Pipeline:
    return Pipeline.parse(operations, 0, pairing=MixPairs(_SAMPLES, within=_SHARD))


def _loader(
    views: Pipeline, schedule: ViewSchedule, memory_bytes: int | None = None, windows: Any = None
) -> BatchLoader:
    return BatchLoader(
        _images(memory_bytes), torch.arange(_SAMPLES), views, schedule,
        seed=0, global_batch_size=_BATCH, windows=windows,
    )  # fmt: skip


def _loading(
    operations: list[Any], shift_every: int | None = None, memory_bytes: int | None = None
) -> Callable[[], object]:
    loader = _loader(_views(operations), ViewSchedule(2, 0, shift_every), memory_bytes)
    steps = count()
    return lambda: loader.batch(next(steps))


def _training(
    targets: str,
    mixing: list[Any] | None = None,
    windows: bool = False,
    memory_bytes: int | None = None,
    checks: bool = False,
) -> Callable[[], object]:
    """A step up to its loss; `backward` needs a GPU."""
    clean = targets == "fixed"
    views = _views([*_CROP, *(mixing or [])])
    source = _source(targets, views, windows)
    loader = _loader(views, source.schedule, memory_bytes, source.windows)
    if clean:
        source = CleanImageTargets(source, loader.images, source.schedule)  # type: ignore[arg-type]
    student = ForwardPass(_model(), _PREPROCESS, CUDA, precision="bfloat16")
    objective = Objective(0.5, 0.5 if targets != "none" else 0.0, 4.0)
    trainer = Trainer(
        student, loader, source, objective, SimpleNamespace(),  # type: ignore[arg-type]
        SimpleNamespace(device=CUDA, num_processes=1),  # type: ignore[arg-type]
    )  # fmt: skip

    def step() -> Tensor:
        trainer._start_epoch()
        if not checks and targets in ("cache", "fixed"):
            getattr(source, "clean", source)._num_checked = cached._CHECKED_SAMPLES
        loss = trainer.losses_of(loader.batch(trainer.state.step)).total()
        trainer.state.step += 1
        return loss

    return step


def _source(targets: str, views: Pipeline, windows: bool) -> TargetSource:
    schedule = ViewSchedule(2, 0)
    if targets == "none":
        return NoTargets(schedule)
    if targets == "teacher":
        return LiveTeacher(_teacher(), schedule)
    shown = Pipeline(()) if targets == "fixed" else views
    manifest = _manifest(shown)
    memory_bytes = row_bytes(manifest) * _SAMPLES * 3 // 4 if windows else None
    memory = plan_memory(memory_bytes, [manifest], num_views=2, epochs=1)
    folder = tempfile.TemporaryDirectory()
    _write(Path(folder.name) / "cache", manifest)
    found = CachedTargets.open(Path(folder.name) / "cache", device=CUDA, memory=memory)
    found._memory.segments._thread = SameThread()  # type: ignore[assignment]
    finalize(found, folder.cleanup)
    return found


def _manifest(views: Pipeline) -> Manifest:
    dataset = {
        "fingerprint": "f" * 64, "num_samples": _SAMPLES, "classes": list(_CLASS_NAMES),
        "source": "synthetic", "split": "train",
    }  # fmt: skip
    teacher = {
        "weights_sha256": "a" * 64, "preprocess": _PREPROCESS.describe(), "precision": "float32",
        "memory_format": "contiguous", "model": "linear", "top1_accuracy": None,
    }  # fmt: skip
    return Manifest(
        dataset=dataset, views=views.describe(), teacher=teacher, encoding="float16", num_views=2,
        num_samples=_SAMPLES, num_classes=_CLASSES, shard_samples=_SHARD,
        bytes_per_target=2 * _CLASSES, fidelity={}, versions={},
    )  # fmt: skip


def _write(path: Path, manifest: Manifest) -> None:
    manifest = create_or_resume(path, manifest, np.arange(_SAMPLES) % _CLASSES)
    writer = ShardWriter(path, manifest)
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            values = {
                "logits": np.ones((_SHARD, _CLASSES), np.float16),
                "digests": np.ones(_SHARD, np.uint64),
            }
            writer.write(view, shard, values, 0.0)
    finish(path, manifest, {})


def _teacher() -> FrozenTeacher:
    return FrozenTeacher(_model(), _PREPROCESS, "bfloat16", "channels_last", CUDA, "")


def _model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * _SIDE * _SIDE, _CLASSES, device=CUDA))


def _evaluating() -> Callable[[], object]:
    model = ForwardPass(_model(), _PREPROCESS, CUDA, precision="bfloat16")
    batches = _images().gather_each(torch.arange(_SAMPLES), _BATCH)
    total = Counts.none(_CLASSES, CUDA)

    @torch.inference_mode()
    def batch() -> tuple[Counts, Tensor]:
        pixels, labels = next(batches)
        logits_BC = model(pixels)[0].float()
        return total + Counts.of(logits_BC, labels), predict(logits_BC)

    return batch


def _building() -> Callable[[], object]:
    """What the thread that runs the teacher does; another one encodes and writes."""
    views = _views(_CROP)
    writer = SimpleNamespace(manifest=_manifest(views))
    teacher = OomSafeTeacher(_teacher(), _SHARD)
    builder = ShardBuilder(_images(), views, teacher, writer)  # type: ignore[arg-type]
    later = SimpleNamespace(result=lambda: None, exception=lambda: None)
    builder._thread = SimpleNamespace(submit=lambda *_: later)  # type: ignore[assignment]
    shards = count()
    return lambda: builder.build(0, next(shards))
