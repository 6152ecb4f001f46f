"""Trainings that the validation split slows down, ends, or chooses the weights of."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from kdscale.errors import Stopped
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics

TIMES = ("train_seconds", "images_per_second", "reading")


def metrics(run):
    return [{k: v for k, v in one.items() if k not in TIMES} for one in read_metrics(run)]


def on_validation(run, name):
    return [one[name] for one in read_metrics(run) if one.get("split") == "validation"]


@pytest.fixture
def hasty(write_recipe):
    """Learns so fast that its loss on the validation split soon rises again."""
    settings = {"epochs": 30, "learning_rate": 0.1, "schedule": "plateau", "gamma": 0.5}
    more = {"patience": 2, "stop_after": 5, "restore_best": True, "checkpoint_every": 2}
    return write_recipe(
        data={"validation": 0.25},
        student={"options": {"hidden": 8, "dropout": 0.2}, "train": {**settings, **more}},
    )


@pytest.fixture
def finished(kdscale, hasty, tmp_path):
    done = kdscale("train", hasty, "--run", "run")
    assert done.exit_code == 0, done.stderr
    return tmp_path / "run", done


def test_training_ends_where_the_validation_loss_stops_falling_and_says_so(finished):
    run, done = finished
    losses, result = on_validation(run, "cross_entropy"), RunFolder(run).read_result()
    epochs = result["epochs"]
    assert result["ended_early"]
    assert epochs == len(losses) < 30
    assert result["steps"] == 3 * epochs
    assert min(losses[-5:]) > min(losses) - 1e-4
    assert "the validation loss has not fallen in 5 evaluations: training ends" in done.stderr
    assert f" % after {epochs} epochs, " in done.stdout


def test_learning_rate_halves_after_each_plateau_and_never_else(finished):
    run, done = finished
    rates = [one["learning_rate"] for one in metrics(run) if "loss" in one]
    steps = [after / before for before, after in pairwise(rates)]
    assert set(steps) == {1.0, 0.5}
    assert steps.count(0.5) == done.stderr.count("a lower learning rate from here on")


def test_result_is_that_of_the_weights_that_were_best_on_validation(kdscale, finished):
    run, _ = finished
    result, accuracy = RunFolder(run).read_result(), on_validation(run, "top1_accuracy")
    assert result["best_validation_accuracy"] == max(accuracy)
    assert result["chosen_step"] == 3 * (1 + accuracy.index(max(accuracy)))
    tested = [one for one in metrics(run) if one.get("split") == "test"]
    at_best = next(one for one in tested if one["step"] == result["chosen_step"])
    for name in ("top1_accuracy", "macro_precision", "cross_entropy"):
        assert result[name] == at_best[name]
    assert result["chosen_top1_accuracy"] == result["top1_accuracy"]
    assert result["last_top1_accuracy"] == tested[-1]["top1_accuracy"]
    ours, best = (load_file(run / name) for name in ("weights.safetensors", "best.safetensors"))
    assert all(torch.equal(ours[name], best[name]) for name in ours | best)
    found = json.loads(kdscale("evaluate", run, "--json", "--seconds", 0).stdout)["runs"][0]
    assert found["top1_accuracy"] == result["top1_accuracy"]


def test_without_restore_best_the_result_is_the_last_and_the_chosen_one_is_named(
    kdscale, hasty, finished, tmp_path
):
    kdscale("train", hasty, "--run", "last", "--set", "student.train.restore_best=false")
    result, restored = (
        RunFolder(tmp_path / "last").read_result(),
        RunFolder(finished[0]).read_result(),
    )
    assert result["top1_accuracy"] == restored["last_top1_accuracy"]
    assert result["chosen_top1_accuracy"] == restored["top1_accuracy"]
    assert "last_top1_accuracy" not in result


@pytest.mark.parametrize("back", [2, 9])
def test_stopped_before_it_would_have_ended_a_training_goes_on_exactly(
    kdscale, hasty, finished, stopped_after_step, tmp_path, back
):
    run, parts = finished[0], tmp_path / "parts"
    step = RunFolder(run).read_result()["steps"] - back
    with stopped_after_step(step):
        assert kdscale("train", hasty, "--run", "parts").exit_code == Stopped.exit_code
    assert kdscale("train", hasty, "--run", "parts", "--resume").exit_code == 0
    assert metrics(parts) == metrics(run)
    whole = load_file(run / "weights.safetensors")
    assert all(
        torch.equal(whole[n], t) for n, t in load_file(parts / "weights.safetensors").items()
    )
    results = [RunFolder(one).read_result() for one in (parts, run)]
    assert results[0] | {"train_seconds": 0} == results[1] | {"train_seconds": 0}


def test_killed_between_its_early_end_and_its_result_a_training_takes_no_further_step(
    kdscale, hasty, finished
):
    run, _ = finished
    before, weights = RunFolder(run).read_result(), load_file(run / "weights.safetensors")
    for name in ("result.json", "weights.safetensors"):
        (run / name).unlink()
    assert kdscale("train", hasty, "--run", "run", "--resume").exit_code == 0
    assert RunFolder(run).read_result() == before
    after = load_file(run / "weights.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights | after)


def test_plan_says_that_training_may_end_before_its_last_epoch(kdscale, hasty):
    done = kdscale("cache", "plan", hasty, "--seconds", 0.1)
    assert "a student alone, up to 30 epochs" in done.stdout


@pytest.mark.parametrize(
    ("model", "setting", "said"),
    [
        ("student", {"schedule": "plateau"}, "schedule = 'plateau'"),
        ("student", {"stop_after": 3}, "stop_after = 3"),
        ("teacher", {"restore_best": True}, "restore_best = true"),
    ],
)
def test_what_a_validation_split_decides_is_refused_without_one(
    kdscale, write_recipe, model, setting, said
):
    done = kdscale("train", write_recipe(**{model: {"train": setting}}), "--run", "run")
    assert done.exit_code == 2
    assert f"{model}.train has {said}, which a validation split decides" in done.stderr
    assert "data.validation = 0.1" in done.stderr
