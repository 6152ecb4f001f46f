"""Targets of a batch of 128 samples: every encoding, resident and by windows, and ensembles."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from weakref import finalize

import numpy as np
import torch

from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.data.views.batch_plan import SampleViews
from kdscale.data.views.pipeline import Pipeline
from kdscale.encodings import ENCODINGS, create_encoding
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.ensemble import MEANS, Ensemble
from kdscale.target_sources.memory_plan import SHARDS_IN_HAND, MemoryPlan, plan_memory
from kdscale.target_sources.prefetch import row_bytes
from kdscale.targets import Head, as_tensor, create_codec, encode_features
from kdscale.transfers import SideStream
from sync_cases.counting import CUDA, Case, SameThread

_SAMPLES, _SHARD, _CLASSES, _BATCH, _INPUTS = 512, 64, 100, 128, 16
_FEATURES: Mapping[str, tuple[int, ...]] = {"neck": (8,), "layer1": (4, 3, 3)}


def cases() -> Iterator[Case]:
    """Each encoding resident, by windows and with features; both means of ensembles."""
    for name, encoding in ENCODINGS.items():
        for windows in (False, True) if encoding.has_logits else ():
            how = "by windows" if windows else "resident"
            yield Case(f"targets: {name}, {how}", partial(_reading, name, windows))
        yield Case(f"targets: {name}, with features", partial(_reading, name, False, True))
    yield Case("targets: views shifted", partial(_reading, "float16", False, shift_every=_SHARD))
    yield Case("targets: views shifted, by windows", partial(_reading, "float16", True,
               shift_every=_SHARD))  # fmt: skip
    # In the thread that prefetches: logits and digests of a shard.
    yield Case("targets: a shard into memory", _filling, 2)
    for mean in MEANS:
        yield Case(f"targets: ensemble, mean of {mean}", partial(_ensemble, mean))


def _reading(
    name: str, windows: bool, with_features: bool = False, shift_every: int | None = None
) -> Callable[[], object]:
    source = _open(name, windows, with_features, shift_every)
    source.start_epoch(0)
    batches = _samples(source)
    return lambda: source.targets_of(next(batches))


def _filling() -> Callable[[], object]:
    source = _open("float16", False)
    values, stream = source.reader.read_shard(0, 0), SideStream(CUDA)
    rows = [
        (part[:_SHARD], as_tensor(values[name]))
        for name, part in source._memory.segments.parts.items()
    ]
    return lambda: (
        stream.follow(), [stream.copy_into(*pair) for pair in rows], stream.arrival()(),
    )  # fmt: skip


def _samples(source: CachedTargets) -> Iterator[SampleViews]:
    order = torch.arange(_SAMPLES)
    if source.windows is not None:
        order = source.windows.number(0, order).argsort(stable=True)
    samples = SampleViews.place(source.schedule.view(0, order), order, CUDA)
    for number in count():
        start = number * _BATCH % _SAMPLES
        yield samples[start : start + _BATCH]


def _ensemble(mean: str) -> Callable[[], object]:
    members = [_open(name, False) for name in ("float16", "int8")]
    ensemble = Ensemble(members, [0.25, 0.75], mean, 4.0)
    ensemble.start_epoch(0)

    class Sampled:  # a batch is asked for its samples and its pixels
        samples = next(_samples(members[0]))
        pixels = None

    return lambda: ensemble.targets(Sampled)  # type: ignore[arg-type]


def _open(
    name: str, windows: bool, with_features: bool = False, shift_every: int | None = None
) -> CachedTargets:
    features = tuple(_FEATURES) if with_features else ()
    manifest = _manifest(name, features)
    folder = tempfile.TemporaryDirectory()
    _write(Path(folder.name) / "cache", manifest)
    memory = MemoryPlan(epochs=1)
    if windows:
        # The second batch, which counts, is of the first window and the next one.
        rows = _SAMPLES * 3 // 4 + SHARDS_IN_HAND * _SHARD
        limit = row_bytes(manifest, features) * rows
        memory = plan_memory(limit, [manifest], num_views=2, epochs=1)
    found = CachedTargets.open(
        Path(folder.name) / "cache", device=CUDA, features=features, shift_every=shift_every,
        memory=memory,
    )  # fmt: skip
    found._memory.segments._thread = SameThread()  # type: ignore[assignment]
    finalize(found, folder.cleanup)
    return found


def _manifest(name: str, features: tuple[str, ...]) -> Manifest:
    encoding = create_encoding(
        name, _CLASSES, top_k=10, temperatures=(1.0, 4.0), embedding_size=_INPUTS
    )
    manifest = Manifest(
        dataset={
            "fingerprint": "f" * 64, "num_samples": _SAMPLES,
            "classes": list(map(str, range(_CLASSES))), "source": "synthetic", "split": "train",
        },
        views=Pipeline(()).describe(),
        teacher={
            "weights_sha256": "a" * 64, "preprocess": {}, "precision": "float32",
            "memory_format": "contiguous", "model": "linear", "top1_accuracy": None,
        },
        encoding=name, **encoding.fields(), num_views=2, num_samples=_SAMPLES,
        num_classes=_CLASSES, shard_samples=_SHARD, bytes_per_target=encoding.bytes_per_target,
    )  # fmt: skip
    described = [
        {"module": module, "pool": None, "shape": list(_FEATURES[module])} for module in features
    ]
    return replace(manifest, features=described)


@cache
def _head() -> Head:
    return Head(torch.ones(_CLASSES, _INPUTS), torch.zeros(_CLASSES))


def _write(path: Path, manifest: Manifest) -> None:
    codec = create_codec(manifest.target_encoding, _head())
    once = _head().arrays() if manifest.target_encoding.uses_head else {}
    manifest = create_or_resume(path, manifest, np.arange(_SAMPLES) % _CLASSES, once=once)
    writer = ShardWriter(path, manifest)
    inputs = torch.linspace(0, 1, _SHARD * _INPUTS).reshape(_SHARD, _INPUTS).half().float()
    features = {
        one["module"]: torch.ones(_SHARD, *one["shape"]) for one in manifest.features
    }  # fmt: skip
    values = codec.encode(_head()(inputs), inputs) | encode_features(features)
    values["digests"] = np.ones(_SHARD, np.uint64)
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            writer.write(view, shard, values, 0.0)
    finish(path, manifest, {})
