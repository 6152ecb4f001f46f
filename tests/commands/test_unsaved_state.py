"""State that a model learns in forward passes is saved, or the model is refused before training."""

import pytest


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
@pytest.mark.parametrize("command", [["train"], ["run"]])
def test_state_that_no_file_would_hold_is_refused_before_training(
    kdscale, write_recipe, tmp_path, kind, command
):
    model = {"model": "tiny_models:counting", "options": {"kind": kind}}
    done = kdscale(*command, write_recipe(student=model), "--run", "run")
    assert done.exit_code == 1
    assert "student: its forward passes change mean, which no file would contain" in done.stderr
    assert not list(tmp_path.glob("run/**/step-*"))


@pytest.mark.parametrize("kind", ["saved", "constant"])
def test_state_that_is_saved_or_constant_is_trained(kdscale, write_recipe, kind):
    model = {"model": "tiny_models:counting", "options": {"kind": kind}, "train": {"epochs": 1}}
    assert kdscale("train", write_recipe(student=model), "--run", "run").exit_code == 0


def test_modules_that_ask_for_their_version_are_trained_resumed_and_evaluated(
    kdscale, write_recipe, stopped_after_step
):
    """torchvision's mnasnet refuses a state dict without the versions of its modules."""
    train = {"epochs": 1}
    recipe = write_recipe(student={"model": "tiny_models:versioned", "options": {}, "train": train})
    with stopped_after_step(1):
        assert kdscale("train", recipe, "--run", "run").exit_code == 75
    assert kdscale("train", recipe, "--run", "run", "--resume").exit_code == 0
    assert kdscale("evaluate", "run", "--seconds", 0).exit_code == 0
    exported = kdscale("export", "run", "--format", "safetensors")
    assert exported.exit_code == 0, exported.output
