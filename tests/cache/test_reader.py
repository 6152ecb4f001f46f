import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from kdscale.cache.manifest import write_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.wait import Patience
from kdscale.cache.writer import create_or_resume
from kdscale.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    KdscaleError,
    OutOfRangeError,
)

SHARD = "view-00001/shard-00002"
OBJECTS = ["logits/c/1/2/0", "digests/c/1/2"]


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def test_view_and_shards_read_the_same(cache):
    reader = CacheReader(cache)
    for view in range(2):
        expected = synthetic.expected_view(synthetic.asked(), view)
        shards = [reader.read_shard(view, shard) for shard in range(3)]
        for name, values in expected.items():
            np.testing.assert_array_equal(reader.read_view(view)[name], values, strict=True)
            parts = np.concatenate([shard[name] for shard in shards])
            np.testing.assert_array_equal(parts, values, strict=True)


def test_labels_read_back(cache):
    np.testing.assert_array_equal(CacheReader(cache).labels(), synthetic.labels(synthetic.asked()))


def test_unlabelled_reads_as_minus_one(tmp_path):
    manifest = create_or_resume(tmp_path, synthetic.asked(), np.full(10, -1, np.int64))
    assert (tmp_path / "labels/c/0").exists()  # though it equals the fill value
    synthetic.write_shards(tmp_path, manifest, synthetic.all_shards(manifest))
    write_manifest(tmp_path, manifest.finished({}))
    assert (CacheReader(tmp_path).labels() == -1).all()


def test_no_cache_and_an_unfinished_one_are_distinguished(tmp_path):
    with pytest.raises(CacheNotFoundError, match=r"no cache at .*: build one"):
        CacheReader(tmp_path)
    create_or_resume(tmp_path, synthetic.asked(), synthetic.labels(synthetic.asked()))
    with pytest.raises(CacheIncompleteError, match=r"not complete: .* again to finish it"):
        CacheReader(tmp_path)


@pytest.mark.parametrize("key", [*OBJECTS, "commits/c/1/2/0"])
@pytest.mark.parametrize("damage", ["flip first", "flip last", "truncate", "empty", "delete"])
def test_damaged_shard_is_named(cache, key, damage):
    reader = CacheReader(cache)
    file = cache / key
    if damage == "delete":
        file.unlink()
    elif damage.startswith("flip"):
        flip(file, 0 if damage == "flip first" else -1)
    else:
        file.write_bytes(file.read_bytes()[: -1 if damage == "truncate" else 0])
    for read in (lambda: reader.read_view(1), lambda: reader.read_shard(1, 2)):
        with pytest.raises(CacheCorruptError, match=SHARD) as caught:
            read()
        assert "shard-00001" not in str(caught.value)
        assert "kdscale cache verify" in str(caught.value)
    reader.read_shard(1, 1)
    reader.read_view(0)


def test_swapped_chunks_are_not_read_though_each_is_sound(cache):
    first, second = cache / "logits/c/0/0/0", cache / "logits/c/0/1/0"
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    with pytest.raises(CacheCorruptError, match=r"shard-00000, view-00000/shard-00001 missing"):
        CacheReader(cache).read_view(0)


class Changing(LocalFolder):
    """A folder whose files change right after they were read for the first time."""

    def __init__(self, path, change):
        super().__init__(path)
        self.reads, self._change = [], change

    def read(self, key, sound=None):
        data = super().read(key)
        if key in OBJECTS and key not in self.reads:
            self._change(self.path / key)
        self.reads.append(key)
        return data


@pytest.mark.parametrize("change", [Path.unlink, lambda file: flip(file, 5)])
def test_bytes_that_are_decoded_are_those_that_were_checked(cache, change):
    store = Changing(cache, change)
    reader = CacheReader(store)
    got, expected = reader.read_view(1), synthetic.expected_view(synthetic.asked(), 1)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, strict=True)
    with pytest.raises(CacheCorruptError, match=SHARD):
        reader.read_shard(1, 2)


