"""`kdscale init` looks at images and teacher, and writes a recipe that runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from kdscale.commands.teacher_lines import lines_of_teacher
from kdscale.config import load_recipe
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights


@pytest.fixture
def photographs(tmp_path):
    """A folder of photographs of several sizes: red cats, blue dogs."""
    random = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 4)):
        for name, channel in (("cat", 0), ("dog", 2)):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 120, (*random.integers(36, 64, 2), 3)).astype(np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return tmp_path / "pets"


@pytest.fixture
def small_images(write_split, tmp_path):
    """A folder of parquet files with grey images of 8 x 8 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 8, 8)).astype(np.uint8)
    for split in ("train", "test"):
        write_split(tmp_path / "grey" / f"{split}.parquet", pixels, np.arange(16) % 2, ["a", "b"])
    return tmp_path / "grey"


@pytest.mark.thorough
def test_recipe_of_photographs_runs_as_it_is_written(kdscale, photographs, tmp_path):
    done = kdscale("init", "pets", "--teacher", "resnet8x4", "--student", "resnet20")
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "pets.toml").read_text()
    assert "24 images of 2 classes (cat, dog)" in text
    assert text in done.stdout
    recipe = load_recipe("pets.toml")
    assert recipe.data.source == "pets"
    assert recipe.data.clean[1] == {"name": "center_crop", "size": 32}
    quick = [f"--set={model}.train.epochs=1" for model in ("teacher", "student")]
    done = kdscale("run", "pets.toml", "--set=views.count=2", *quick)
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "runs" / "pets" / "result.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["teacher", "alone", "cache"]


def test_one_split_is_cut_in_two(kdscale, photographs):
    done = kdscale("init", "pets/train", "--teacher", "resnet8x4")
    assert done.exit_code == 0, done.stderr
    assert load_recipe("train.toml").data.test == 0.1
    assert "22 images of 2 classes (cat, dog), split 'train' of pets/train" in done.stdout


def test_recipe_names_data_relative_to_its_folder(kdscale, photographs, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for out in (tmp_path / "mine.toml", tmp_path / "elsewhere" / "here" / "mine.toml"):
        done = kdscale(
            "init", "../pets", "--teacher", "mnist-cnn", "-o", out, "--student", "resnet20"
        )
        assert done.exit_code == 1  # mnist-cnn is for grey images
        done = kdscale("init", "../pets", "--teacher", "resnet8x4", "-o", out)
        assert done.exit_code == 0, done.stderr
        assert load_recipe(str(out)).data.source == str(photographs)


@pytest.mark.parametrize(
    ("out", "printed"), [("below/a.toml", "below/a.toml"), ("my pets.toml", '"my pets.toml"')]
)
def test_commands_in_the_recipe_name_its_file(kdscale, photographs, tmp_path, out, printed):
    done = kdscale("init", "pets", "--teacher", "resnet8x4", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert f"#   kdscale run {printed}\n" in (tmp_path / out).read_text()


def test_weights_of_kdscale_state_model_size_and_preprocessing(kdscale, small_images):
    assert kdscale("init", "grey", "--teacher", "resnet8x4", "--student", "resnet20").exit_code == 0
    recipe = load_recipe("grey.toml")
    assert recipe.data.clean == []
    assert recipe.views.operations[0] == {"name": "random_crop", "padding": 1}
    assert recipe.teacher.input.mean == [0.5]
    done = kdscale("train", "grey.toml", "--model", "teacher", "--run", "t",
                   "--set=teacher.train.epochs=1")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = kdscale("init", "grey", "--teacher", "t/weights.safetensors", "-o", "two.toml")
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("two.toml")
    assert recipe.teacher.weights == "t/weights.safetensors"
    assert recipe.teacher.model == "resnet8x4"
    assert recipe.teacher.train is None


def test_pretrained_model_of_a_library_is_fine_tuned_at_its_size(kdscale, photographs):
    done = kdscale(
        "init", "pets", "--teacher", "torchvision/squeezenet1_1", "--student", "resnet20"
    )
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("pets.toml")
    assert (recipe.teacher.input.size, recipe.student.input.size) == (224, None)
    assert recipe.teacher.train.pretrained == "torchvision:DEFAULT"


@pytest.mark.thorough
def test_recipe_of_torchvisions_weights_runs_as_it_is_written(kdscale, photographs, tmp_path):
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=2).state_dict(), "mine.pth")
    done = kdscale("init", "pets", "--teacher", "mine.pth", "--student", "resnet20")
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("pets.toml")
    assert recipe.teacher.model == "torchvision/resnet18"
    assert recipe.teacher.weights == "mine.pth"
    assert recipe.teacher.input.size == 224
    quick = ["--set=views.count=1", "--set=student.train.epochs=1"]
    done = kdscale("run", "pets.toml", "--set=teacher.input.size=64", *quick)
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "runs" / "pets" / "result.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["teacher", "alone", "cache"]


