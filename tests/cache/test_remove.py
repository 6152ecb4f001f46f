"""Removing a cache: all of it, nothing else, and never half of one that still looks whole."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import synthetic

from kdscale.cache import lease as claiming
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import read_manifest
from kdscale.cache.remove import check_removable, remove_cache
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.verify import verify
from kdscale.cache.wait import living_builder
from kdscale.errors import CacheError, CacheNotFoundError


class StoppedError(Exception):
    """As a kill would."""


class StopsAfter(LocalFolder):
    """A folder whose removals end after so many."""

    def __init__(self, path, removals):
        super().__init__(path)
        self.left = removals

    def remove(self, key, *, durable=True):
        if self.left == 0 and not key.startswith("claims/"):
            raise StoppedError
        self.left -= not key.startswith("claims/")
        super().remove(key, durable=durable)


@pytest.fixture(params=synthetic.ENCODINGS)
def any_cache(request, tmp_path):
    synthetic.build(tmp_path / "any.zarr", synthetic.encoded(request.param))
    return tmp_path / "any.zarr"


def test_nothing_of_a_cache_is_left(any_cache):
    assert remove_cache(any_cache) == []
    assert not any_cache.exists()


def test_unfinished_and_damaged_caches_can_be_removed(cache):
    (cache / "zarr.json").write_text('{"attributes": {"kdscale": {"cut off')
    (cache / "logits/c/0/0/.0.host.1.abcd.tmp").write_bytes(b"x")
    remove_cache(cache)
    assert not cache.exists()


def test_other_files_stay_and_are_named(cache):
    (cache / "notes.txt").write_text("mine")
    (cache / "logits/own").mkdir()
    (cache / "logits/own/a.txt").write_text("mine too")
    assert sorted(remove_cache(cache)) == ["logits/own/a.txt", "notes.txt"]
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert sorted(file.name for file in files) == ["a.txt", "notes.txt"]


def test_half_removed_cache_is_none_and_the_same_command_goes_on(cache, tmp_path):
    number = len(synthetic.files(cache))
    for removals in range(1, number):
        copy = tmp_path / f"copy-{removals}.zarr"
        shutil.copytree(cache, copy)
        with pytest.raises(StoppedError):
            remove_cache(StopsAfter(copy, removals))
        with pytest.raises(CacheNotFoundError):
            read_manifest(copy)
        remove_cache(copy)
        assert not copy.exists()


def test_first_of_all_the_manifest_goes(cache):
    with suppress(StoppedError):
        remove_cache(StopsAfter(cache, 1))
    assert not (cache / "zarr.json").exists()
    assert (cache / "logits/zarr.json").exists()


@pytest.mark.parametrize("content", ["nothing", "file", "text", "zarr", "array"])
def test_what_is_no_cache_is_refused_and_left_in_place(tmp_path, content):
    place = tmp_path / "place.zarr"
    if content == "file":
        place.write_text("mine")
    elif content != "nothing":
        place.mkdir()
        (place / "a.txt").write_text("mine")
    if content == "zarr":
        (place / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    if content == "array":  # somebody's, called as ours
        (place / "commits").mkdir()
        (place / "commits/zarr.json").write_text('{"dimension_names": ["time"]}')
    before = sorted(tmp_path.rglob("*"))
    wanted = CacheNotFoundError if content == "nothing" else CacheError
    with pytest.raises(wanted, match=r"nothing (to|was) remove"):
        remove_cache(place)
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------ builders


def test_cache_that_is_being_built_is_refused(cache):
    with Leases(cache) as builder:
        assert builder.claim("view-00000-shard-00000")
        with pytest.raises(CacheError, match=rf"being built by process {os.getpid()} on"):
            remove_cache(cache)
    assert verify(cache).ok
    check_removable(cache)


def test_builder_of_this_machine_that_was_killed_is_no_obstacle(cache):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom kdscale.cache.lease import Leases\n"
        "Leases(Path(sys.argv[1])).claim('view-00000-shard-00000')\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, cache], check=False)
    assert done.returncode == -9
    assert list((cache / "claims").iterdir())
    remove_cache(cache)
    assert not cache.exists()


def test_counter_of_another_machine_is_watched(cache, monkeypatch):
    (cache / "claims").mkdir()
    counter = cache / "claims/0123456789abcdef.builder"
    counter.write_bytes(b"%020d" % 1)
    assert living_builder(cache, patience_seconds=0.3) is None
    sleep = claiming.time.sleep

    def count_on(seconds):
        counter.write_bytes(b"%020d" % 2)
        sleep(seconds)

    monkeypatch.setattr(claiming.time, "sleep", count_on)
    assert "another machine" in living_builder(cache, patience_seconds=5)


# ------------------------------------------------------------------ the command


def test_command_asks_and_takes_no_for_an_answer(kdscale, cache):
    done = kdscale("cache", "remove", cache)  # at the end of the input
    assert done.exit_code == 1
    assert f"Remove {cache}: 2 views x 10 samples, float16" in done.stderr
    assert verify(cache).ok


def test_command_removes_without_asking(kdscale, cache):
    done = kdscale("cache", "remove", cache, "--yes")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert not cache.exists()
    again = kdscale("cache", "remove", cache, "--yes")
    assert again.exit_code == 1
    assert "Error: nothing to remove" in again.stderr
