"""Extending: views are added, and nothing that is stored changes, is lost or is asked for again."""

import json
import signal
import threading
import time

import numpy as np
import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.target_sources.cached import CachedTargets

SHARD, BATCH = 16, 8
SHARDS = 128 // SHARD
PROBE = (64 + 128) // BATCH


@pytest.fixture
def recipe(write_recipe, save_random_model, tmp_path):
    """3 views, by a teacher that notes each batch."""
    weights = save_random_model("counted", tmp_path / "counted.safetensors")
    options = {"log": str(tmp_path / "batches.txt"), "cache": str(tmp_path / "cache/tiny.zarr")}
    teacher = {"model": "tiny_models:counted", "options": options, "weights": str(weights)}
    return write_recipe(teacher={**teacher, "batch_size": BATCH}, cache={"shard_samples": SHARD})


@pytest.fixture
def cache(kdscale, recipe, tmp_path):
    assert kdscale("cache", "build", recipe).exit_code == 0
    (tmp_path / "batches.txt").unlink()
    return tmp_path / "cache" / "tiny.zarr"


def batches(tmp_path):
    """Whole batches that the teacher was asked about, probes included."""
    sizes = [int(line.split()[1]) for line in (tmp_path / "batches.txt").read_text().splitlines()]
    return sizes.count(BATCH)


def views_of(path):
    reader = CacheReader(path)
    return [reader.read_view(view) for view in range(reader.manifest.num_views)]


def assert_equal_views(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one | other)


def test_views_are_added_and_the_teacher_runs_on_them_alone(kdscale, recipe, cache, tmp_path):
    before, files = read_manifest(cache), {f: f.stat().st_mtime_ns for f in cache.glob("*/c/**/0")}
    views = views_of(cache)
    done = kdscale("cache", "extend", cache, "--views", 5, "--recipe", recipe, "--json")
    assert done.exit_code == 0, done.stderr
    after = read_manifest(cache)
    assert json.loads(done.stdout) == {
        "path": str(cache), "id": before.id, "num_views": 5,
        "build_seconds": after.build["seconds"],
    }  # fmt: skip
    assert (after.id, after.num_views, after.complete) == (before.id, 5, True)
    assert batches(tmp_path) == 2 * SHARDS * SHARD // BATCH + PROBE
    shards = {f: t for f, t in files.items() if "labels" not in f.parts and "keys" not in f.parts}
    assert shards
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in shards.items())
    assert_equal_views(views_of(cache)[:3], views)
    assert verify(cache).ok
    again = kdscale("cache", "extend", cache, "--views", 5, "--recipe", recipe)
    assert again.stdout == f"{cache}: 5 views\n"


def test_extended_cache_equals_one_built_at_once(kdscale, recipe, cache, tmp_path):
    kdscale("cache", "extend", cache, "--views", 4, "--recipe", recipe)
    kdscale("cache", "build", recipe, "--set", "views.count=4", "--cache", "whole.zarr")
    assert read_manifest(cache).id == read_manifest(tmp_path / "whole.zarr").id
    assert_equal_views(views_of(cache), views_of(tmp_path / "whole.zarr"))


REFUSED = {
    "fewer": (["--views", 2], 2, "has 3 views, --views 2 requests fewer: views are only ever "
              "added, and nothing was changed. To train on the first 2, set views.count = 2"),
    "none": (["--views", 0], 2, "0 is not in the range"),
    "no number": ([], 2, "Missing option '--views'"),
    "fixed mode": (["--views", 5, "--set", "views.mode=fixed", "--set", "views.count=1"], 2,
                   "the teacher sees each image clean, once: there are no more views"),
    "all there are": (
        ["--views", 5, "--set", "views.count=all", "--set",
         'views.operations=["random_horizontal_flip"]'], 2,
        "--views 5, but the recipe's operations have 2 views in all"),
    "no draws": (["--views", 5, "--set", "views.operations=[]", "--set", "views.count=1"], 2,
                 "no operation of the recipe draws anything"),
    "another recipe": (["--views", 5, "--set", "views.seed=3"], 1,
                       "views.seed: the cache has 0, the recipe asks for 3"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_added_is_refused_and_nothing_is_lost(
    kdscale, write_recipe, tiny_teacher, cache_copy, args, code, said
):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    stored = {file: file.read_bytes() for file in cache_copy.rglob("*") if file.is_file()}
    done = kdscale("cache", "extend", cache_copy, "--recipe", recipe, *args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    assert {file: file.read_bytes() for file in cache_copy.rglob("*") if file.is_file()} == stored


def test_cache_that_is_not_there_is_not_begun(kdscale, write_recipe, tiny_teacher, tmp_path):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    done = kdscale("cache", "extend", "none.zarr", "--views", 5, "--recipe", recipe)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: no cache at none.zarr: build one")
    assert not (tmp_path / "none.zarr").exists()


def records(path):
    return {file: file.stat().st_mtime_ns for file in path.glob("commits/c/*/*/0")}


def wait_for(condition, seconds=240):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)
    assert condition()


def test_killed_it_resumes_and_no_finished_shard_is_built_again(commands, recipe, cache, tmp_path):
    views = views_of(cache)
    command = ["cache", "extend", cache, "--views", 7, "--recipe", recipe]
    halt = cache.with_suffix(".halt")
    for shards in (3 * SHARDS + 3, 3 * SHARDS + 12):
        halt.write_text(str(shards))
        commands.start(*command, cwd=tmp_path)
        wait_for(lambda shards=shards: len(records(cache)) >= shards)
        commands.kill(signal.SIGKILL)
        commands.wait()
        kept = records(cache)
        assert not read_manifest(cache).complete
    halt.unlink()
    (tmp_path / "batches.txt").unlink()
    status, output = commands.run(*command, cwd=tmp_path)
    assert status == 0, output
    assert batches(tmp_path) == (7 * SHARDS - len(kept)) * SHARD // BATCH + PROBE
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert_equal_views(views_of(cache)[:3], views)
    assert verify(cache).ok


def test_student_that_reads_the_cache_meanwhile_goes_on(kdscale, recipe, cache):
    views = views_of(cache)
    targets = CachedTargets.open(cache, num_views=3)
    index, wrong, ended = torch.arange(128), [], threading.Event()

    def read():
        while not ended.is_set():
            for view in range(3):
                found = targets.read(view, index).logits_BC
                if not torch.equal(found, torch.from_numpy(views[view]["logits"])):
                    wrong.append(view)

    reading = threading.Thread(target=read)
    reading.start()
    done = kdscale("cache", "extend", cache, "--views", 6, "--recipe", recipe)
    ended.set()
    reading.join()
    targets.close()
    assert done.exit_code == 0
    assert not wrong
