"""The benchmark reports every rate and ratio with its spread, and says them in words."""

import json
from pathlib import Path

import pytest

VARIANTS = ("fixed_batch", "plain", "supervised", "staged", "cached", "online", "views")
RATIOS = (
    "fixed_batch_over_plain_time",
    "supervised_over_plain_time",
    "cached_over_staged_time",
    "cached_over_supervised_time",
    "online_over_cached_time",
    "views_over_supervised_time",
    "build_over_bare_teacher_time",
)


@pytest.fixture
def bench(kdscale, write_recipe):
    def run(*args, **changes):
        done = kdscale("bench", write_recipe(**changes), "--seconds", 1, *args)
        assert done.exit_code == 0, done.stderr
        return done

    return run


def test_json_holds_all_rates_and_ratios_with_their_spread(bench):
    found = json.loads(bench("--json").stdout)
    rates = {f"{name}_images_per_second" for name in VARIANTS}
    spreads = {f"{name}_spread" for name in RATIOS}
    measured = {name for name in found if name.endswith(("_images_per_second", "_time", "_spread"))}
    assert measured == rates | set(RATIOS) | spreads | {"build_images_per_second"}
    assert all(found[name] > 0 for name in rates)
    for name in RATIOS:
        low, high = found[f"{name}_spread"]
        assert 0 < low <= found[name] <= high
    assert found["rounds"] >= 5  # 50 unless that takes twice the time that was given
    assert found["recipe"] == "tiny"
    assert found["reading"]["read_amplification"] == 1
    assert found["reading"]["num_windows"] == 1


def test_table_shows_rates_and_ratios(bench):
    shown = bench().stdout
    assert "images/s" in shown
    assert "smallest .. largest round" in shown
    assert "reading targets: cached / in memory" in shown


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"hard_weight": 1.0, "soft_weight": 0.0}},
        {"views": {"operations": [], "count": 1}, "student": {"train": {"gradient_clip": 1.0}}},
        {"cache": {"targets_memory": 3200}},
    ],
    ids=["without a soft loss", "without views", "by windows"],
)
def test_any_recipe_can_be_measured(bench, changes):
    assert json.loads(bench("--json", **changes).stdout)["cached_images_per_second"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": {"mode": "fixed", "count": None}}, "set views.mode = 'replayed'"),
        ({"loss": {"hard_weight": 0.0}, "data": {"source": "unlabelled"}}, "has no labels"),
    ],
    ids=["fixed mode", "unlabelled"],
)
def test_what_cannot_be_measured_is_refused(kdscale, write_recipe, make_dataset, changes, message):
    if "data" in changes:
        make_dataset(Path("unlabelled"), unlabelled=True)
    done = kdscale("bench", write_recipe(**changes), "--seconds", 1)
    assert done.exit_code == 2
    assert message in done.stderr


def test_bench_leaves_nothing_behind(bench, tmp_path):
    bench()
    assert not list((tmp_path / "cache").glob("*.zarr"))
    assert not (tmp_path / "runs").exists()
