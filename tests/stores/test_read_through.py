"""Local copies: right or fetched anew, once for all, within their limit; and never in the way."""

import os
import subprocess
import sys

import numpy as np
import pytest
import synthetic

from kdscale.cache.reader import CacheReader
from kdscale.cache.repair import discard_bad_shards
from kdscale.cache.stores.read_through import Copies, ReadThrough
from kdscale.cache.stores.store import open_store
from kdscale.errors import CacheCorruptError

PER_VIEW = 6  # objects of a view, but for its records


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Objects by key of a finished cache of 2 views in 3 shards each."""
    folder = tmp_path_factory.mktemp("built") / "c.zarr"
    synthetic.build(folder)
    return synthetic.files(folder)


@pytest.fixture
def url(bucket, objects, request):
    """The cache in a bucket, copied there object by object; `proxy` sees the requests of a test."""
    url = f"{bucket}/c.zarr"
    for key, data in objects.items():
        open_store(url).write(key, data)
    request.getfixturevalue("proxy")
    return url


@pytest.fixture
def copies(tmp_path):
    return Copies(tmp_path / "copies", 1 << 20)


def fetched(proxy):
    """Requests since the last call for what copies are made of."""
    paths = [path for method, path in proxy.seen if method == "GET"]
    proxy.seen.clear()
    return [path for path in paths if "/logits/c" in path or "/digests/c" in path]


def files(copies):
    found = [path for path in copies.folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if path.parent.name != "locks")


def check(reader):
    for view in range(2):
        got, wanted = reader.read_view(view), synthetic.expected_view(synthetic.asked(), view)
        for name, values in wanted.items():
            np.testing.assert_array_equal(got[name], values, strict=True)


def test_what_was_read_once_is_not_fetched_again(proxy, url, copies):
    check(CacheReader(copies.over(url)))
    assert len(fetched(proxy)) == 2 * PER_VIEW
    check(CacheReader(copies.over(url)))
    assert fetched(proxy) == []


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_damaged_copy_is_fetched_again(proxy, url, copies, damage):
    check(CacheReader(copies.over(url)))
    fetched(proxy)
    [copy] = [path for path in files(copies) if str(path).endswith("logits/c/1/2/0")]
    copy.write_bytes(damage)
    check(CacheReader(copies.over(url)))
    assert len(fetched(proxy)) == 1
    check(CacheReader(copies.over(url)))
    assert fetched(proxy) == []


def test_copy_of_a_shard_that_was_rebuilt_is_not_used(proxy, url, copies):
    check(CacheReader(copies.over(url)))
    open_store(url).remove("logits/c/1/2/0")
    discard_bad_shards(url, synthetic.labels(synthetic.asked()))
    manifest = synthetic.asked()
    changed = synthetic.rows(manifest, 1, 2)
    changed["logits"] += np.float16(1)
    from kdscale.cache.writer import ShardWriter, finish

    ShardWriter(url, manifest).write(1, 2, changed, 0.25)
    finish(url, manifest, {})
    got = CacheReader(copies.over(url)).read_shard(1, 2)["logits"]
    np.testing.assert_array_equal(got, changed["logits"])


def test_damage_at_the_remote_store_is_no_copy_and_is_named(url, copies):
    open_store(url).write("logits/c/1/2/0", b"damaged")
    for _ in range(2):
        with pytest.raises(CacheCorruptError, match="view-00001/shard-00002"):
            CacheReader(copies.over(url)).read_view(1)
    assert not [path for path in files(copies) if str(path).endswith("logits/c/1/2/0")]


def test_copies_stay_within_their_limit_and_the_least_used_go_first(proxy, url, tmp_path):
    sizes = dict(open_store(url).keys(""))
    object_bytes = sizes["logits/c/0/0/0"]
    copies = Copies(tmp_path / "copies", 3 * object_bytes)
    store = ReadThrough(open_store(url), copies)
    keys = [f"logits/c/{view}/{shard}/0" for view in range(2) for shard in range(2)]

    def read(key):
        fetched(proxy)
        store.read(key, lambda data: True)
        for path in files(copies):  # file systems' clocks are coarse
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
        return len(fetched(proxy))

    assert [read(key) for key in keys[:3]] == [1, 1, 1]
    assert read(keys[0]) == 0  # used just now
    assert read(keys[3]) == 1  # in the place of keys[1]
    assert sum(path.stat().st_size for path in files(copies)) <= copies.limit_bytes
    assert [read(key) for key in (keys[0], keys[2], keys[3])] == [0, 0, 0]
    assert read(keys[1]) == 1


def test_what_else_lies_in_the_folder_stays(url, tmp_path):
    copies = Copies(tmp_path / "mine", 1)
    kept = [tmp_path / "mine" / name for name in ("thesis.tex", "photos/cat.png")]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not to be lost")
        os.utime(file, (0, 0))
    largest = max(size for _, size in open_store(url).keys(""))
    check(CacheReader(Copies(copies.folder, largest).over(url)))
    assert all(file.read_bytes() == b"not to be lost" for file in kept)


def test_object_beyond_the_limit_is_read_and_not_copied(url, tmp_path):
    copies = Copies(tmp_path / "copies", 10)
    check(CacheReader(copies.over(url)))
    assert files(copies) == []


def test_folder_that_cannot_be_written_costs_a_message_and_no_more(url, tmp_path, caplog):
    (tmp_path / "copies").write_text("a file")
    check(CacheReader(Copies(tmp_path / "copies", 1 << 20).over(url)))
    assert caplog.text.count("no local copies") == 1


READ = """
import sys
from pathlib import Path
from kdscale.cache.stores.read_through import Copies
from kdscale.cache.reader import CacheReader
print("ready", flush=True)
sys.stdin.readline()
CacheReader(Copies(Path(sys.argv[2]), 1 << 20).over(sys.argv[1])).read_view(0)
"""


def test_several_processes_fetch_each_object_once(proxy, url, copies):
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, url, str(copies.folder)], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]  # fmt: skip
    for reader in readers:
        reader.stdout.readline()
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    for reader in readers:
        reader.communicate(timeout=60)
        assert reader.returncode == 0
    requests = fetched(proxy)
    assert len(requests) == len(set(requests)) == PER_VIEW


def test_folder_is_read_without_copies(tmp_path, copies):
    assert copies.over(tmp_path) == tmp_path
