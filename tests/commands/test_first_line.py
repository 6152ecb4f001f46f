"""Commands begin with data set, model, device and precision; `--device` chooses the device."""

import json
import os

import pytest

from kdscale.errors import LaunchError
from kdscale.launcher import choose_device

WORDS = "tiny_models:mlp, 556 parameters, on 128 images of 4 classes (split 'train' of "


def test_training_and_its_report_state_model_data_and_device_once(kdscale, write_recipe, tmp_path):
    done = kdscale("train", write_recipe(), "--run", tmp_path / "run")
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("student ")]
    assert line.startswith(f"student {WORDS}")
    assert line.endswith("; float32 on cpu")
    done = kdscale("report", tmp_path / "run", "--csv", "-")
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("report on ")]
    assert "1 run: student tiny_models:mlp of 556 parameters, tested on " in line


def test_pictures_of_views_state_the_images(kdscale, write_recipe, tmp_path):
    done = kdscale("views", write_recipe(), "--out", tmp_path / "views.png", "--samples", 1)
    assert "views of 128 images of 4 classes (split 'train' of " in done.stderr


def test_plan_with_json_states_the_teacher_on_standard_error(
    kdscale, write_recipe, tiny_teacher, shared_root
):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    command = ["cache", "plan", recipe, "--seconds", 0.1, "--cache-root", shared_root, "--json"]
    done = kdscale(*command)
    assert json.loads(done.stdout)["num_samples"] == 128
    assert done.stderr.count("teacher tiny_models:mlp, ") == 1


@pytest.mark.parametrize(
    ("device", "status", "words"),
    [
        ("cpu", 0, "float32 on cpu"),
        ("cuda", 1, "Error: --device cuda: torch finds none on this machine, only cpu"),
        ("mps", 1, "Error: --device mps: torch finds none on this machine, only cpu"),
        ("tpu", 2, "'tpu' is none of cpu, cuda, cuda:N, mps"),
    ],
)
def test_device_is_used_or_missing(commands, write_recipe, tmp_path, device, status, words):
    command = ["train", write_recipe(), "--run", "run", "--device", device]
    assert commands.run(*command, cwd=tmp_path)[0] == status
    assert words in commands.output.read_text()


@pytest.fixture
def environment(monkeypatch):
    """An environment without a chosen device."""
    environment = {"WORLD_SIZE": "1"}
    monkeypatch.setattr(os, "environ", environment)
    return environment


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("4,6", "6")])
def test_one_gpu_is_chosen_of_those_that_are_visible(environment, visible, expected):
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    choose_device("cuda:1")
    assert environment["CUDA_VISIBLE_DEVICES"] == expected
    choose_device(environment["KDSCALE_DEVICE"])  # as a process that this one starts
    assert environment["CUDA_VISIBLE_DEVICES"] == expected


def test_gpu_that_is_not_visible_is_refused(environment):
    environment["CUDA_VISIBLE_DEVICES"] = "4,6"
    with pytest.raises(LaunchError, match="2 GPUs are visible"):
        choose_device("cuda:2")


def test_one_gpu_of_several_processes_is_refused(environment):
    environment["WORLD_SIZE"] = "2"
    with pytest.raises(LaunchError, match="--device cuda:0 names one GPU for 2 processes"):
        choose_device("cuda:0")
