"""What every kind of store promises, checked alike for all of them."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import synthetic

from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.read_through import Copies, ReadThrough
from kdscale.cache.stores.store import open_store, place_of
from kdscale.cache.verify import verify
from kdscale.errors import StorageError

KINDS = ["folder", "s3", "memory", "copies"]


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    """An empty place of each kind; what `open_store` takes."""
    if request.param == "folder":
        return tmp_path / "a cache.zarr"
    if request.param == "memory":
        return request.getfixturevalue("store_in_memory")
    bucket = request.getfixturevalue("bucket")
    if request.param == "copies":
        return ReadThrough(open_store(f"{bucket}/c.zarr"), Copies(tmp_path / "copies", 1 << 20))
    return f"{bucket}/of mine/ä+b.zarr"


@pytest.fixture
def store(place):
    return open_store(place)


def test_store_returns_what_was_written_last(store):
    for data in (b"first", b"", os.urandom(3 << 20)):
        store.write("logits/c/0/0", data)
        assert store.read("logits/c/0/0") == data
        assert store.read("logits/c/0/0", lambda found, data=data: found == data) == data
        assert store.size("logits/c/0/0") == len(data)


def test_store_lists_keys_with_their_bytes(store):
    assert list(store.keys("")) == []
    for key in ("zarr.json", "a/b/c", "a/b.c", "ab/c"):
        store.write(key, key.encode())
    assert sorted(store.keys("")) == [("a/b.c", 5), ("a/b/c", 5), ("ab/c", 4), ("zarr.json", 9)]
    assert sorted(store.keys("a")) == [("a/b.c", 5), ("a/b/c", 5)]
    assert list(store.keys("nothing")) == []


def test_store_has_nothing_at_absent_keys_and_above_keys(store):
    store.write("a/b", b"1")
    for key in ("a/c", "a", "b/a"):
        assert store.size(key) is None
        with pytest.raises(OSError) as caught:
            store.read(key)
        assert not isinstance(caught.value, StorageError)
    with pytest.raises(FileNotFoundError):
        store.read("b/a")


def test_store_removes_and_removes_again(store):
    store.write("a/b", b"1")
    for _ in range(2):
        store.remove("a/b")
        assert store.size("a/b") is None
    store.prune("a")
    assert list(store.keys("")) == []


def test_store_creates_once(store):
    assert store.create("claims/x.0", b"one")
    assert not store.create("claims/x.0", b"two")
    assert store.read("claims/x.0") == b"one"
    store.remove("claims/x.0", durable=False)
    assert store.create("claims/x.0", b"three")


def test_store_lets_one_of_many_create(store):
    # The test server looks and writes in two steps, which real ones do in one: there, in turn.
    in_turn = store.location.startswith("s3:")
    with ThreadPoolExecutor(1 if in_turn else 8) as pool:
        for turn in range(5 if in_turn else 50):
            created = list(
                pool.map(lambda who, turn=turn: store.create(f"c/{turn}", b"%d" % who), range(8))
            )
            assert created.count(True) == 1
            assert store.read(f"c/{turn}") == b"%d" % created.index(True)


def test_store_overwrites_in_place(store):
    for count in range(3):
        store.overwrite("claims/me.builder", b"%020d" % count)
        assert store.read("claims/me.builder") == b"%020d" % count


def test_store_looks_just_before_it_writes_and_leaves_nothing_where_it_should_not(store):
    def refuse():
        raise ValueError("another's by now")

    store.write("a/b", b"old")
    with pytest.raises(ValueError, match="another's by now"):
        store.write("a/b", b"new", refuse)
    assert store.read("a/b") == b"old"
    assert list(store.keys("")) == [("a/b", 3)]
    store.write("a/b", b"new", lambda: None)
    assert store.read("a/b") == b"new"


def test_cache_in_any_store_is_built_grown_and_read_like_one_in_a_folder(place):
    synthetic.build(place, synthetic.encoded("topk", num_views=1))
    asked = synthetic.encoded("topk")
    synthetic.build(place, asked)
    reader = CacheReader(place)
    for view in range(2):
        for name, values in synthetic.expected_view(asked, view).items():
            np.testing.assert_array_equal(reader.read_view(view)[name], values, strict=True)
    np.testing.assert_array_equal(reader.labels(), synthetic.labels(asked))
    assert verify(place).ok
    store = open_store(place)
    assert not [key for key, _ in store.keys("") if key.startswith("claims") or ".tmp" in key]


@pytest.mark.parametrize("place", ["s3", "memory"], indirect=True)
def test_flipped_byte_in_any_store_is_found(place):
    synthetic.build(place, synthetic.asked(num_views=1))
    store = open_store(place)
    for key, size in sorted(store.keys("")):
        data = bytearray(store.read(key))
        data[size // 2] ^= 1
        store.write(key, bytes(data))
        assert len(verify(place).corrupt_shards) == 1, key
        data[size // 2] ^= 1
        store.write(key, bytes(data))
    assert verify(place).ok


@pytest.mark.parametrize("text", ["s3://b/c.zarr/", "gs://x", "cache/x.zarr", "/a/b"])
def test_place_is_what_was_typed(text):
    assert str(place_of(text)) == text.rstrip("/")
