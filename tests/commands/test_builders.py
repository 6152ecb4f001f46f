"""Several builders of one cache: joined, killed, on full and read-only disks; and none waits."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
NUM_SHARDS, SHARD, BATCH = 24, 16, 8  # of 128 samples in 3 views


@pytest.fixture
def recipe(write_recipe, tmp_path):
    """A build whose teacher notes each batch, and takes its time over it."""
    torch.manual_seed(0)
    weights = tmp_path / "counted.safetensors"
    save_weights(
        weights,
        create_model("tiny_models:counted", num_classes=4, in_channels=1),
        metadata={},
    )
    options = {"log": str(tmp_path / "batches.txt"), "seconds": 0.005}
    teacher = {"model": "tiny_models:counted", "options": options, "weights": str(weights)}
    return write_recipe(teacher={**teacher, "batch_size": BATCH}, cache={"shard_samples": SHARD})


@pytest.fixture
def whole(kdscale, recipe, tmp_path):
    """What an uninterrupted build by one builder makes."""
    assert kdscale("cache", "build", recipe, "--cache", "whole.zarr").exit_code == 0
    (tmp_path / "batches.txt").unlink()
    return values(tmp_path / "whole.zarr")


def values(path):
    reader = CacheReader(path)
    views = [reader.read_view(view) for view in range(reader.manifest.num_views)]
    return [reader.labels(), *[array for view in views for array in view.values()]]


def assert_whole(path, whole):
    assert verify(path).ok
    for ours, theirs in zip(values(path), whole, strict=True):
        assert np.array_equal(ours, theirs)
    assert not (path / "claims").exists()
    assert not list(path.rglob("*.tmp"))


def batches_of_shards(tmp_path):
    """Batches that builders asked about, by process, less those of the probe."""
    lines = (tmp_path / "batches.txt").read_text().splitlines()
    sizes = Counter(int(pid) for pid, size in map(str.split, lines) if int(size) == BATCH)
    probe = (64 + 128) // BATCH
    return {pid: count - probe for pid, count in sizes.items() if count > probe}


def commits(path):
    return {file: file.stat().st_mtime_ns for file in path.glob("commits/c/*/*/0")}


def wait_until(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)
    assert condition()


def start_another(commands, recipe, tmp_path, shards=3):
    """Start a builder in a process of its own, and wait until it has committed some shards."""
    commands.start("cache", "build", recipe, cwd=tmp_path)
    path = tmp_path / "cache" / "tiny.zarr"
    wait_until(lambda: len(commits(path)) >= shards)
    return path


# ------------------------------------------------------------------ joined


def test_second_builder_joins_and_no_shard_is_built_twice(
    kdscale, commands, recipe, whole, tmp_path
):
    path = start_another(commands, recipe, tmp_path)
    os.kill(commands.pid, signal.SIGSTOP)  # on a busy machine it may be done before we begin
    before = len(commits(path))

    def go_on():
        wait_until(lambda: len(commits(path)) > before)
        os.kill(commands.pid, signal.SIGCONT)

    thread = threading.Thread(target=go_on)
    thread.start()
    done = kdscale("cache", "build", recipe)
    thread.join()
    assert (done.exit_code, commands.wait()) == (0, 0)
    assert done.stdout == "cache/tiny.zarr\n"
    assert_whole(path, whole)
    shares = batches_of_shards(tmp_path)
    assert sum(shares.values()) == NUM_SHARDS * SHARD // BATCH
    assert len(shares) == 2, "one of them did nothing"


@pytest.mark.thorough
def test_builders_that_start_at_the_same_time_build_one_cache(
    kdscale, commands, recipe, whole, tmp_path
):
    for delay in (0.1, 0.2, 0.3):  # seconds that the process takes to begin
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        commands.start("cache", "build", recipe, cwd=tmp_path)
        time.sleep(delay)
        done = kdscale("cache", "build", recipe)
        assert (done.exit_code, commands.wait()) == (0, 0), commands.output.read_text()
        assert [path.name for path in (tmp_path / "cache").glob("*.zarr")] == ["tiny.zarr"]
        assert_whole(tmp_path / "cache" / "tiny.zarr", whole)
    assert sum(batches_of_shards(tmp_path).values()) >= NUM_SHARDS * SHARD // BATCH


def test_builder_with_more_views_joins_and_both_end_with_them(
    kdscale, commands, recipe, write_recipe, whole, tmp_path
):
    path = start_another(commands, recipe, tmp_path)
    done = kdscale("cache", "build", recipe, "--set", "views.count=5")
    assert (done.exit_code, commands.wait()) == (0, 0)
    assert (read_manifest(path).num_views, read_manifest(path).views["count"]) == (5, 5)
    assert verify(path).ok
    for ours, theirs in zip(values(path), whole, strict=False):
        assert np.array_equal(ours, theirs)
    assert sum(batches_of_shards(tmp_path).values()) == NUM_SHARDS // 3 * 5 * SHARD // BATCH


def test_cache_is_finished_once(kdscale, commands, recipe, whole, tmp_path, monkeypatch):
    from kdscale.cache import writer

    written = []
    write = writer.write_manifest
    monkeypatch.setattr(
        writer, "write_manifest", lambda *args: (written.append(args[1].complete), write(*args))
    )
    path = start_another(commands, recipe, tmp_path)
    stamps = set()
    watching = threading.Event()

    def watch():
        while not watching.wait(0.001):
            if read_manifest(path).complete:
                stamps.add((path / "zarr.json").stat().st_mtime_ns)

    thread = threading.Thread(target=watch)
    thread.start()
    assert kdscale("cache", "build", recipe).exit_code == 0
    assert commands.wait() == 0
    watching.set()
    thread.join()
    assert len(stamps | {(path / "zarr.json").stat().st_mtime_ns}) == 1
    assert written.count(True) <= 1


# ------------------------------------------------------------------ killed


def test_builder_that_is_killed_is_taken_over_by_the_other(
    kdscale, commands, recipe, whole, tmp_path
):
    path = start_another(commands, recipe, tmp_path)
    before = commits(path)
    timer = threading.Timer(0.2, commands.kill)
    timer.start()
    assert kdscale("cache", "build", recipe).exit_code == 0
    timer.join()
    assert commands.wait() in (-signal.SIGKILL, 0)
    assert_whole(path, whole)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_builder_that_starts_while_the_time_of_day_jumps_ends_the_same(
    kdscale, commands, recipe, whole, tmp_path, monkeypatch
):
    path = start_another(commands, recipe, tmp_path)
    jumps = itertools.cycle((0.0, 4e9, 1.7e9))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    done = kdscale("cache", "build", recipe)
    assert (done.exit_code, commands.wait()) == (0, 0)
    assert_whole(path, whole)
    assert sum(batches_of_shards(tmp_path).values()) == NUM_SHARDS * SHARD // BATCH


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_builder_that_is_stopped_while_it_waits_leaves_its_claims_free(
    kdscale, commands, recipe, whole, tmp_path, number, code
):
    path = start_another(commands, recipe, tmp_path)
    os.kill(commands.pid, signal.SIGSTOP)
    timer = threading.Timer(3, os.kill, (os.getpid(), number))
    timer.start()
    done = kdscale("cache", "build", recipe)
    timer.join()
    assert done.exit_code == code
    assert "other builders" in done.stderr
    assert NUM_SHARDS - 4 <= len(commits(path)) < NUM_SHARDS
    os.kill(commands.pid, signal.SIGCONT)
    assert commands.wait() == 0
    assert_whole(path, whole)
    assert sum(batches_of_shards(tmp_path).values()) == NUM_SHARDS * SHARD // BATCH


@pytest.mark.slow
def test_two_builders_with_50_kills_end_with_the_same_cache(
    kdscale, commands, recipe, whole, tmp_path
):
    number, killed = random.Random(5), 0
    while killed < 50:
        path = tmp_path / "cache" / "tiny.zarr"
        shutil.rmtree(path, ignore_errors=True)
        commands.start("cache", "build", recipe, cwd=tmp_path)
        timer = threading.Timer(number.uniform(0, 0.6), commands.kill)
        timer.start()
        assert kdscale("cache", "build", recipe).exit_code == 0
        timer.cancel()
        timer.join()
        killed += commands.wait() == -signal.SIGKILL
        assert_whole(path, whole)


def launch(recipe, tmp_path):
    """Start two processes under the launcher; gives it and what it says."""
    left_out = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "COV_CORE_", "COVERAGE_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{environment['PATH']}"
    said = (tmp_path / "launch.txt").open("w")
    command = [ROOT / "launch/cpu.sh", "2", "cache", "build", recipe]
    return subprocess.Popen(
        [str(part) for part in command], cwd=tmp_path, env=environment, stdout=said, stderr=said
    )


@pytest.mark.slow
@pytest.mark.launch
def test_lost_process_of_a_launch_costs_no_finished_shard(kdscale, recipe, whole, tmp_path):
    import psutil

    path = tmp_path / "cache" / "tiny.zarr"
    with launch(recipe, tmp_path) as launcher:
        wait_until(lambda: len(commits(path)) >= 4, 200)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        os.kill(ranks[-1].pid, signal.SIGKILL)
        launcher.wait(100)
    before = commits(path)
    assert kdscale("cache", "build", recipe).exit_code == 0
    assert_whole(path, whole)
    assert {file: file.stat().st_mtime_ns for file in before} == before


# ------------------------------------------------------------------ disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 kB; not everybody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


def test_disk_that_is_full_keeps_what_is_finished_and_goes_on_when_there_is_room(
    kdscale, recipe, whole, small_disk
):
    path = small_disk / "tiny.zarr"
    done = kdscale("cache", "build", recipe, "--cache", path)
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert not verify(path).complete
    assert verify(path).corrupt_shards == ()
    assert not list(path.rglob("*.tmp"))
    before = commits(path)
    assert before
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    assert kdscale("cache", "build", recipe, "--cache", path).exit_code == 0
    assert_whole(path, whole)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_read_only_folder_is_read_and_not_built_in(kdscale, recipe, whole, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    path = small_disk / "tiny.zarr"
    shutil.copytree(tmp_path / "whole.zarr", path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "reused" in kdscale("cache", "build", recipe, "--cache", path).stderr
    assert kdscale("cache", "verify", path).exit_code == 0
    done = kdscale("cache", "build", recipe, "--cache", path, "--set", "views.count=4")
    assert done.exit_code == 1
    assert "Read-only file system" in done.stderr
    assert_whole(path, whole)
