"""A build that is killed at any moment loses at most the shard in flight, and lies to nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_builds.py")


def kills(mode, folder):
    done = subprocess.run(
        [sys.executable, SCRIPT, mode, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kills"]


def test_build_survives_a_kill_before_some_changes_of_the_disk(tmp_path):
    # 25 files, each opened, flushed, renamed and its folder flushed; and the folders.
    assert kills("some of new", tmp_path) > 50  # number of the last change; before each 13th


@pytest.mark.thorough
def test_build_survives_a_kill_before_any_change_of_the_disk(tmp_path):
    assert kills("new", tmp_path) > 50  # before each fifth change


@pytest.mark.thorough
def test_growing_survives_a_kill_before_any_change_of_the_disk(tmp_path):
    assert kills("grown", tmp_path) > 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all of new", "all of grown"])
def test_build_survives_a_kill_before_every_change_of_the_disk(tmp_path, mode):
    assert kills(mode, tmp_path) > 50


@pytest.mark.thorough
def test_repair_survives_a_kill_before_any_change_of_the_disk(tmp_path):
    assert kills("repair", tmp_path) > 50  # the last moment; before each fifth change


@pytest.mark.slow
def test_repair_survives_a_kill_before_every_change_of_the_disk(tmp_path):
    assert kills("all of repair", tmp_path) > 50


@pytest.mark.thorough
def test_build_survives_kills_at_random_moments(tmp_path):
    assert kills("random", tmp_path) == 20


@pytest.mark.slow
def test_build_survives_100_kills_at_random_moments(tmp_path):
    assert kills("random 100", tmp_path) == 100


# ------------------------------------------------------------------ full and read-only disks

FULL = """
import resource, sys
from pathlib import Path
import numpy as np, synthetic
from kdscale.cache.verify import verify
from kdscale.cache.writer import ShardWriter, create_or_resume
from kdscale.errors import StorageError

path = Path(sys.argv[1])
manifest = synthetic.asked(num_samples=40_000, shard_samples=20_000, encoding="float32")
manifest = create_or_resume(path, manifest, synthetic.labels(manifest))
writer = ShardWriter(path, manifest)
random = np.random.default_rng(0)
values = {
    "logits": random.normal(size=(20_000, 5)).astype(np.float32),
    "digests": np.ones(20_000, np.uint64),
}
writer.write(0, 0, values, 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    writer.write(0, 1, values, 0.0)
except StorageError as error:
    assert "cannot write" in str(error) and str(path) in str(error), error
else:
    raise AssertionError("the disk was not full")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not list(path.rglob("*.tmp"))
assert writer.committed().tolist() == [[True, False], [False, False]]
writer.write(0, 1, values, 0.0)
assert verify(path).corrupt_shards == ()
assert writer.committed().tolist() == [[True, True], [False, False]]
"""


def test_write_that_does_not_fit_leaves_no_shard_and_goes_on_later(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "c.zarr"],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
