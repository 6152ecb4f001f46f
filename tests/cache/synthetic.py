"""Small caches with made-up answers, for the tests of this folder: NumPy and Zarr alone."""

from dataclasses import replace

import numpy as np

from kdscale.cache.manifest import Manifest
from kdscale.cache.writer import ShardWriter, create_or_resume, finish

CLASSES = ("ant", "bee", "cat", "dog", "elk")


def asked(**changes):
    """2 views of 10 samples in shards of 4, 4 and 2; what depends on the changes fits them."""
    manifest = Manifest(
        dataset={
            "fingerprint": "f" * 64,
            "num_samples": 10,
            "classes": list(CLASSES),
            "source": "made-up",
            "split": "train",
        },
        views={
            "generator": 1,
            "seed": 3,
            "operations": [{"name": "crop", "padding": 4}, {"name": "flip"}],
        },
        teacher={
            "weights_sha256": "a" * 64,
            "preprocess": {"mean": [0.5], "std": [0.25], "size": None},
            "precision": "float32",
            "memory_format": "contiguous",
            "model": "reference",
            "top1_accuracy": 0.875,
        },
        encoding="float16",
        num_views=2,
        num_samples=10,
        num_classes=5,
        shard_samples=4,
        bytes_per_target=10,
        fidelity={"kl_t1": 1e-06},
        versions={"kdscale": "0.0"},
    )
    manifest = replace(manifest, **changes)
    if "dataset" not in changes:
        names = [*CLASSES, *(f"class {number}" for number in range(5, manifest.num_classes))]
        own = {"num_samples": manifest.num_samples, "classes": names[: manifest.num_classes]}
        manifest = replace(manifest, dataset={**manifest.dataset, **own})
    if "bytes_per_target" not in changes:
        manifest = replace(manifest, bytes_per_target=bytes_per_target(manifest))
    return manifest


def bytes_per_target(manifest):
    num_classes = manifest.num_classes
    return {
        "float32": 4 * num_classes,
        "float16": 2 * num_classes,
        "int8": num_classes + 8,
        "int4": -(-num_classes // 2) + 8,
        "topk": 3 * (manifest.top_k or 0) + 4 * len(manifest.temperatures),
        "embedding": 2 * (manifest.embedding_size or 0),
        "none": 0,
    }[manifest.encoding]


def labels(manifest):
    return np.arange(manifest.num_samples, dtype=np.int64) % manifest.num_classes


ENCODINGS = ("float32", "float16", "int8", "int4", "topk", "embedding", "none")
FEATURES = (
    {"module": "layer2.0.bn1", "pool": None, "shape": [2, 3, 4]},
    {"module": "pool", "pool": 1, "shape": [6]},
)
SETTINGS = {
    "topk": {"top_k": 2, "temperatures": [1.0, 2.0, 4.0]},
    "embedding": {"embedding_size": 3},
    "none": {"features": FEATURES},
}


def keyed(**changes):
    """As `asked`, with a key for each image."""
    manifest = asked(**changes)
    return replace(manifest, dataset={**manifest.dataset, "keys": "pixels"})


def encoded(name, **changes):
    """As `asked`, of another encoding."""
    return asked(**{"encoding": name, **SETTINGS.get(name, {}), **changes})


def once(manifest):
    """What is kept once, beside the labels."""
    kept = {}
    if "keys" in manifest.dataset:
        kept["keys"] = np.arange(manifest.num_samples, dtype=np.uint64) * 7 + 1
    if manifest.encoding == "embedding":
        shape = (manifest.num_classes, manifest.embedding_size)
        weight = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape) / 4
        kept |= {"head_weight": weight, "head_bias": np.arange(shape[0], dtype=np.float32)}
    return kept


def rows(manifest, view, shard):
    """A function of (view, sample) alone, so whoever writes it writes the same."""
    sample = np.arange(*manifest.shard_range(shard))
    values = (view + 1) * 100 + sample[:, None] + np.arange(manifest.num_classes) / 8
    return {
        **targets(manifest, values),
        **{
            f"features.{one['module']}": (values[:, :1] + np.arange(np.prod(one["shape"])) / 8)
            .reshape(-1, *one["shape"])
            .astype(np.float16)
            for one in manifest.features
        },
        "digests": (sample * 2654435761 % 2**32 + view + 1).astype(np.uint64),
    }


def targets(manifest, values):
    """Rows of the encoding's arrays, of the right types; what they mean does not matter here."""
    single = values[:, 0].astype(np.float32)
    if manifest.encoding == "topk":
        kept, grid = manifest.top_k, len(manifest.temperatures)
        return {
            "ids": (values[:, :kept] % manifest.num_classes).astype(np.uint8),
            "logits": values[:, :kept].astype(np.float16),
            "tails": values[:, :grid].astype(np.float32),
        }
    if manifest.encoding == "none":
        return {}
    if manifest.encoding == "embedding":
        return {"embedding": values[:, : manifest.embedding_size].astype(np.float16)}
    if manifest.encoding in ("int8", "int4"):
        width = -(-manifest.num_classes // (1 if manifest.encoding == "int8" else 2))
        codes = (values[:, :width] % 256).astype(np.uint8)
        return {"codes": codes, "scale": single / 8, "offset": single}
    return {"logits": values.astype(manifest.encoding)}


def all_shards(manifest):
    return [(v, s) for v in range(manifest.num_views) for s in range(manifest.num_shards)]


def write_shards(path, manifest, shards, seconds=0.25):
    writer = ShardWriter(path, manifest)
    for view, shard in shards:
        writer.write(view, shard, rows(manifest, view, shard), seconds)


def build(path, manifest=None):
    """A build as `kdscale cache build` does it: begun or taken up, what is missing, finished."""
    manifest = manifest or asked()
    manifest = create_or_resume(path, manifest, labels(manifest), once=once(manifest))
    if manifest.complete:
        return manifest
    writer = ShardWriter(path, manifest)
    missing = np.argwhere(~writer.committed())
    for view, shard in missing.tolist():
        writer.write(view, shard, rows(manifest, view, shard), 0.25)
    return finish(path, manifest, {"num_processes": 1})


def expected_view(manifest, view):
    """What a reader gives for a view."""
    parts = [rows(manifest, view, shard) for shard in range(manifest.num_shards)]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values["digests"] = (values["digests"] - 1).astype(np.uint32)
    return values


def files(path):
    """Bytes by key, temporary files and claims left out."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".tmp" and file.parent.name != "claims"
    }