@pytest.mark.parametrize("named", [(), ("--teacher", "torchvision/resnet18", "--weights")])
def test_weights_of_other_classes_are_fine_tuned(kdscale, photographs, named):
    torch.save(models.resnet18(num_classes=7).state_dict(), "seven.pth")
    given = named or ("--teacher",)
    done = kdscale("init", "pets", *given, "seven.pth", "--student", "resnet20")
    if named:  # weights of a named model are taken as they are
        assert done.exit_code == 1
        assert "seven.pth" in done.stderr
        return
    assert done.exit_code == 0, done.stderr
    train = load_recipe("pets.toml").teacher.train
    assert train.pretrained == "seven.pth"
    assert "seven.pth is of 7 classes" in done.stdout


@pytest.fixture
def embedding(tmp_path):
    """A file of weights of a teacher without a classifier."""
    save_weights(
        tmp_path / "embedding.safetensors",
        create_model("resnet8x4", num_classes=0, in_channels=3),
        metadata={
            "model": "resnet8x4",
            "options": {"num_classes": 0},
            "preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3, "size": None},
        },
    )
    return "embedding.safetensors"


def test_teacher_without_a_classifier_gets_a_recipe_of_unlabelled_images(
    kdscale, tmp_path, embedding
):
    random = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "wild" / ("2024/may" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    refused = kdscale("init", "wild", "--teacher", "resnet8x4")
    assert refused.exit_code == 1
    assert "beside class folders, in none of them" in refused.stderr
    done = kdscale("init", "wild", "--teacher", embedding)
    assert done.exit_code == 0, done.stderr
    assert "10 images" in done.stdout
    recipe = load_recipe("wild.toml")
    assert (recipe.data.unlabelled, recipe.data.test_split) == (True, "none")
    assert recipe.student.headless
    assert recipe.loss.features[0].project
    done = kdscale("cache", "build", "wild.toml", "--set=views.count=1")
    assert done.exit_code == 0, done.stderr


def test_teacher_without_a_classifier_keeps_labels_for_evaluation(kdscale, photographs, embedding):
    done = kdscale("init", "pets/train", "--teacher", embedding, "--student", "resnet20")
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("train.toml")
    assert (recipe.data.unlabelled, recipe.data.test) == (False, 0.1)
    assert recipe.student.headless


def test_model_that_timm_states_no_classifier_of_is_created_without(kdscale, photographs):
    timm = pytest.importorskip("timm")
    name = "timm/convnextv2_atto.fcmae"
    (line,) = lines_of_teacher(name, None, channels=3, num_classes=2, recipe=Path("a.toml")).lines
    assert line == "options = { pretrained = true, num_classes = 0 }"
    torch.save(timm.create_model("convnextv2_atto", num_classes=0).state_dict(), "mae.pth")
    named = ("--teacher", name, "--weights", "mae.pth")
    done = kdscale("init", "pets", *named, "--student", "resnet20")
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("pets.toml")
    assert recipe.teacher.headless
    assert recipe.cache.encoding == "none"
    assert recipe.teacher.weights == "mae.pth"


def test_model_that_timm_states_no_classifier_of_has_that_of_its_file(
    kdscale, photographs, tmp_path
):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("convnextv2_atto", num_classes=2).state_dict(), "tuned.pth")
    named = ("--teacher", "timm/convnextv2_atto.fcmae", "--weights", "tuned.pth")
    done = kdscale("init", "pets", *named, "--student", "resnet20")
    assert done.exit_code == 0, done.stderr
    assert not load_recipe("pets.toml").teacher.headless


@pytest.mark.thorough
def test_weights_of_no_known_model_are_refused(kdscale, photographs):
    torch.save(nn.Linear(2, 3).state_dict(), "linear.pth")
    done = kdscale("init", "pets", "--teacher", "linear.pth")
    assert done.exit_code == 2
    assert "name it: --teacher MODEL --weights linear.pth" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pets", "--teacher", "resnet9000"], "there is no model 'resnet9000'"),
        (["pets", "--teacher", "missing.safetensors"], "no weights file 'missing.safetensors'"),
        (["pets/train/cat", "--teacher", "resnet20"], "has no split"),
    ],
)
def test_what_cannot_run_is_refused_and_nothing_is_written(
    kdscale, photographs, tmp_path, arguments, message
):
    done = kdscale("init", *arguments)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert not list(tmp_path.glob("*.toml"))


def test_weights_that_name_code_run_none(kdscale, photographs, tmp_path):
    stated = {"model": "os:system", "preprocess": {"mean": [0.5], "std": [0.5], "size": None}}
    save_weights(tmp_path / "evil.safetensors", nn.Linear(1, 1), metadata=stated)
    done = kdscale("init", "pets", "--teacher", "evil.safetensors")
    assert done.exit_code == 2
    assert "the model 'os:system' that evil.safetensors names cannot be taken" in done.stderr


def test_existing_file_is_left_as_it_is(kdscale, photographs, tmp_path):
    (tmp_path / "pets.toml").write_text("mine")
    done = kdscale("init", "pets", "--teacher", "resnet20")
    assert done.exit_code == 2
    assert "pets.toml exists" in done.stderr
    assert (tmp_path / "pets.toml").read_text() == "mine"
