"""Trainings that begin from pretrained weights: with a new head, once, or from scratch and said."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.errors import Stopped
from kdscale.models.registry import create_model
from kdscale.models.weights import state_sha256
from kdscale.runs.folder import RunFolder

NAME = "torchvision/shufflenet_v2_x0_5"  # of 0.4 million parameters but for its head
FILE = "shufflenetv2_x0.5-f707e7126e.pth"
TORCHVISION = "torchvision:IMAGENET1K_V1"


@pytest.fixture(scope="module")
def trained():
    """The tensors of a model of 1000 classes."""
    torch.manual_seed(5)
    return create_model(NAME, num_classes=1000, in_channels=3).state_dict()


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """Where torch keeps what it downloads; torchvision's weights are nowhere else."""
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Weights.IMAGENET1K_V1.value, "url", (tmp_path / FILE).as_uri())
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def fine_tuned(write_recipe):
    """A recipe whose teacher begins from weights, and hardly leaves them."""

    def write(source, **settings):
        train = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-9, "checkpoint_every": 1}
        shown = {"mean": [0.4] * 3, "std": [0.25] * 3, "size": 32}
        return write_recipe(
            teacher={"model": NAME, "options": {}, "input": shown,
                     "train": {**train, "pretrained": str(source), **settings}},
            student={"input": {"mean": [0.4], "std": [0.25]}, "train": {"epochs": 1}},
        )  # fmt: skip

    return write


def assert_began_from(run, trained):
    weights = load_file(run / "weights.safetensors")
    assert weights.keys() == trained.keys()
    heads = {name for name, tensor in weights.items() if tensor.shape != trained[name].shape}
    assert heads == {"fc.weight", "fc.bias"}
    for name in (name for name, _ in trained.items() if name.endswith("weight")):
        assert name in heads or torch.allclose(weights[name], trained[name], atol=1e-6), name


@pytest.mark.parametrize("place", ["a file", "torchvision"])
def test_teacher_begins_from_pretrained_weights_with_a_new_head(
    kdscale, fine_tuned, trained, torch_home, tmp_path, place
):
    source = TORCHVISION if place == "torchvision" else tmp_path / "imagenet.safetensors"
    torch.save(trained, torch_home / FILE)
    save_file(trained, tmp_path / "imagenet.safetensors")
    done = kdscale("train", fine_tuned(source), "--model", "teacher", "--run", "run")
    assert done.exit_code == 0, done.stderr
    assert f"teacher: begins from {source}, with a new 'fc'" in done.stderr
    assert_began_from(tmp_path / "run", trained)
    expected = {"source": str(source), "sha256": state_sha256(trained), "reason": None}
    assert RunFolder(tmp_path / "run").read_result()["pretrained"] == expected
    (torch_home / FILE).unlink()
    (tmp_path / "imagenet.safetensors").unlink()
    assert (
        kdscale("evaluate", "run", "--seconds", 0).exit_code == 0
    )  # the run's own weights are all it takes


def test_students_may_begin_from_pretrained_weights_too(kdscale, write_recipe, trained, tmp_path):
    save_file(trained, tmp_path / "imagenet.safetensors")
    settings = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-9}
    recipe = write_recipe(
        student={"model": NAME, "options": {},
                 "input": {"mean": [0.4] * 3, "std": [0.25] * 3, "size": 32},
                 "train": {**settings, "pretrained": "imagenet.safetensors"}},
    )  # fmt: skip
    assert kdscale("train", recipe, "--run", "run").exit_code == 0
    assert_began_from(tmp_path / "run", trained)


@pytest.mark.thorough
def test_whole_recipe_trains_from_scratch_where_allowed_and_says_so(
    kdscale, fine_tuned, torch_home, tmp_path
):
    recipe = fine_tuned(TORCHVISION, pretrained_required=False)
    done = kdscale("run", recipe, "--run", "run")
    assert done.exit_code == 0, done.stderr
    assert f"teacher: trained FROM SCRATCH, without {TORCHVISION}: " in done.stderr
    said = f"Teacher: trained from scratch, since {TORCHVISION} was not available."
    assert said in done.stdout
    assert said in (tmp_path / "run" / "report.md").read_text()
    begun = RunFolder(tmp_path / "run" / "teacher").read_result()["pretrained"]
    assert begun["sha256"] is None
    assert "cannot be downloaded" in begun["reason"]


