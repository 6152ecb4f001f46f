"""Writes caches in other encodings from one in float32, so that a slow teacher is asked only once.

For comparisons: `kdscale cache build --set cache.encoding=...` asks the teacher. A cache with a
uniform tail (see `benchmarks/fidelity.py`) is one in float32 that holds what other systems' readers
would give back. Prints the folders.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from fidelity import GRID, uniform_tail
from torch import Tensor

from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.encodings import Encoding, Float32, TopK, create_encoding
from kdscale.targets import create_codec

Stored = dict[str, np.ndarray]


def reencode(
    source: Path, target: Path, manifest: Manifest, store: Callable[[Tensor], Stored]
) -> None:
    """Write what `store` makes of each shard's logits, float32 [B, C]."""
    reader = CacheReader(source)
    manifest = create_or_resume(target, manifest, reader.labels())
    if manifest.complete:
        return
    writer = ShardWriter(target, manifest)
    for view, shard in np.argwhere(~writer.committed()).tolist():
        began = perf_counter()
        rows = reader.read_shard(view, shard)
        values = store(torch.from_numpy(rows["logits"]))
        values["digests"] = rows["digests"].astype(np.uint64) + 1
        writer.write(view, shard, values, perf_counter() - began)
    finish(target, manifest, {"num_processes": 1})


def as_asked(manifest: Manifest, encoding: Encoding) -> Manifest:
    """The manifest that a recipe with this encoding asks for."""
    return replace(
        manifest,
        encoding=encoding.name,
        **encoding.fields(),
        bytes_per_target=encoding.bytes_per_target,
        fidelity={},
        checksums={},
        complete=False,
    )


def main() -> None:
    """Write all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encodings", nargs="*", default=["float16", "int8", "int4"])
    parser.add_argument("--top-k", type=int, nargs="*", default=[])
    parser.add_argument("--uniform", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    manifest = CacheReader(arguments.cache).manifest
    classes = manifest.num_classes
    wanted = {name: create_encoding(name, classes) for name in arguments.encodings}
    wanted |= {f"topk-{k}": TopK(classes, k, GRID) for k in arguments.top_k}
    for name, encoding in wanted.items():
        path = arguments.out / f"{name}.zarr"

        def store(logits: Tensor, encoding: Encoding = encoding) -> Stored:
            return create_codec(encoding).encode(logits)

        reencode(arguments.cache, path, as_asked(manifest, encoding), store)
        print(path)
    for kept in arguments.uniform:
        path = arguments.out / f"uniform-{kept}.zarr"
        full = Float32(classes)

        def store_uniform(logits: Tensor, kept: int = kept, full: Encoding = full) -> Stored:
            return create_codec(full).encode(uniform_tail(logits, kept).logits_BC)

        reencode(arguments.cache, path, as_asked(manifest, full), store_uniform)
        print(path)


if __name__ == "__main__":
    main()
