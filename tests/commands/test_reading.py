"""Training from a cache that does not fit in memory: what it says, and what it holds."""

import json
import os
import subprocess
import sys

import pytest

from kdscale.runs.log import read_metrics

SCRIPT = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from kdscale.cache.reader import CacheReader
from kdscale.target_sources.cached import CachedTargets
from kdscale.data.loader import BatchLoader
from kdscale.target_sources.memory_plan import plan_memory
from kdscale.data.views.pipeline import Pipeline

path, memory, epochs = sys.argv[1], int(sys.argv[2]) or None, 3
reader = CacheReader(path)
plan = plan_memory(memory, [reader.manifest], num_views=reader.manifest.num_views, epochs=epochs)
cached = CachedTargets(reader, torch.device("cpu"), memory=plan)
count = cached.manifest.num_samples
student = torch.nn.Linear(cached.manifest.num_classes, 1)
class Images:
    device = torch.device("cpu")
loader = BatchLoader(
    Images(), torch.arange(count), Pipeline(()), cached.schedule,
    seed=0, global_batch_size=64, windows=cached.windows,
)
seen = torch.zeros(epochs, count)
for step in range(epochs * loader.steps_per_epoch):
    epoch, index = step // loader.steps_per_epoch, loader.index(step)
    cached.start_epoch(epoch)
    student(cached.read(cached.schedule.view(epoch, index), index).logits_BC).sum().backward()
    seen[epoch, index] += 1
assert (seen == 1).all()
cached.close()
reading = cached.reading()
print(json.dumps({
    "held_bytes": reading.buffer_bytes, "num_windows": reading.num_windows,
    "amplification": reading.amplification,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}))