@pytest.mark.thorough
def test_whole_recipe_says_from_which_weights_its_teacher_began(
    kdscale, fine_tuned, trained, torch_home
):
    torch.save(trained, torch_home / FILE)
    done = kdscale("run", fine_tuned(TORCHVISION, pretrained_required=False), "--run", "run")
    said = (
        f"Teacher: initialized from {TORCHVISION} (SHA-256 of its tensors {state_sha256(trained)})."
    )
    assert said in done.stdout


def test_required_weights_out_of_reach_stop_before_anything_and_say_what_to_do(
    kdscale, fine_tuned, trained, torch_home, tmp_path
):
    command = ("train", fine_tuned(TORCHVISION), "--model", "teacher", "--run", "run")
    done = kdscale(*command)
    assert done.exit_code == 1
    assert "cannot be downloaded" in done.stderr
    assert f"put the file into {torch_home}" in done.stderr
    assert "name a weights file in teacher.train.pretrained" in done.stderr
    assert "teacher.train.pretrained_required = false" in done.stderr
    assert not (tmp_path / "cache").exists()
    torch.save(trained, torch_home / FILE)
    assert kdscale(*command).exit_code == 0


@pytest.mark.parametrize("there", ["then", "later"])
def test_training_goes_on_from_where_it_began_whatever_is_there_now(
    kdscale, fine_tuned, trained, torch_home, stopped_after_step, tmp_path, there
):
    recipe = fine_tuned(TORCHVISION, pretrained_required=False)
    command = ("train", recipe, "--model", "teacher", "--run", "run")
    if there == "then":
        torch.save(trained, torch_home / FILE)
    with stopped_after_step(1):
        assert kdscale(*command).exit_code == Stopped.exit_code
    if there == "then":
        (torch_home / FILE).unlink()
    else:
        torch.save(trained, torch_home / FILE)
    assert kdscale(*command, "--resume").exit_code == 0
    begun = json.loads((tmp_path / "run" / "result.json").read_text())["pretrained"]
    assert (begun["sha256"] is None) == (there == "later")


def test_missing_file_is_an_error_even_where_pretrained_weights_are_not_required(
    kdscale, fine_tuned
):
    recipe = fine_tuned("nothing.safetensors", pretrained_required=False)
    done = kdscale("train", recipe, "--model", "teacher", "--run", "run")
    assert done.exit_code == 1
    assert "there is no weights file nothing.safetensors" in done.stderr


def test_recipe_that_names_weights_can_begin_without_them(kdscale, fine_tuned, tmp_path):
    command = ("train", fine_tuned(TORCHVISION), "--model", "teacher", "--run", "run")
    done = kdscale(*command, "--set", "teacher.train.pretrained=none")
    assert done.exit_code == 0, done.stderr
    assert "pretrained" not in RunFolder(tmp_path / "run").read_result()
    done = kdscale(*command, "--set", "teacher.train.pretrained=")
    assert done.exit_code == 2
    assert "wanted a weights file, torchvision:NAME" in done.stderr


def test_weights_of_torchvision_for_another_librarys_model_are_refused(kdscale, write_recipe):
    recipe = write_recipe(teacher={"train": {"pretrained": TORCHVISION}})
    done = kdscale("train", recipe, "--model", "teacher")
    assert done.exit_code == 2
    assert "weights of torchvision's models, and model is 'tiny_models:mlp'" in done.stderr


def test_trained_teacher_needs_no_pretrained_weights(kdscale, fine_tuned, trained, tmp_path):
    weights = {n: t[:4].clone() if n.startswith("fc.") else t for n, t in trained.items()}
    save_file(weights, tmp_path / "teacher.safetensors")
    recipe = fine_tuned("nothing.safetensors")
    done = kdscale("cache", "build", recipe, "--set", "teacher.weights=teacher.safetensors")
    assert done.exit_code == 0, done.stderr
