"""Building caches: the same values however they come about, and clear words where they cannot."""

import random
import shutil
import signal
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.errors import DeviceMemoryError
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher, freeze


def values(path):
    """Everything a cache stores."""
    reader = CacheReader(path)
    views = [reader.read_view(view) for view in range(reader.manifest.num_views)]
    return [reader.labels(), *[array for view in views for array in view.values()]]


def assert_same_values(one, other):
    for ours, theirs in zip(values(one), values(other), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.fixture
def weights_of(tmp_path):
    """Writes random weights of a tiny model, without metadata; returns the file."""

    def write(name, seed=0, num_classes=4):
        torch.manual_seed(seed)
        model = create_model(f"tiny_models:{name}", num_classes=num_classes, in_channels=1)
        path = tmp_path / f"{name}-{seed}.safetensors"
        save_weights(path, model, metadata={})
        return str(path)

    return write


def teacher(name, weights, **changes):
    return {"model": f"tiny_models:{name}", "options": {}, "weights": weights, **changes}


# --------------------------------------------------------------------------- what a build says


def test_build_prints_the_probe_the_size_and_the_path(kdscale, write_recipe, tiny_teacher):
    done = kdscale("cache", "build", write_recipe(teacher={"weights": tiny_teacher}))
    assert done.exit_code == 0
    assert done.stdout == "cache/tiny.zarr\n"
    assert "teacher's top-1 on 128 random training images: " in done.stderr
    assert "3 views of 128 samples, 0 of 12 shards done; about 0.0 MB and 0 s to go" in done.stderr
    assert "cache/tiny.zarr is complete" in done.stderr


def test_manifest_describes_data_views_teacher_and_fidelity(tiny_cache, load_table):
    found = read_manifest(tiny_cache)
    assert found.complete
    assert (found.num_views, found.num_samples, found.num_classes) == (3, 128, 4)
    assert found.dataset["classes"] == ["centre", "north", "sides", "south"]
    assert found.views["seed"] == 0
    assert found.teacher["model"] == "tiny_models:mlp"
    assert found.teacher["top1_accuracy"] > 0.8
    assert found.teacher["precision"] == "float32"
    assert found.fidelity["kl_t4"] == 0  # float32
    assert found.fidelity["num_samples"] == 128
    assert {"torch", "zarr", "kdscale"} <= found.versions.keys()
    assert found.build["seconds"] > 0
    assert verify(tiny_cache).ok


def test_second_build_reuses_the_first(kdscale, write_recipe, tiny_teacher, tmp_path):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    first = kdscale("cache", "build", recipe)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "tiny.zarr").rglob("*")}
    again = kdscale("cache", "build", recipe)
    assert again.stdout == first.stdout
    assert "fits and is complete: reused" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_cache_is_found_by_content_under_any_name(kdscale, write_recipe, tiny_teacher):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    kdscale("cache", "build", recipe, "--cache", "cache/other.zarr")
    again = kdscale("cache", "build", write_recipe("renamed", teacher={"weights": tiny_teacher}))
    assert again.stdout == "cache/other.zarr\n"


def test_more_views_are_added_to_the_same_cache(kdscale, write_recipe, tiny_teacher, tmp_path):
    weights = {"weights": tiny_teacher}
    kdscale("cache", "build", write_recipe(teacher=weights))
    before = values(tmp_path / "cache" / "tiny.zarr")
    done = kdscale("cache", "build", write_recipe(teacher=weights, views={"count": 5}))
    assert done.stdout == "cache/tiny.zarr\n"
    assert "12 of 20 shards done" in done.stderr
    after = values(tmp_path / "cache" / "tiny.zarr")
    assert len(after) == 1 + 2 * 5
    for ours, theirs in zip(before, after, strict=False):
        assert np.array_equal(ours, theirs)
    assert verify(tmp_path / "cache" / "tiny.zarr").ok
    fewer = kdscale("cache", "build", write_recipe(teacher=weights, views={"count": 2}))
    assert "reused" in fewer.stderr