"""


@pytest.fixture
def train(kdscale, write_recipe, tiny_cache):
    def run(*args, **changes):
        return kdscale(
            "train", write_recipe(**changes), "--targets", "cache", "--cache", tiny_cache, *args
        )

    return run


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_result_says_what_reading_cost(train, tmp_path):
    done = train("--run", "whole", cache={"targets_memory": "1 MiB"})
    assert done.exit_code == 0, done.stderr
    assert "exceed" not in done.stderr
    whole = result(tmp_path / "whole")["reading"]
    assert whole["num_windows"] == 1
    assert whole["held_bytes"] == 2 * 128 * 20  # two epochs' views: 4 float32 logits and a digest
    assert whole["read_amplification"] == 1
    assert whole["waited_share"] <= 1
    assert whole["needed_bytes"] == whole["read_bytes"]
    done = train("--run", "parts", cache={"targets_memory": 3200})
    assert done.exit_code == 0, done.stderr
    assert "2.5 KiB, exceed cache.targets_memory, so they are read in 4 windows" in done.stderr
    assert "1.00 times what was needed, into 1.3 KiB of memory; waited " in done.stderr
    parts = result(tmp_path / "parts")["reading"]
    assert parts["num_windows"] == 4
    assert parts["held_bytes"] <= 3200
    assert parts["read_bytes"] == whole["read_bytes"]


def test_held_out_samples_are_read_and_not_needed(train, tmp_path):
    done = train("--run", "out", data={"validation": 0.25})
    assert done.exit_code == 0, done.stderr
    assert result(tmp_path / "out")["reading"]["read_amplification"] == pytest.approx(4 / 3, 1e-3)


def test_where_one_epoch_fits_and_not_two_the_log_says_what_would_help(train):
    done = train("--run", "out", cache={"targets_memory": 5000})
    assert done.exit_code == 0, done.stderr
    assert "next epoch are not prefetched: cache.targets_memory of 6.9 KiB" in done.stderr


def test_windows_learn_the_same_targets_in_another_order(train, tmp_path):
    for name, memory in (("whole", "4 GiB"), ("parts", 3200)):
        assert train("--run", name, cache={"targets_memory": memory}).exit_code == 0
    losses = [
        [one["loss"] for one in read_metrics(tmp_path / name) if "loss" in one]
        for name in ("whole", "parts")
    ]
    assert losses[0] != losses[1]
    assert sum(losses[0][-4:]) == pytest.approx(sum(losses[1][-4:]), rel=0.3)


def test_run_by_windows_does_not_go_on_from_a_cache_laid_out_otherwise(
    kdscale, write_recipe, tiny_cache, tiny_teacher, tmp_path
):
    recipe = write_recipe(cache={"targets_memory": 3200}, teacher={"weights": tiny_teacher})
    begun = ["train", recipe, "--targets", "cache", "--run", "run"]
    assert kdscale(*begun, "--cache", tiny_cache).exit_code == 0
    (tmp_path / "run/result.json").unlink()  # as if killed just before
    other = ["--set", "cache.shard_samples=16", "--cache", "other.zarr"]
    assert kdscale("cache", "build", recipe, *other).exit_code == 0
    done = kdscale(*begun, "--cache", "other.zarr", "--resume")
    assert done.exit_code == 1
    assert "windows of units of 32 samples" in done.stderr
    assert "windows of units of 16 samples" in done.stderr
    assert kdscale(*begun, "--cache", tiny_cache, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": {"targets_memory": 3199}}, "is 3.2 KiB, but two windows of 32 samples"),
        ({"cache": {"targets_memory": "much"}}, "cache.targets_memory is 'much': wanted bytes, 1"),
        ({"cache": {"targets_memory": 0}}, "cache.targets_memory is 0: wanted bytes, 1 or more"),
        (
            {
                "cache": {"targets_memory": 3200},
                "student": {"train": {"global_batch_size": 64}},
            },
            "32 training samples, fewer than a batch of 64: set a larger cache.targets_memory",
        ),
        ({"views": {"pair_within": 1}}, "views.pair_within is 1"),
    ],
)
def test_what_cannot_be_held_is_refused(train, changes, message, tmp_path):
    done = train("--run", "out", **changes)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()


MIXING = {"operations": ["random_horizontal_flip", "mixup"]}


def test_partners_within_blocks_are_another_cache(kdscale, write_recipe, tiny_teacher, tmp_path):
    teacher = {"weights": tiny_teacher}
    together = MIXING | {"pair_within": 32}
    small = {"targets_memory": 3200}
    for name, views in (("any", MIXING), ("blocks", together)):
        recipe = write_recipe(name, views=views, teacher=teacher, cache=small)
        assert kdscale("cache", "build", recipe, "--cache", f"{name}.zarr").exit_code == 0
    found = {
        name: json.loads(kdscale("cache", "info", f"{name}.zarr", "--json").stdout)
        for name in ("any", "blocks")
    }
    assert found["any"]["views"]["pairing"] == {"num_samples": 128, "validation": 0.0}
    assert found["blocks"]["views"]["pairing"]["within"] == 32
    assert found["any"]["id"] != found["blocks"]["id"]
    for name, apart in (("any", True), ("blocks", False)):
        done = kdscale(
            "train", f"{name}.toml", "--targets", "cache", "--cache", f"{name}.zarr", "--run", name
        )
        assert done.exit_code == 0, done.stderr
        assert ("a cache with views.pair_within = 32 would not" in done.stderr) == apart
        assert result(tmp_path / name)["reading"]["num_windows"] == 4
    done = kdscale("train", "blocks.toml", "--targets", "cache", "--cache", "any.zarr")
    assert done.exit_code != 0
    assert "views.pairing.within: the cache has (nothing), the recipe asks for 32" in done.stderr


@pytest.mark.parametrize("within", [None, 32])
def test_fixed_mode_needs_both_answers_in_memory(
    kdscale, write_recipe, tiny_teacher, tmp_path, within
):
    views = MIXING | {"mode": "fixed", "count": None, "pair_within": within}
    recipe = write_recipe(
        views=views, teacher={"weights": tiny_teacher}, cache={"targets_memory": 3200}
    )
    done = kdscale("train", recipe, "--targets", "cache", "--run", "out")
    if within is None:
        assert done.exit_code == 2
        assert "set a larger one, or views.pair_within = 32" in done.stderr
    else:
        assert done.exit_code == 0, done.stderr
        assert result(tmp_path / "out")["reading"]["num_windows"] == 4


# --------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def large_cache(tmp_path_factory):
    """Two views of 80 MB each."""
    from tests.cache import synthetic

    path = tmp_path_factory.mktemp("large") / "large.zarr"
    sizes = {"num_samples": 40000, "shard_samples": 500, "num_views": 2, "num_classes": 1000}
    views = {
        "generator": 1,
        "seed": 0,
        "operations": [{"name": "random_horizontal_flip", "p": 0.5}],
    }
    synthetic.build(path, synthetic.asked(**sizes, views=views))
    return path


@pytest.mark.slow
def test_training_from_ten_times_its_memory_holds_no_more_than_that(large_cache):
    memory = 8_000_000

    def run(limit):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, large_cache, str(limit)],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole, parts = run(0), run(memory)
    view = 40000 * 2004
    assert whole["held_bytes"] == 2 * view > 20 * memory
    assert parts["held_bytes"] <= memory
    assert parts["num_windows"] > 20
    assert parts["amplification"] == 1
    # All of one, and a tenth of a view of the other; the rest of both processes is the same.
    assert whole["peak_bytes"] - parts["peak_bytes"] > 2 * view - 2 * memory
