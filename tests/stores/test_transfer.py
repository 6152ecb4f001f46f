"""Push and pull: laid out anew, values and ids equal, all checked, nothing lost by a stop."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.object_store import ObjectStore
from kdscale.cache.stores.store import open_store
from kdscale.cache.transfer import transfer
from kdscale.cache.verify import verify
from kdscale.cache.writer import create_or_resume
from kdscale.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    StorageError,
)

LAYOUT = {"shard_samples", "chunk_samples", "checksums", "build"}


@pytest.fixture
def cache(tmp_path):
    """A finished cache of 2 views in 3 shards each."""
    synthetic.build(tmp_path / "tiny.zarr")
    return tmp_path / "tiny.zarr"


def values(place):
    reader = CacheReader(place)
    views = [reader.read_view(view) for view in range(reader.manifest.num_views)]
    return [reader.labels(), *(array for view in views for array in view.values())]


def assert_same(one, other):
    for ours, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert verify(other).ok
    first, second = read_manifest(one), read_manifest(other)
    assert first.id == second.id
    same = {"build": {}, "checksums": {}, "shard_samples": 1, "chunk_samples": None}
    assert replace(first, **same) == replace(second, **same)
    assert first.build["seconds"] == second.build["seconds"]


@pytest.mark.parametrize("encoding", ["float16", "embedding"])
def test_pushed_cache_has_large_objects_and_comes_back_as_it_was(tmp_path, bucket, encoding):
    cache, url, back = tmp_path / "c.zarr", f"{bucket}/c.zarr", tmp_path / "back.zarr"
    synthetic.build(cache, synthetic.encoded(encoding))
    assert transfer(cache, url) == {"copied": 2, "kept": 0}  # one object holds a view
    manifest = read_manifest(url)
    assert (manifest.shard_samples, manifest.chunk_samples) == (12, 4)
    assert manifest.format_version == 3
    assert_same(cache, url)
    assert transfer(url, back) == {"copied": 6, "kept": 0}
    assert_same(cache, back)
    before, after = synthetic.files(cache), synthetic.files(back)
    assert before.keys() == after.keys()
    chunks = [key for key in before if "/c/" in key and not key.startswith("commits")]
    assert all(before[key] == after[key] for key in chunks)
    size = sum(size for key, size in open_store(url).keys("") if key != "zarr.json")
    assert manifest.build["bytes"] == size


def test_push_again_copies_nothing(cache, bucket):
    transfer(cache, f"{bucket}/c.zarr")
    assert transfer(cache, f"{bucket}/c.zarr") == {"copied": 0, "kept": 2}


def test_push_that_was_stopped_goes_on(cache, bucket, monkeypatch):
    url, write = f"{bucket}/c.zarr", ObjectStore.write

    def stop(self, key, data, check=None):
        if key.startswith("commits/c/1"):
            raise KeyboardInterrupt
        write(self, key, data, check)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            transfer(cache, url)
    with pytest.raises(CacheIncompleteError):  # the manifest comes last
        CacheReader(url)
    assert transfer(cache, url) == {"copied": 1, "kept": 1}
    assert_same(cache, url)
    assert not list(open_store(url).keys("claims"))


def test_push_replaces_what_is_damaged_there_and_nothing_else(cache, bucket):
    url = f"{bucket}/c.zarr"
    transfer(cache, url)
    open_store(url).write("logits/c/1/0/0", b"damaged")
    assert transfer(cache, url) == {"copied": 1, "kept": 1}
    assert_same(cache, url)


def test_damaged_source_is_refused(cache, bucket):
    (cache / "logits/c/1/2/0").write_bytes(b"damaged")
    with pytest.raises(CacheCorruptError, match="view-00001/shard-00002"):
        transfer(cache, f"{bucket}/c.zarr")
    with pytest.raises(CacheIncompleteError):
        CacheReader(f"{bucket}/c.zarr")


def test_unfinished_source_and_one_that_is_not_there_are_refused(tmp_path, bucket):
    create_or_resume(tmp_path / "c.zarr", synthetic.asked(), synthetic.labels(synthetic.asked()))
    with pytest.raises(CacheIncompleteError):
        transfer(tmp_path / "c.zarr", f"{bucket}/c.zarr")
    with pytest.raises(CacheNotFoundError):
        transfer(f"{bucket}/c.zarr", tmp_path / "back.zarr")
    assert not (tmp_path / "back.zarr").exists()
    assert not list(open_store(f"{bucket}/c.zarr").keys(""))


def test_store_that_keeps_other_bytes_is_noticed(cache, bucket, monkeypatch):
    write = ObjectStore.write

    def lossy(self, key, data, check=None):
        write(self, key, data[:-1] if key.startswith("digests/c") else data, check)

    monkeypatch.setattr(ObjectStore, "write", lossy)
    with pytest.raises(
        StorageError, match=r"does not keep what is written: view-00000/shard-00000"
    ):
        transfer(cache, f"{bucket}/c.zarr")


def test_another_cache_at_the_destination_is_not_touched(tmp_path, cache, bucket):
    url = f"{bucket}/c.zarr"
    synthetic.build(tmp_path / "other.zarr", synthetic.asked(encoding="float32"))
    transfer(tmp_path / "other.zarr", url)
    with pytest.raises(CacheMismatchError, match=r"holds another cache .*: name another place"):
        transfer(cache, url)
    assert_same(tmp_path / "other.zarr", url)


def test_push_adds_views_and_takes_none_away(tmp_path, cache, bucket):
    url, small = f"{bucket}/c.zarr", tmp_path / "small.zarr"
    synthetic.build(small, synthetic.asked(num_views=1))
    transfer(small, url)
    assert transfer(cache, url) == {"copied": 1, "kept": 1}
    assert_same(cache, url)
    with pytest.raises(CacheMismatchError, match="2 views"):
        transfer(small, url)


def test_cache_is_not_copied_onto_itself(cache):
    with pytest.raises(CacheMismatchError, match="is the cache itself"):
        transfer(cache, cache)


def test_copy_between_folders_is_byte_for_byte(tmp_path, cache):
    transfer(cache, tmp_path / "copy.zarr")
    ours, theirs = synthetic.files(cache), synthetic.files(tmp_path / "copy.zarr")
    assert ours.keys() == theirs.keys()
    # Records hold milliseconds, and the manifest the bytes of them all.
    differing = {key.partition("/")[0] for key in ours if ours[key] != theirs[key]}
    assert differing <= {"commits", "zarr.json"}
    found, copied = read_manifest(cache), read_manifest(tmp_path / "copy.zarr")
    assert replace(copied, build={**copied.build, "bytes": found.build["bytes"]}) == found
