"""The commands on caches at s3://: build, kill, resume, two builders, train, repair, push."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import open_store
from kdscale.cache.verify import verify


@pytest.fixture
def recipe(write_recipe, tiny_teacher):
    return write_recipe(teacher={"weights": tiny_teacher})


def values(place):
    reader = CacheReader(place)
    views = [reader.read_view(view) for view in range(reader.manifest.num_views)]
    return [reader.labels(), *(array for view in views for array in view.values())]


def assert_same(one, other):
    for ours, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read_manifest(one).id == read_manifest(other).id


def commits(url):
    return [key for key, _ in open_store(url).keys("commits/c")]


@pytest.fixture
def slow_recipe(write_recipe, save_random_model, tmp_path):
    """Of 16 chunks a view, one object, whose teacher takes its time."""

    weights = save_random_model("counted", tmp_path / "counted.safetensors")
    options = {"log": str(tmp_path / "batches.txt"), "seconds": 0.02}
    teacher = {"model": "tiny_models:counted", "options": options, "weights": str(weights)}
    return write_recipe(teacher={**teacher, "batch_size": 8}, cache={"shard_samples": 8})


def test_build_train_and_look_at_a_cache_at_s3(kdscale, recipe, bucket, tiny_cache, tmp_path):
    url = f"{bucket}/my caches/tiny.zarr"
    done = kdscale("cache", "build", recipe, "--cache", url + "/")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == url
    assert_same(tiny_cache, url)
    manifest = read_manifest(url)
    assert (manifest.chunk_samples, manifest.shard_samples) == (32, 128)
    assert len(commits(url)) == 3
    assert "reused" in kdscale("cache", "build", recipe, "--cache", url).output

    info = json.loads(kdscale("cache", "info", url, "--json").stdout)
    assert info["complete"]
    assert info["bytes"] == sum(size for _, size in open_store(url).keys(""))
    assert kdscale("cache", "verify", url).exit_code == 0

    trained = []
    for place, run in ((url, "remote"), (tiny_cache, "local")):
        done = kdscale("train", recipe, "--targets", "cache", "--cache", place, "--run", run)
        assert done.exit_code == 0, done.output
        trained.append(load_file(tmp_path / run / "weights.safetensors"))
    assert all(trained[0][name].equal(tensor) for name, tensor in trained[1].items())
    assert any((tmp_path / "cache/copies").rglob("logits/c/*/0/0"))

    store = open_store(url)
    store.write("logits/c/1/0/0", store.read("logits/c/1/0/0")[:-1] + b"?")
    done = kdscale("cache", "verify", url)
    assert done.exit_code == 1
    assert "corrupt: view-00001/shard-00000" in done.stdout
    done = kdscale("cache", "repair", url, "--recipe", recipe)
    assert done.exit_code == 0, done.output
    assert_same(tiny_cache, url)
    assert kdscale("cache", "remove", url, "--yes").exit_code == 0
    assert not list(open_store(url).keys(""))


def cloud():
    """What a command in a process of its own must know of the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def test_build_that_is_killed_at_s3_goes_on_and_two_builders_share_it(
    kdscale, commands, slow_recipe, bucket, tmp_path
):
    url = f"{bucket}/c.zarr"
    kdscale("cache", "build", slow_recipe, "--cache", "plain.zarr")
    command = ["cache", "build", slow_recipe, "--cache", url]
    commands.start(*command, cwd=tmp_path, **cloud())
    while not commits(url):
        time.sleep(0.02)
    commands.kill()
    assert commands.wait() == -signal.SIGKILL
    kept = commits(url)
    assert kept
    assert not read_manifest(url).complete
    stamps = {key: open_store(url).read(key) for key in kept}

    commands.start(*command, cwd=tmp_path, **cloud())
    done = kdscale(*command)
    assert done.exit_code == 0, done.output
    assert commands.wait() == 0
    assert {key: open_store(url).read(key) for key in kept} == stamps
    assert verify(url).ok
    assert_same(tmp_path / "plain.zarr", url)
    assert read_manifest(url).chunk_samples == 8
    assert not list(open_store(url).keys("claims"))


def test_ctrl_c_does_not_wait_for_the_large_object_in_progress(
    kdscale, slow_recipe, bucket, tmp_path
):
    url, batches = f"{bucket}/c.zarr", tmp_path / "batches.txt"

    def interrupt():
        end = time.monotonic() + 60
        while not any("view-" in key for key, _ in open_store(url).keys("claims")):
            assert time.monotonic() < end
            time.sleep(0.01)
        asked.append(len(batches.read_text().splitlines()))
        os.kill(os.getpid(), signal.SIGINT)

    asked = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    done = kdscale("cache", "build", slow_recipe, "--cache", url)
    thread.join()
    assert done.exit_code == 130
    assert "run the same command again" in done.stderr
    assert len(batches.read_text().splitlines()) < asked[0] + 12  # an object takes 16
    assert commits(url) == []
    assert not list(open_store(url).keys("claims"))


def test_push_and_pull(kdscale, tiny_cache, bucket, tmp_path):
    url = f"{bucket}/tiny.zarr"
    done = kdscale("cache", "push", tiny_cache, url, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["copied"], told["kept"], told["destination"]) == (3, 0, url)
    done = kdscale("cache", "pull", url)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == "cache/tiny.zarr"
    assert_same(tiny_cache, tmp_path / "cache/tiny.zarr")
    assert "no cache at" in kdscale("cache", "pull", f"{bucket}/none.zarr").output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["build", "RECIPE", "--cache-root", "s3://b/c"], "is a URL, wanted a folder"),
        (["build", "RECIPE", "--cache", "s3:/b/c.zarr"], "two slashes"),
        (["info", "s3://"], "cannot be opened"),
        (["info", "nonsense://b/c.zarr"], "cannot be opened"),
        (["list", "--cache-root", "s3://b/c"], "is a URL, wanted a folder"),
    ],
)
def test_urls_that_will_not_do_are_wrong_usage(kdscale, recipe, command, said):
    done = kdscale("cache", *[recipe if word == "RECIPE" else word for word in command])
    assert done.exit_code == 2
    assert said in done.output


def test_unreachable_store_is_one_message(kdscale, bucket, quick_to_give_up):
    done = kdscale("cache", "info", "s3://not-mine/c.zarr")
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "NoSuchBucket" in done.output