def test_every_object_of_a_view_is_read_once(cache):
    store = Changing(cache, lambda _: None)
    reader = CacheReader(store)
    assert len(store.reads) == len(set(store.reads)) == 6
    store.reads.clear()
    reader.read_view(0)
    assert sorted(store.reads) == sorted(set(store.reads))
    assert len(store.reads) == 3 * 3  # logits, digests and record of each shard
    store.reads.clear()
    reader.read_shard(0, 1)
    assert sorted(store.reads) == ["commits/c/0/1/0", "digests/c/0/1", "logits/c/0/1/0"]


def test_many_damaged_shards_make_a_short_message(tmp_path):
    synthetic.build(tmp_path, synthetic.asked(shard_samples=1, num_views=1, num_samples=15))
    shutil.rmtree(tmp_path / "digests/c/0")
    with pytest.raises(
        CacheCorruptError,
        match=r"and 5 more missing.*view-00000/shard-00000: digests/c/0/0 is not there",
    ):
        CacheReader(tmp_path).read_view(0)


@pytest.mark.parametrize("key", ["logits/zarr.json", "commits/zarr.json", "labels/c/0"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_damaged_metadata_is_named_on_opening(cache, key, damage):
    flip(cache / key, 10) if damage == "flip" else (cache / key).unlink()
    with pytest.raises(CacheCorruptError, match=key):
        CacheReader(cache)


def test_labels_that_break_after_opening_are_named(cache):
    reader = CacheReader(cache)
    flip(cache / "labels/c/0", 10)
    with pytest.raises(CacheCorruptError, match="labels/c/0"):
        reader.labels()


def test_manifest_without_checksums_vouches_for_nothing(cache):
    write_manifest(cache, replace(CacheReader(cache).manifest, checksums={}))
    with pytest.raises(CacheCorruptError, match=r"logits/zarr\.json"):
        CacheReader(cache)


READ = """
import sys
from pathlib import Path

path = Path(sys.argv[1])

def refuse(event, args):  # what a read-only disk does, to root too
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.utime", "os.chmod")
    if changes or (event == "open" and args[2] & 3 and str(path) in str(args[0])):
        raise OSError(30, "Read-only file system", str(args[0]))

from kdscale.cache.manifest import read_manifest
from kdscale.cache.catalog import describe
from kdscale.cache.wait import Patience
from kdscale.cache.reader import CacheReader
from kdscale.cache.catalog import list_caches
from kdscale.cache.verify import verify

sys.addaudithook(refuse)
reader = CacheReader(path)
reader.read_view(1), reader.read_shard(0, 2), reader.labels()
assert verify(path).ok
describe(path, read_manifest(path))
assert [found for found, _ in list_caches(path.parent)] == [path]
try:
    (path / "x").write_text("")
except OSError:
    print("read-only")
"""


def test_read_only_folder_is_readable(cache):
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", READ, cache],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    for folder in [cache, *(path for path in cache.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    assert done.stdout.strip() == "read-only", done.stderr


@pytest.mark.parametrize("view", [-1, 2, 10**12])
def test_view_beyond_the_cache_is_reported_with_the_range(cache, view):
    reader = CacheReader(cache)
    for read in (lambda: reader.read_view(view), lambda: reader.read_shard(view, 0)):
        with pytest.raises(IndexError, match=rf"view {view}: .*\.zarr has views 0\.\.1") as caught:
            read()
        assert isinstance(caught.value, KdscaleError)
        assert "repair" not in str(caught.value)


@pytest.mark.parametrize("shard", [-1, 3, 10**12])
def test_shard_beyond_the_cache_is_reported_with_the_range(cache, shard):
    reader = CacheReader(cache)
    with pytest.raises(IndexError, match=rf"shard {shard}: a view of .* has shards 0\.\.2"):
        reader.read_shard(0, shard)


def test_view_beyond_an_unfinished_cache_is_not_waited_for(cache):
    write_manifest(cache, replace(CacheReader(cache).manifest, complete=False))
    with pytest.raises(OutOfRangeError, match=r"view 2: .* has views 0\.\.1"):
        CacheReader(cache, Patience()).read_view(2)


def test_features_that_are_not_stored_are_named(cache):
    with pytest.raises(CacheMismatchError, match=r"features of no module, not those of layer1"):
        CacheReader(cache).read_view(0, ["layer1"])
