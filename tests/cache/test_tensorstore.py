"""A cache is plain Zarr: another implementation of the format reads the same values."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic
import tensorstore
import zarr

from kdscale.cache.layout import Layout
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/*.zarr"))

LAYOUTS = {
    "a chunk a file": {},
    "one chunk a view": {"shard_samples": 4096},
}
"""Changes of the manifest that lay out the same content in other files."""


def read_elsewhere(cache, name):
    """An array of a cache, read by tensorstore."""
    place = {"driver": "file", "path": f"{cache}/{name}/"}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True, open=True)
    return opened.result().read().result()


def assert_reads_elsewhere(cache):
    """Every array, value for value and type for type; NaN would be one that is missing."""
    ours = zarr.open_group(cache, mode="r")
    names = list(Layout(read_manifest(cache)).arrays)
    assert names
    for name in names:
        found = read_elsewhere(cache, name)
        assert found.dtype == ours[name].dtype, name
        np.testing.assert_array_equal(found, ours[name][...], err_msg=name)
        assert not np.isnan(found).any(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", synthetic.ENCODINGS)
def test_fresh_cache_of_any_layout_reads_elsewhere(tmp_path, encoding, layout):
    manifest = synthetic.encoded(encoding, **LAYOUTS[layout])
    synthetic.build(tmp_path / "any.zarr", manifest)
    assert_reads_elsewhere(tmp_path / "any.zarr")
    digests = read_elsewhere(tmp_path / "any.zarr", "digests")
    for view, seen in enumerate(digests):
        expected = synthetic.expected_view(manifest, view)
        np.testing.assert_array_equal(seen - np.uint64(1), expected["digests"])


@pytest.mark.parametrize("cache", GOLDEN, ids=lambda path: path.stem)
def test_golden_cache_reads_elsewhere(cache):
    assert_reads_elsewhere(cache)


def test_cache_of_a_real_teacher_reads_elsewhere(tiny_cache):
    assert_reads_elsewhere(tiny_cache)
    logits = read_elsewhere(tiny_cache, "logits")
    reader = CacheReader(tiny_cache)
    for view in range(reader.manifest.num_views):
        np.testing.assert_array_equal(logits[view], reader.read_view(view)["logits"])
    np.testing.assert_array_equal(read_elsewhere(tiny_cache, "labels"), reader.labels())


def test_other_reader_finds_a_flipped_byte_too(tmp_path):
    """The checksums are Zarr's own, so whoever reads a chunk compares them."""
    cache = Path(shutil.copytree(GOLDEN[0], tmp_path / "copy.zarr"))
    chunk = cache / "logits/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=r"[Dd]igest mismatch"):
        read_elsewhere(cache, "logits")
