"""Targets in memory are what was stored, as it was stored."""

from pathlib import Path

import pytest
import torch

from kdscale.cache.reader import CacheReader
from kdscale.target_sources.buffer import stored_codec
from kdscale.target_sources.prefetch import DoubleBuffer, Segment
from kdscale.targets import DenseTargets, FeatureTargets

CPU = torch.device("cpu")
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("cache_v*/*.zarr"))


def values(targets):
    if isinstance(targets, DenseTargets):
        return [targets.logits_BC]
    if isinstance(targets, FeatureTargets):
        return []
    return [targets.ids_BK, targets.logits_BK, targets.tails_BG]


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def reader(request):
    return CacheReader(request.param)


@pytest.fixture
def segments(reader):
    segments = DoubleBuffer(reader, reader.manifest.num_samples, CPU, ahead=True)
    yield segments
    segments.close()


def whole(reader, view):
    return Segment(view, range(reader.manifest.num_shards), lambda _: view)


def test_batches_are_decoded_as_the_whole_view_is(reader, segments):
    index = torch.tensor([3, 0, reader.manifest.num_samples - 1, 3])
    segments.use(whole(reader, 1))
    segments.prefetch(whole(reader, 0))
    for view in (1, 0):
        segments.use(whole(reader, view))
        stored = reader.read_view(view)
        rows = index + segments.start(view)
        chosen = {name: part[rows] for name, part in segments.parts.items()}
        digests, codec = chosen.pop("digests"), stored_codec(reader)
        ours, theirs = (
            values(codec.decode_tensors(chosen)), values(codec.decode(stored).rows(index)),
        )  # fmt: skip
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            # What an embedding's sums of products round to depends on how many rows there are.
            close = 1e-5 if reader.manifest.encoding == "embedding" else 0
            assert torch.allclose(one, other, rtol=close, atol=close)
        assert (digests.long() & 0xFFFFFFFF).equal(
            torch.from_numpy(stored["digests"]).long()[index]
        )


def test_targets_are_held_as_they_are_stored(reader, segments):
    size = sum(part.numel() * part.itemsize for part in segments.parts.values())
    row = reader.manifest.bytes_per_target + 4  # and the digest
    assert size == segments.buffer_bytes == 2 * reader.manifest.num_samples * row
