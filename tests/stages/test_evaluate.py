"""Evaluation of finished runs."""

import json
import shutil

import pytest


@pytest.fixture
def trained(kdscale, write_recipe, tmp_path):
    """A finished run and its result."""
    kdscale("train", write_recipe(), "--run", "run")
    return json.loads((tmp_path / "run" / "result.json").read_text())


def test_evaluating_a_run_gives_what_its_training_said(kdscale, trained):
    done = kdscale("evaluate", "run", "--json")
    (found,) = json.loads(done.stdout)["runs"]
    for name in ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall",
                 "num_parameters", "targets", "seed"):  # fmt: skip
        assert found[name] == trained[name], name
    assert found["run"] == "run"
    assert found["num_samples"] == 64


def test_several_runs_make_one_table(kdscale, write_recipe, trained):
    kdscale("train", write_recipe(), "--model", "teacher", "--run", "other")
    shown = kdscale("evaluate", "run", "other").stdout
    assert [line.split()[1] for line in shown.splitlines()[2:]] == ["run", "other"]


def test_run_is_evaluated_on_a_copy_of_its_data(kdscale, trained, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "moved")
    done = kdscale("evaluate", "run", "--data", "moved", "--json")
    assert json.loads(done.stdout)["runs"][0]["top1_accuracy"] == trained["top1_accuracy"]


@pytest.mark.parametrize(
    ("run", "problem"),
    [("nowhere", "no run at nowhere"), ("begun", "begun holds an unfinished run")],
)
def test_what_is_no_finished_run_is_refused(kdscale, tmp_path, run, problem):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.toml").write_text("")
    done = kdscale("evaluate", run)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {problem}")


def test_folder_of_a_whole_recipe_points_to_its_runs(kdscale, write_recipe):
    kdscale("run", write_recipe())
    done = kdscale("evaluate", "runs/tiny")
    assert done.exit_code == 1
    assert "runs/tiny/cache-seed0" in done.stderr
    assert kdscale("evaluate", "runs/tiny/cache-seed0", "runs/tiny/teacher").exit_code == 0
