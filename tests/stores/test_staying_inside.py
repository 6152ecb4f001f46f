"""No store reads or writes outside its folder, whatever lies in it or is said to."""

import os
import shutil

import pytest
import synthetic

from kdscale.cache.lease import Leases
from kdscale.cache.reader import CacheReader
from kdscale.cache.remove import remove_cache
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.stores.object_store import ObjectStore
from kdscale.cache.stores.read_through import Copies, ReadThrough
from kdscale.cache.stores.store import folder_name_of
from kdscale.cache.verify import verify
from kdscale.errors import ConfigError, StorageError, UnsafePathError
from kdscale.regular_files import check_key

BAD_KEYS = ["../x", "a/../../x", "/x", "//x", "a//b", "a/./b", ".", "..", "", "a/", "a\\b", "n\0"]
SPECIAL = ["link", "dangling", "pipe", "device"]


@pytest.fixture
def outside(tmp_path):
    """A folder beside the store's, and what it holds before a test."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"mine")
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"file": b"mine"}


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(tmp_path / "c.zarr")


def put(kind, place, outside):
    """Lay something special in an object's place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        leads_to = {"link": outside / "file", "dangling": outside / "new", "device": "/dev/zero"}
        place.symlink_to(leads_to[kind])


def accesses(store, key):
    """Every way to reach an object."""
    return {
        "read": lambda: store.read(key),
        "write": lambda: store.write(key, b"x"),
        "create": lambda: store.create(key, b"x"),
        "overwrite": lambda: store.overwrite(key, b"x"),
        "size": lambda: store.size(key),
        "remove": lambda: store.remove(key),
    }


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_is_no_path_below_the_store_is_refused_by_every_access(folder, key, outside):
    for access in accesses(folder, key).values():
        with pytest.raises(UnsafePathError, match="is not the key of an object of"):
            access()
    assert not folder.path.exists()


@pytest.mark.parametrize(
    "key", ["zarr.json", "a/b", "features.x.y/c/0/1/0", "..a", "a..", "a b", "ä"]
)
def test_keys_of_caches_are_keys(key):
    assert check_key(key, "here") == key


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_is_no_path_is_sent_to_no_object_store(key):
    pytest.importorskip("obstore")
    for access in accesses(ObjectStore("s3://b/c", None), key).values():
        with pytest.raises(UnsafePathError, match="is not the key of an object of s3://b/c"):
            access()


@pytest.mark.parametrize("key", ["../../x", "a//b", "a\\b"])
def test_listing_of_a_remote_store_is_checked(key, monkeypatch):
    objects = ObjectStore("s3://b/c", None)
    obstore = pytest.importorskip("obstore")
    monkeypatch.setattr(obstore, "list", lambda *_, **__: iter([[{"path": key, "size": 1}]]))
    with pytest.raises(UnsafePathError, match="is not the key"):
        list(objects.keys())


@pytest.mark.parametrize("url", ["s3://bucket/..", "s3://bucket/.", "s3://bucket/a\\b", ".."])
def test_place_whose_last_part_names_no_folder_is_not_copied_to_one(url):
    with pytest.raises(ConfigError, match="names no folder"):
        folder_name_of(url)


# ------------------------------------------------------------------ a folder of this machine


