"""Reading a cache that is being built: what is there as ever, what is not once it comes."""

import threading
import time

import numpy as np
import pytest
import synthetic

from kdscale.cache import lease
from kdscale.cache.lease import Leases
from kdscale.cache.reader import CacheReader
from kdscale.cache.wait import Patience
from kdscale.cache.writer import create_or_resume, finish
from kdscale.errors import CacheCorruptError, CacheIncompleteError

FIRST_VIEW = [(0, shard) for shard in range(3)]
SECOND_VIEW = [(1, shard) for shard in range(3)]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "INTERVAL_SECONDS", 0.05)


@pytest.fixture
def begun(tmp_path):
    """A cache of two views, of which the first is finished."""
    path = tmp_path / "begun.zarr"
    manifest = create_or_resume(path, synthetic.asked(), synthetic.labels(synthetic.asked()))
    synthetic.write_shards(path, manifest, FIRST_VIEW)
    return path


def later(seconds, function, *args):
    timer = threading.Timer(seconds, function, args)
    timer.start()
    return timer


def assert_equal_rows(found, manifest, view):
    expected = synthetic.expected_view(manifest, view)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_finished_view_of_an_unfinished_cache_is_read_as_ever(begun):
    with pytest.raises(CacheIncompleteError, match="is not complete"):
        CacheReader(begun)
    reader = CacheReader(begun, Patience())
    assert_equal_rows(reader.read_view(0), reader.manifest, 0)
    assert [reader.is_there(view, 1) for view in range(2)] == [True, False]
    assert reader.build_seconds() == 0.75
    assert reader.labels().tolist() == synthetic.labels(reader.manifest).tolist()


def test_shard_is_waited_for_as_long_as_a_builder_counts(begun):
    reader = CacheReader(begun, Patience())
    with Leases(begun, interval_seconds=0.05) as builder:
        assert builder.claim("part")
        writing = later(1.5, synthetic.write_shards, begun, reader.manifest, SECOND_VIEW)
        assert_equal_rows(reader.read_view(1), reader.manifest, 1)
        writing.join()
    finish(begun, reader.manifest, {"num_processes": 1})
    assert reader.build_seconds() == 1.5


def test_without_a_sign_of_life_waiting_ends(begun):
    reader, began = CacheReader(begun, Patience()), time.monotonic()
    with pytest.raises(CacheIncompleteError, match=r"view 1 is not there, and nobody has built"):
        reader.read_shard(1, 0)
    assert 0.5 < time.monotonic() - began < 20


def test_counter_that_stands_still_is_no_sign_of_life(begun):
    reader = CacheReader(begun, Patience())
    with Leases(begun, interval_seconds=1000) as builder:
        builder.claim("part")
        with pytest.raises(CacheIncompleteError, match="nobody has built"):
            reader.read_shard(1, 0)


def test_waiting_is_called_off_by_closing(begun, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1000)
    reader = CacheReader(begun, Patience())
    closing = later(0.3, reader.close)
    with pytest.raises(CacheIncompleteError, match="no longer waiting for view 1"):
        reader.read_shard(1, 0)
    closing.join()


def test_damaged_shard_is_corrupt_whether_the_build_has_ended_or_not(begun):
    (begun / "logits/c/0/1/0").write_bytes(b"?")
    reader = CacheReader(begun, Patience())
    with pytest.raises(CacheCorruptError, match="view-00000/shard-00001 missing or damaged"):
        reader.read_view(0)
    (begun / "commits/c/0/0/0").write_bytes(b"?")
    with pytest.raises(CacheCorruptError, match="view-00000/shard-00000"):
        CacheReader(begun, Patience()).read_shard(0, 0)


def test_what_a_finished_cache_misses_is_not_waited_for(cache):
    (cache / "commits/c/1/0/0").unlink()
    reader = CacheReader(cache, Patience())
    with pytest.raises(CacheCorruptError, match="view-00001/shard-00000"):
        reader.read_shard(1, 0)


def test_metadata_and_views_that_are_still_to_come_are_waited_for(tmp_path, begun):
    metadata = begun / "logits/zarr.json"
    content = metadata.read_bytes()
    metadata.unlink()
    writing = later(0.3, metadata.write_bytes, content)
    assert CacheReader(begun, Patience()).manifest.num_views == 2
    writing.join()
    more = synthetic.asked(num_views=4)
    growing = later(0.3, create_or_resume, begun, more, synthetic.labels(more))
    assert CacheReader(begun, Patience(), num_views=4).manifest.num_views == 4
    growing.join()
    with pytest.raises(CacheIncompleteError, match="a cache of 5 views is not there"):
        CacheReader(begun, Patience(), num_views=5)


def test_damaged_metadata_of_a_finished_cache_are_not_waited_for(cache):
    (cache / "logits/zarr.json").write_bytes(b"{}")
    with pytest.raises(CacheCorruptError, match=r"logits/zarr\.json missing or damaged"):
        CacheReader(cache, Patience())
