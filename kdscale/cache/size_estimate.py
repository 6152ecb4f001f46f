"""What a cache takes on disk, known before it is there."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kdscale.cache.layout import (
    Encoder,
    Layout,
    fixed_objects,
    record_object,
)
from kdscale.cache.manifest import Manifest, group_document


def num_files(manifest: Manifest) -> int:
    """Files of a finished cache in a folder."""
    layout = Layout(manifest)
    each = len(layout.shard_arrays) + 1  # and the commit record
    return manifest.num_views * manifest.num_shards * each + len(layout.fixed_keys) + 1


def answers_bytes(manifest: Manifest, values: Mapping[str, np.ndarray]) -> int:
    """Bytes of some rows of the arrays among a shard's, [rows, ...] by name, once compressed."""
    rows = len(values["digests"])
    one = replace(manifest, num_views=1, num_samples=rows, shard_samples=rows, chunk_samples=None)
    layout = Layout(one)
    encoder, place = Encoder(layout), (0, slice(0, rows))
    keys = zip(layout.shard_arrays, layout.shard_objects(0, 0), strict=True)
    return sum(
        len(encoder.encode(key, place, values[name])) for name, key in keys if name in values
    )


def other_bytes(
    manifest: Manifest, labels: np.ndarray, once: Mapping[str, np.ndarray] | None = None
) -> int:
    """Bytes of the manifest, metadata, labels, what else is stored once, and commit records."""
    fixed = sum(len(data) for data in fixed_objects(manifest, labels, once).values())
    one = Layout(replace(manifest, num_views=1))
    random = np.random.default_rng(0)  # as checksums are: they do not compress
    record = random.integers(0, 1 << 33, one.record_fields, dtype=np.uint64)
    each = len(Encoder(one).encode(record_object(0, 0), (0, 0), record))
    shards = manifest.num_views * manifest.num_shards
    finished = replace(manifest, checksums=dict.fromkeys(one.fixed_keys, "0" * 64))
    return fixed + shards * each + len(group_document(finished))
