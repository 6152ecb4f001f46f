"""Run folders, caches and decoded images of earlier versions work with today's commands."""

import json
import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "experiment_0_1"
RUNS = ["teacher", "alone-seed0", "cache-seed0"]


@pytest.fixture
def golden(tmp_path, kdscale):
    """A copy of the experiment in the current folder, and the command line there."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)

    def run(*args):
        result = kdscale(*args)
        assert result.exit_code == 0, result.output
        return result

    return run


def figures(folder):
    return json.loads(Path(folder, "evaluation.json").read_text())


def test_cache_is_sound_and_found_by_its_recipe(golden):
    assert json.loads(golden("cache", "verify", "cache/golden.zarr", "--json").stdout)["ok"]
    golden("cache", "build", "recipe.toml")
    assert sorted(path.name for path in Path("cache").glob("*.zarr")) == ["golden.zarr"]


@pytest.mark.parametrize("name", RUNS)
def test_finished_run_is_evaluated_to_the_same_figures(golden, name):
    before = figures(f"runs/golden/{name}")
    golden("evaluate", f"runs/golden/{name}")
    after = figures(f"runs/golden/{name}")
    for key in ("top1_accuracy", "top5_accuracy", "confusion"):
        assert after[key] == before[key], key


def test_report_shows_the_runs_of_before(golden):
    golden("report", "runs/golden", "--csv", "runs.csv", "--html", "report.html")
    assert len(Path("runs.csv").read_text().splitlines()) == 1 + len(RUNS)


def test_finished_runs_are_reused_by_the_same_command(golden):
    weights = {name: Path("runs/golden", name, "weights.safetensors") for name in RUNS}
    before = {name: path.read_bytes() for name, path in weights.items()}
    golden("run", "recipe.toml")
    assert {name: path.read_bytes() for name, path in weights.items()} == before


def test_unfinished_run_is_resumed_to_its_end(golden):
    golden("train", "unfinished.toml", "--targets", "cache", "--run", "runs/unfinished", "--resume")
    result = json.loads(Path("runs/unfinished/result.json").read_text())
    before = json.loads(Path("unfinished-result.json").read_text())
    assert result["steps"] == before["steps"]
    # Not bit for bit: sums differ between processors and versions of torch.
    assert result["top1_accuracy"] == pytest.approx(before["top1_accuracy"], abs=0.05)