@pytest.mark.parametrize("access", ["read", "write", "create", "overwrite", "size", "remove"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_link_or_special_file_in_an_objects_place_is_refused_by_name(folder, outside, kind, access):
    put(kind, folder.path / "logits/c/0", outside)
    with pytest.raises(UnsafePathError, match=r"logits/c/0 is a (symbolic link|pipe|device)"):
        accesses(folder, "logits/c/0")[access]()
    assert [path.name for path in (folder.path / "logits/c").iterdir()] == ["0"]


@pytest.mark.parametrize("access", ["read", "write", "create", "overwrite", "size", "remove"])
def test_link_above_an_object_is_refused_by_name(folder, outside, access):
    folder.path.mkdir()
    (folder.path / "logits").symlink_to(outside)
    for key in ("logits/file", "logits/new", "logits/deep/new"):
        with pytest.raises(UnsafePathError, match=r"c\.zarr/logits is a symbolic link"):
            accesses(folder, key)[access]()


def test_listing_pruning_and_tidying_follow_no_link(folder, outside):
    folder.write("a/b", b"1")
    (folder.path / "link").symlink_to(outside)
    (folder.path / "a/link").symlink_to(outside / "file")
    assert sorted(key for key, _ in folder.keys("")) == ["a/b", "a/link", "link"]
    empty = outside / "empty"
    empty.mkdir()
    folder.prune("")
    assert empty.is_dir()
    empty.rmdir()
    refused = (
        folder.prune,
        lambda key: list(folder.keys(key)),
        lambda key: folder.tidy("a/b", key),
    )
    for act in refused:
        with pytest.raises(UnsafePathError, match="link is a symbolic link"):
            act("link")


def test_the_folder_itself_may_be_a_link(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder.path)
    folder.write("a/b", b"1")
    other = LocalFolder(tmp_path / "link")
    other.write("a/c", b"2")
    assert (other.read("a/b"), folder.read("a/c")) == (b"1", b"2")


def test_what_lies_in_the_place_of_a_small_object_is_not_read_whole(folder):
    folder.path.mkdir()
    for key, size in (("claims/part.0", 1 << 17), ("zarr.json", 1 << 40)):
        (folder.path / key).parent.mkdir(exist_ok=True)
        with (folder.path / key).open("wb") as file:
            file.truncate(size)
        with pytest.raises(UnsafePathError, match="wanted at most"):
            folder.read(key)


# ------------------------------------------------------------------ caches


def read_all(cache):
    reader = CacheReader(cache)
    reader.labels()
    reader.read_view(0)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("key", ["zarr.json", "labels/c/0", "logits/c/0/0/0", "commits/c/0/0/0"])
def test_cache_with_a_link_or_special_file_is_refused_by_name(tmp_path, outside, kind, key):
    cache = tmp_path / "c.zarr"
    synthetic.build(cache)
    (cache / key).unlink()
    put(kind, cache / key, outside)
    with pytest.raises(UnsafePathError, match=f"{key} is a"):
        verify(cache)
    with pytest.raises(UnsafePathError, match=f"{key} is a"):
        read_all(cache)


def test_removal_leaves_links_and_what_they_lead_to_and_names_them(tmp_path, outside):
    cache = tmp_path / "c.zarr"
    synthetic.build(cache)
    (outside / "c").mkdir()
    (outside / "c/0").write_bytes(b"mine")  # named as an object is
    shutil.rmtree(cache / "digests")
    (cache / "digests").symlink_to(outside)
    (cache / "logits/c/0/0/0").unlink()
    (cache / "logits/c/0/0/0").symlink_to(outside / "file")
    assert sorted(remove_cache(cache)) == ["digests", "logits/c/0/0/0"]
    assert (outside / "c/0").read_bytes() == b"mine"
    shutil.rmtree(outside / "c")


def test_removal_of_a_link_to_a_cache_says_so(tmp_path):
    synthetic.build(tmp_path / "c.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "c.zarr")
    with pytest.raises(UnsafePathError, match=r"link\.zarr is a symbolic link, so nothing was"):
        remove_cache(tmp_path / "link.zarr")
    assert verify(tmp_path / "c.zarr").ok


def test_removal_leaves_what_is_only_named_like_a_caches(tmp_path):
    cache = tmp_path / "c.zarr"
    synthetic.build(cache)
    mine = ["notes/c/0", "claims/insurance.pdf", "logits/c/notes/0", "a/zarr.json", ".notes.tmp",
            "logits/.secret.tmp"]  # fmt: skip
    for key in mine:
        (cache / key).parent.mkdir(parents=True, exist_ok=True)
        (cache / key).write_bytes(b"mine")
    assert sorted(remove_cache(cache)) == sorted(mine)


def test_claims_folder_that_is_a_link_is_refused(tmp_path, outside):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/claims").symlink_to(outside)
    with (
        pytest.raises(UnsafePathError, match="claims is a symbolic link"),
        Leases(tmp_path / "run") as claims,
    ):
        claims.claim("run")


# ------------------------------------------------------------------ local copies


@pytest.fixture
def copied(tmp_path, store_in_memory):
    """A store read through copies, and the folder of its copies."""
    store_in_memory.write("a/b", b"data")
    store = ReadThrough(store_in_memory, Copies(tmp_path / "copies", 1 << 20))
    assert store.read("a/b", lambda data: data == b"data") == b"data"
    return store, next((tmp_path / "copies").glob("copies-*"))


@pytest.mark.parametrize("part", ["a/b", "a", ""])
def test_copies_are_neither_read_nor_written_nor_removed_through_a_link(copied, outside, part):
    store, folder = copied
    place = folder / part
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(outside / "file" if part == "a/b" else outside)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        store.read("a/b", lambda data: data == b"data")
    store._limit = 10  # room is made among the copies
    store._make_room(10)


def test_lock_of_copies_that_is_a_link_or_pipe_is_refused(copied, outside):
    store, folder = copied
    locks = folder.parent / "locks"
    for kind in ("dangling", "pipe"):
        shutil.rmtree(locks)
        put(kind, locks / store._lock_of("a/b"), outside)
        (folder / "a/b").unlink()
        with pytest.raises(UnsafePathError, match=r"is a (symbolic link|pipe)"):
            store.read("a/b", lambda data: data == b"data")
        (folder / "a/b").write_bytes(b"data")


@pytest.mark.parametrize("key", ["../x", "/x", "a\\b"])
def test_key_of_a_copy_is_checked(copied, key):
    with pytest.raises((UnsafePathError, StorageError), match="is not the key"):
        copied[0].read(key, lambda _: True)
