"""What codecs, shard sizes and checksums cost: bytes, writing, reading, gathering.

Takes the answers of a finished float32 cache, stores one view of them again in each encoding, and
times that: written as a build writes, each file flushed; read as an epoch reads, a view at once,
from the system's page cache; and 256 rows at random, as training never reads. All variants run
interleaved, and what is printed are medians over rounds. Prints JSON for `benchmarks/results.py
collect`.
"""

import argparse
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from kdscale.cache.layout import ArrayLayout, Layout, decode
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.local import LocalFolder
from kdscale.config import CacheSection
from kdscale.experiment.encoding import choose_encoding
from kdscale.targets import create_codec

GATHERED = 256  # rows at random


def _blosc(name: str, shuffle: str) -> Callable[[int], Any]:
    # Width of the values: blosc cannot know it from the bytes that it is given.
    return lambda width: BloscCodec(cname=name, clevel=5, shuffle=shuffle, typesize=width)


CODECS: dict[str, Callable[[int], Any] | None] = {
    "none": None,
    "zstd 1": lambda _: ZstdCodec(level=1),
    "zstd 3": lambda _: ZstdCodec(level=3),
    "zstd 9": lambda _: ZstdCodec(level=9),
    "blosc zstd, shuffle": _blosc("zstd", "shuffle"),
    "blosc zstd, bitshuffle": _blosc("zstd", "bitshuffle"),
    "blosc lz4, shuffle": _blosc("lz4", "shuffle"),
    "blosc lz4, bitshuffle": _blosc("lz4", "bitshuffle"),
}
SHARDS = (1024, 4096, 16384, None)  # None: the whole view
ENCODINGS = ("float32", "float16", "int8", "int4", "topk")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to keep a view."""

    encoding: str
    codec: str
    shard_samples: int
    crc: bool


@dataclass(slots=True)
class Trial:
    """A view in one variant, with what its rounds took."""

    manifest: Manifest
    values: Mapping[str, np.ndarray]
    folder: Path
    codecs: Mapping[str, list[Any]]
    seconds: dict[str, list[float]]

    def round(self, rows: np.ndarray) -> None:
        """Write the view, read it, gather some of it."""
        self._timed("write", self._write)
        self._timed("read", self._read)
        self._timed("gather", lambda: self._gather(rows))

    def _timed(self, name: str, what: Callable[[], None]) -> None:
        began = perf_counter()
        what()
        self.seconds.setdefault(name, []).append(perf_counter() - began)

    def _write(self) -> None:
        """As `ShardWriter` does, but for the commit record."""
        layouts, objects = Layout(self.manifest).arrays, dict[str, Any]()
        store = LocalFolder(self.folder)
        opened = {n: _create(objects, n, layouts[n], self.codecs[n]) for n in self.values}
        for name in opened:
            store.write(f"{name}/zarr.json", objects[f"{name}/zarr.json"].to_bytes())
        for shard in range(self.manifest.num_shards):
            start, stop = self.manifest.shard_range(shard)
            for key in Layout(self.manifest).shard_objects(0, shard):
                name = key.partition("/")[0]
                opened[name][0, start:stop] = self.values[name][start:stop]
                data = objects.pop(key).to_bytes()
                zlib.crc32(data)
                store.write(key, data)

    def _read(self) -> None:
        """As `CacheReader` does: every object once, its checksum, then decoded."""
        store = LocalFolder(self.folder)
        objects = {f"{name}/zarr.json": store.read(f"{name}/zarr.json") for name in self.values}
        for shard in range(self.manifest.num_shards):
            for key in Layout(self.manifest).shard_objects(0, shard):
                objects[key] = store.read(key)
                zlib.crc32(objects[key])
        for name, values in self.values.items():
            assert decode(name, objects)[0].shape == values.shape

    def _gather(self, rows: np.ndarray) -> None:
        store = LocalStore(self.folder, read_only=True)
        for name in self.values:
            zarr.open_array(store, path=name, mode="r").oindex[0, rows]

    def check(self) -> None:
        """Stop unless what is read is what was written."""
        store = LocalStore(self.folder, read_only=True)
        for name, values in self.values.items():
            np.testing.assert_array_equal(zarr.open_array(store, path=name, mode="r")[0], values)

    def found(self) -> dict[str, Any]:
        """One row of the table."""
        chunks = [file for file in self.folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in chunks if file.name != "zarr.json")
        samples = self.manifest.num_samples
        raw = sum(values.nbytes for values in self.values.values())
        middle = {name: median(seconds) for name, seconds in self.seconds.items()}
        spread = {name: [min(s), max(s)] for name, s in self.seconds.items()}
        return {
            "bytes_per_target": round(size / samples, 3),
            "files": sum(file.name != "zarr.json" for file in chunks),
            "write_megabytes_per_second": round(raw / middle["write"] / 1e6, 1),
            "write_targets_per_second": round(samples / middle["write"]),
            "read_targets_per_second": round(samples / middle["read"]),
            "gather_milliseconds": round(1e3 * middle["gather"], 2),
            "spread_seconds": {n: [round(s, 5) for s in both] for n, both in spread.items()},
        }


def _create(objects: dict[str, Any], name: str, layout: ArrayLayout, codecs: list[Any]) -> Any:
    """As `kdscale.cache.layout` creates an array, with other codecs."""
    return zarr.create_array(
        MemoryStore(objects), name=name, shape=layout.shape, chunks=layout.chunks,
        dtype=layout.dtype,
        fill_value=layout.fill_value, serializer=BytesCodec(endian="little"),
        compressors=codecs, config={"write_empty_chunks": True},
    )  # fmt: skip


def variants(encodings: tuple[str, ...], num_samples: int) -> list[Variant]:
    """Every codec at 4096 samples a shard, every size with zstd 1, and both without a checksum."""
    found = []
    for encoding in encodings:
        found += [Variant(encoding, codec, 4096, crc=True) for codec in CODECS]
        sizes = [min(size or num_samples, num_samples) for size in SHARDS if size != 4096]
        found += [Variant(encoding, "zstd 1", size, crc=True) for size in sizes]
        found += [Variant(encoding, codec, 4096, crc=False) for codec in ("none", "zstd 1")]
    return list(dict.fromkeys(found))


def trial(variant: Variant, logits: torch.Tensor, source: Manifest, root: Path) -> Trial:
    """A view of these logits, ready to be written."""
    settings = CacheSection(encoding=variant.encoding, top_k=min(20, logits.shape[1] // 2))
    how, _ = choose_encoding(settings, logits.shape[1])
    manifest = replace(
        source, encoding=how.name, **how.fields(),
        num_views=1, num_samples=len(logits), num_classes=how.num_classes,
        shard_samples=variant.shard_samples, bytes_per_target=how.bytes_per_target,
    )  # fmt: skip
    values = create_codec(how).encode(logits)
    random = np.random.default_rng(0)
    values["digests"] = random.integers(1, 1 << 32, len(logits), dtype=np.uint64)
    layout, codec = Layout(manifest), CODECS[variant.codec]
    last = [Crc32cCodec()] if variant.crc else []
    codecs = {
        name: ([] if codec is None else [codec(np.dtype(layout.arrays[name].dtype).itemsize)])
        + last
        for name in layout.shard_arrays
    }
    folder = root / "-".join(str(part) for part in (variant.encoding, variant.codec,
                             variant.shard_samples, variant.crc)).replace(" ", "_")  # fmt: skip
    return Trial(manifest, {n: values[n] for n in layout.shard_arrays}, folder, codecs, {})


def measure(
    logits: torch.Tensor, source: Manifest, encodings: tuple[str, ...], rounds: int
) -> list[dict[str, Any]]:
    """Rows of the table."""
    wanted = variants(encodings, len(logits))
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="kdscale-codecs-") as root:
        trials = [trial(one, logits, source, Path(root)) for one in wanted]
        for _ in range(rounds):
            for position in random.permutation(len(trials)):
                rows = np.sort(random.choice(len(logits), GATHERED, replace=False))
                trials[position].round(rows)
        for one in trials:
            one.check()
        return [
            {"encoding": one.encoding, "codec": one.codec, "shard_samples": one.shard_samples,
             "crc32c": one.crc, **done.found()}
            for one, done in zip(wanted, trials, strict=True)
        ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="a finished float32 cache")
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=ENCODINGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, help="made-up logits of so many, in place of real")
    parser.add_argument("--samples", type=int, help="the first so many")
    arguments = parser.parse_args()
    reader = CacheReader(arguments.cache)
    logits = torch.from_numpy(reader.read_view(0)["logits"])[: arguments.samples]
    if arguments.classes is not None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(len(logits), arguments.classes, generator=generator) * 3
    rows = measure(logits, reader.manifest, tuple(arguments.encodings), arguments.rounds)
    found = {
        "num_samples": len(logits),
        "num_classes": logits.shape[1],
        "rounds": arguments.rounds,
        "codecs": rows,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