def test_shard_size_and_batch_size_do_not_change_what_is_stored(
    kdscale, write_recipe, tiny_teacher, tiny_cache, tmp_path
):
    recipe = write_recipe(
        teacher={"weights": tiny_teacher}, cache={"shard_samples": 24}, data={"label": "label"}
    )
    assert kdscale("cache", "build", recipe).exit_code == 0
    ours = CacheReader(tmp_path / "cache" / "tiny.zarr")
    theirs = CacheReader(tiny_cache)
    assert ours.manifest.id == theirs.manifest.id
    assert ours.manifest.num_shards == 6
    for view in range(3):
        one, other = ours.read_view(view), theirs.read_view(view)
        assert np.array_equal(one["digests"], other["digests"])
        assert np.allclose(one["logits"], other["logits"], atol=1e-5)


# --------------------------------------------------------------------------- other caches


@pytest.fixture
def plain_teacher(tiny_teacher, tmp_path):
    """The tiny teacher's weights without metadata, so that the recipe says how it is shown."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(tiny_teacher), tmp_path / "plain.safetensors")
    return str(tmp_path / "plain.safetensors")


DIFFERENT = {
    "view seed": ({"views": {"seed": 7}}, ["views.seed: the cache has 0, the recipe asks for 7"]),
    "operations": (
        {"views": {"operations": ["random_horizontal_flip"]}},
        ["views.operations: the cache has [{"],
    ),
    "encoding": (
        {"cache": {"encoding": "float16"}},
        ["encoding: the cache has float32, the recipe asks for float16"],
    ),
    "precision": (
        {"teacher": {"precision": "bfloat16"}},
        ["teacher.precision: the cache has float32, the recipe asks for bfloat16"],
    ),
    "memory format": (
        {"teacher": {"memory_format": "contiguous"}},
        ["teacher.memory_format: the cache has channels_last, the recipe asks for contiguous"],
    ),
    "options": (
        {"teacher": {"options": {"hidden": 32, "dropout": 0.5}}},
        ["teacher.options.dropout: the cache has (nothing), the recipe asks for 0.5"],
    ),
    "preprocessing": (
        {"teacher": {"input": {"mean": [0.5]}}},
        ["teacher.preprocess.mean", "the cache has 0.4, the recipe asks for 0.5"],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), DIFFERENT.values(), ids=DIFFERENT)
def test_named_cache_of_other_content_is_refused_naming_both_values(
    kdscale, write_recipe, plain_teacher, cache_copy, changes, expected
):
    changes = {**changes, "teacher": {"weights": plain_teacher, **changes.get("teacher", {})}}
    recipe = write_recipe(**changes)
    for command in (("cache", "build"), ("train", "--targets", "cache")):
        done = kdscale(*command, recipe, "--cache", cache_copy)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert f"Error: {cache_copy} holds other targets" in done.stderr
        for line in expected:
            assert line in done.stderr
    assert verify(cache_copy).ok


def test_named_cache_of_fewer_views_is_refused_by_a_training(
    kdscale, write_recipe, tiny_teacher, cache_copy
):
    recipe = write_recipe(views={"count": 9}, teacher={"weights": tiny_teacher})
    done = kdscale("train", "--targets", "cache", recipe, "--cache", cache_copy)
    assert done.exit_code == 1
    assert "views.count: the cache has 3, the recipe asks for 9" in done.stderr


def test_named_cache_of_another_teacher_is_refused(
    kdscale, write_recipe, weights_of, cache_copy, make_dataset, tmp_path
):
    recipe = write_recipe(teacher=teacher("linear", weights_of("linear")))
    done = kdscale("cache", "build", recipe, "--cache", cache_copy)
    assert done.exit_code == 1
    assert "teacher.weights_sha256: the cache has " in done.stderr


def test_named_cache_of_other_data_is_refused(
    kdscale, write_recipe, plain_teacher, cache_copy, make_dataset, tmp_path
):
    other = make_dataset(tmp_path / "other", num_train=96, seed=9)
    recipe = write_recipe(teacher={"weights": plain_teacher})
    done = kdscale("cache", "build", recipe, "--data", other, "--cache", cache_copy)
    assert done.exit_code == 1
    assert "dataset.fingerprint: the cache has " in done.stderr
    assert "dataset.num_samples: the cache has 128, the recipe asks for 96" in done.stderr


def test_every_differing_field_is_named_at_once(kdscale, write_recipe, weights_of, cache_copy):
    recipe = write_recipe(
        views={"seed": 7, "operations": ["random_horizontal_flip"]},
        cache={"encoding": "float16"},
        teacher=teacher("linear", weights_of("linear"), precision="bfloat16"),
    )
    done = kdscale("cache", "build", recipe, "--cache", cache_copy)
    for field in ("views.seed", "views.operations", "encoding", "teacher.weights_sha256",
                  "teacher.precision"):  # fmt: skip
        assert f"  {field}: the cache has " in done.stderr


def test_other_content_without_a_name_gets_a_second_cache(
    kdscale, write_recipe, tiny_teacher, tmp_path
):
    first = kdscale("cache", "build", write_recipe(teacher={"weights": tiny_teacher}))
    second = kdscale(
        "cache", "build", write_recipe(teacher={"weights": tiny_teacher}, views={"seed": 1})
    )
    assert second.exit_code == 0
    assert second.stdout != first.stdout
    caches = sorted((tmp_path / "cache").glob("*.zarr"))
    assert len(caches) == 2
    assert all(verify(path).ok for path in caches)


def test_folder_that_is_no_cache_is_left_alone(kdscale, write_recipe, tiny_teacher, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    done = kdscale("cache", "build", recipe, "--cache", "mine")
    assert done.exit_code == 1
    assert "mine exists and is not a cache" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# --------------------------------------------------------------------------- memory


@pytest.mark.parametrize("model", ["hungry", "hungry_cpu"])
def test_batches_are_halved_with_a_message_when_memory_runs_out(
    kdscale, write_recipe, weights_of, tmp_path, model
):
    weights = weights_of(model)
    done = kdscale("cache", "build", write_recipe(teacher=teacher(model, weights)))
    assert done.exit_code == 0
    assert "the device ran out of memory: teacher batches of 16 now" in done.stderr
    assert "the device ran out of memory: teacher batches of 8 now" in done.stderr
    small = write_recipe(teacher=teacher(model, weights, batch_size=8))
    kdscale("cache", "build", small, "--cache", "cache/small.zarr")
    assert_same_values(tmp_path / "cache" / "tiny.zarr", tmp_path / "cache" / "small.zarr")


def test_memory_for_not_even_one_image_is_an_error_with_advice(kdscale, write_recipe, weights_of):
    recipe = write_recipe(
        teacher=teacher("hungry", weights_of("hungry"), options={"largest": 2}, batch_size=4)
    )
    assert kdscale("cache", "build", recipe).exit_code == 0
    frozen = freeze(
        create_model("tiny_models:hungry", num_classes=4, in_channels=1),
        Preprocess((0.0,), (1.0,), None),
        precision="float32",
        memory_format="contiguous",
        device=torch.device("cpu"),
    )

    class Full(FrozenTeacher):
        def outputs(self, pixels):
            raise torch.OutOfMemoryError("no")

    given = {field.name: getattr(frozen, field.name) for field in fields(frozen) if field.init}
    full = Full(**given)
    with pytest.raises(DeviceMemoryError, match="no memory for the teacher and one image"):
        OomSafeTeacher(full, 4).logits(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))


# --------------------------------------------------------------------------- interruptions


@pytest.fixture
def slow_recipe(write_recipe, weights_of):
    """A build of half a second, so that it can be stopped in its middle."""
    slow = teacher("slow", weights_of("slow"), batch_size=8, options={"seconds": 0.005})
    return write_recipe(teacher=slow, cache={"shard_samples": 16})


@pytest.fixture
def uninterrupted(commands, slow_recipe, tmp_path):
    status, output = commands.run("cache", "build", slow_recipe, "--cache", "whole", cwd=tmp_path)
    assert status == 0, output
    return tmp_path / "whole"


def wait_until(condition, seconds=30):
    """Wait as briefly as possible; the condition may also never come true."""
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)


def kill_while_building(commands, recipe, tmp_path, seconds):
    """Kill a build `seconds` after its folder appeared; whether it died of that."""
    path = tmp_path / "cache" / "tiny.zarr"
    commands.start("cache", "build", recipe, cwd=tmp_path)
    wait_until(path.exists)
    time.sleep(seconds)
    commands.kill()
    return commands.wait() == -signal.SIGKILL


def check_kills(commands, recipe, uninterrupted, tmp_path, moments, kills):
    """Kill builds at the moments, until so many kills have hit one before it ended."""
    killed = 0
    for moment in moments:
        if killed == kills:
            break
        shutil.rmtree(tmp_path / "cache" / "tiny.zarr", ignore_errors=True)
        killed += kill_while_building(commands, recipe, tmp_path, moment)
        status, output = commands.run("cache", "build", recipe, cwd=tmp_path)
        assert status == 0, output
        assert [p.name for p in (tmp_path / "cache").glob("*.zarr")] == ["tiny.zarr"]
        assert_same_values(tmp_path / "cache" / "tiny.zarr", uninterrupted)
        assert verify(tmp_path / "cache" / "tiny.zarr").ok
        assert not list((tmp_path / "cache" / "tiny.zarr").rglob("*.tmp"))
    assert killed == kills, "builds end before they can be killed"


def test_killed_build_started_again_equals_an_uninterrupted_one(
    commands, slow_recipe, uninterrupted, tmp_path
):
    number = random.Random(0)
    moments = [0.0, *(number.uniform(0.0, 0.4) for _ in range(60))]
    check_kills(commands, slow_recipe, uninterrupted, tmp_path, moments, kills=5)


@pytest.mark.slow
def test_build_killed_at_20_random_moments_equals_an_uninterrupted_one(
    commands, slow_recipe, uninterrupted, tmp_path
):
    number = random.Random(1)
    moments = (number.uniform(0.0, 0.5) for _ in range(200))
    check_kills(commands, slow_recipe, uninterrupted, tmp_path, moments, kills=20)


def test_build_killed_again_and_again_keeps_its_finished_shards(
    commands, slow_recipe, uninterrupted, tmp_path
):
    path = tmp_path / "cache" / "tiny.zarr"
    committed = [0]
    for _ in range(3):
        commands.start("cache", "build", slow_recipe, cwd=tmp_path)

        def more(before=committed[-1]):
            return len(list(path.glob("commits/c/*/*/0"))) >= before + 3

        wait_until(more)
        commands.kill()
        commands.wait()
        committed.append(len(list(path.glob("commits/c/*/*/0"))))
    assert committed == sorted(set(committed))
    status, output = commands.run("cache", "build", slow_recipe, cwd=tmp_path)
    assert status == 0
    assert f"{committed[-1]} of 24 shards done" in output
    assert_same_values(path, uninterrupted)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_stopped_build_keeps_shards_and_says_how_to_go_on(
    commands, slow_recipe, uninterrupted, tmp_path, number, code
):
    path = tmp_path / "cache" / "tiny.zarr"
    commands.start("cache", "build", slow_recipe, cwd=tmp_path)
    wait_until(lambda: len(list(path.glob("commits/c/*/*/0"))) >= 4)
    commands.kill(number)
    assert commands.wait() == code
    output = commands.output.read_text()
    assert "Error: stopped; finished shards of cache/tiny.zarr are stored" in output
    assert "run the same command again" in output
    assert "Traceback" not in output
    kept = len(list(path.glob("commits/c/*/*/0")))
    assert 4 <= kept < 24
    status, output = commands.run("cache", "build", slow_recipe, cwd=tmp_path)
    assert status == 0
    assert f"{kept} of 24 shards done" in output
    assert_same_values(path, uninterrupted)


def test_disk_that_fills_up_during_a_build_loses_no_finished_shard(
    kdscale, write_recipe, tiny_teacher, tiny_cache, tmp_path, monkeypatch
):
    import errno

    from kdscale import atomic_write
    from kdscale.cache.stores import local

    written = [0]

    def fills_up(path, data, check=None, root=None):
        written[0] += 1
        if written[0] > 20:
            raise atomic_write.storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        atomic_write.write_durably(path, data, root=root)

    monkeypatch.setattr(local, "write_durably", fills_up)
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    done = kdscale("cache", "build", recipe)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: cannot write ")
    assert "No space left on device" in done.stderr
    written[0] = -1000
    again = kdscale("cache", "build", recipe)
    assert again.exit_code == 0
    assert " 0 of 12 shards done" not in again.stderr
    assert_same_values(tmp_path / "cache" / "tiny.zarr", tiny_cache)


def test_too_small_disk_is_reported_before_the_build(
    kdscale, write_recipe, tiny_teacher, monkeypatch
):
    usage = shutil.disk_usage("/")
    small = usage._replace(free=10) if hasattr(usage, "_replace") else replace(usage, free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    done = kdscale("cache", "build", write_recipe(teacher={"weights": tiny_teacher}))
    assert done.exit_code == 1
    assert "cache/tiny.zarr needs about " in done.stderr
    assert "are free: free some, " in done.stderr
