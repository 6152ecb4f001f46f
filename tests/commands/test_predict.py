"""`kdscale predict`: from image files to class names, as the run's own model answers."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from kdscale import load_images, load_student
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from tests.conftest import CLASSES

FORMATS = ["safetensors", "onnx", "pt2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, load_table, shared_root):
    """A finished training of a student, without distillation."""
    from kdscale.commands.train import train
    from kdscale.experiment import Experiment, Locations
    from kdscale.runs.run_spec import RunSpec

    folder = tmp_path_factory.mktemp("predict") / "run"
    table = load_table(student={"train": {"epochs": 6}, "options": {"hidden": 16}},
                       teacher={"model": "keras-student"})  # fmt: skip
    train(
        Experiment(table, Locations(run=folder, cache_root=shared_root)),
        RunSpec("student", "none", 0),
    )
    return folder


@pytest.fixture(scope="module")
def test_set(dataset, shared_root):
    return load_images(str(dataset), split="test", root=shared_root)


@pytest.fixture
def folder(tmp_path, test_set):
    """Three test images as PNG files in two folders, and a text."""
    for number in range(3):
        path = tmp_path / "images" / ("a" if number else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(test_set.pixels[number][0])).save(path)
    (tmp_path / "images" / "notes.txt").write_text("none")
    return tmp_path / "images"


def probabilities(run, test_set, number):
    student = load_student(run / "weights.safetensors", trust_code=True)
    logits = student(torch.tensor(np.array(test_set.pixels[number]))[None])
    return logits.softmax(1)[0]


def predictions(done):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["images"]


def check(found, run, test_set):
    for number, one in zip((1, 2, 0), found, strict=True):
        expected = probabilities(run, test_set, number)
        assert one["file"].endswith(f"{number}.png")
        for rank in one["predictions"]:
            place = CLASSES.index(rank["class"])
            assert rank["probability"] == pytest.approx(float(expected[place]), abs=1e-4)
        values = [rank["probability"] for rank in one["predictions"]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1)


def test_run_answers_as_its_student_does(kdscale, run, folder, test_set):
    done = kdscale("predict", run, folder, "--json", "--trust-code")
    check(predictions(done), run, test_set)
    assert "parameters, 4 classes; float32 on cpu; 3 images" in done.stderr
    assert "passed over" in done.stderr
    assert ".txt" in done.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_export_answers_as_its_run_does(kdscale, run, folder, test_set, kind):
    place = folder.parent / f"student.{kind}"
    assert kdscale("export", run, "--format", kind, "--out", place).exit_code == 0
    check(predictions(kdscale("predict", place, folder, "--json", "--trust-code")), run, test_set)


def test_csv_has_a_row_for_each_image(kdscale, run, folder, tmp_path):
    done = kdscale("predict", run, folder, "--csv", "out.csv", "--top-k", 2, "--trust-code")
    assert done.exit_code == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    assert 0 < float(rows[0]["probability_2"]) <= float(rows[0]["probability"]) < 1
    assert rows[0]["class"] in done.stdout


def test_image_that_cannot_be_read_is_stated_and_the_others_are_classified(kdscale, run, folder):
    (folder / "a" / "broken.png").write_bytes(b"none")
    done = kdscale("predict", run, folder, "--json", "--trust-code")
    assert done.exit_code == 1
    found = json.loads(done.stdout)["images"]
    assert [("error" in one) for one in found] == [False, False, True, False]
    assert "broken.png cannot be decoded: not one of BMP" in done.stderr


def test_colours_are_given_to_a_grey_model_as_luminance(kdscale, run, tmp_path, test_set):
    grey = np.array(test_set.pixels[0][0])
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    files = [tmp_path / "colour.png", tmp_path / "grey.png"]
    one, other = predictions(kdscale("predict", run, *files, "--json", "--trust-code"))
    assert one["predictions"] == other["predictions"]


def test_clean_operations_of_the_recipe_are_done(kdscale, write_recipe, tmp_path, test_set):
    size = {"name": "resize", "size": [8, 8]}
    recipe = write_recipe(data={"clean": [size]},
                          views={"operations": [size], "count": 1},
                          student={"options": {"hidden": 4}})  # fmt: skip
    trained = kdscale("train", recipe, "--run", "clean")
    assert trained.exit_code == 0, trained.stderr
    Image.fromarray(np.array(test_set.pixels[0][0])).resize((12, 10)).save(tmp_path / "one.png")
    (of_run,) = predictions(kdscale("predict", "clean", "one.png", "--json", "--trust-code"))
    assert (
        kdscale("export", "clean", "--format", "safetensors", "--out", "s.safetensors").exit_code
        == 0
    )
    done = kdscale("predict", "s.safetensors", "one.png", "--json", "--trust-code")
    assert predictions(done)[0]["predictions"] == of_run["predictions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "images"], "does not exist"),
        (["images/notes.txt", "images"], "neither a run's folder nor a file of safetensors"),
        (["images", "images"], "no run at images"),
    ],
)
def test_wrong_model_is_one_clear_line(kdscale, folder, arguments, message):
    done = kdscale("predict", *arguments)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_folder_without_images_is_refused(kdscale, run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = kdscale("predict", run, "empty")
    assert done.exit_code == 1
    assert "has no image" in done.stderr


def test_image_of_another_size_is_named(kdscale, run, folder):
    Image.new("L", (30, 40)).save(folder / "a" / "large.png")
    done = kdscale("predict", run, folder, "--json", "--trust-code")
    assert done.exit_code == 1
    assert "large.png: " in done.stderr


def test_weights_beside_the_recipe_alone_are_read(kdscale, run, folder, tmp_path):
    (tmp_path / "copied").mkdir()
    for name in ("weights.safetensors", "recipe.toml"):
        shutil.copy(run / name, tmp_path / "copied" / name)
    done = kdscale("predict", "copied/weights.safetensors", folder, "--json", "--trust-code")
    assert len(predictions(done)) == 3


def test_best_weights_are_those_of_a_run(kdscale, run, folder):
    done = kdscale("predict", run / "weights.safetensors", folder, "--weights", "best")
    assert done.exit_code == 1
    assert "is for the folder of a run" in done.stderr


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_names", ["ant"], "gives 4 logits, and its file has 1 class name"),
        ("pixels", {"shape": 3}, "the shape of its pixels is 3"),
        ("pixels", {"shape": ["batch", 10**12, 6, 6]}, "wanted 1 or 3 channels"),
        ("options", [1], "does not describe its model"),
        ("grey_range", "x", "does not describe its model"),
        ("clean", 7, "does not describe its model"),
    ],
)
def test_description_of_a_stranger_is_checked(kdscale, tmp_path, folder, field, value, message):
    metadata = {
        "model": "resnet8x4", "num_classes": 4, "preprocess": {"mean": [0.5], "std": [0.5],
        "size": None}, "pixels": {"shape": ["batch", 1, 8, 8]}, field: value,
    }  # fmt: skip
    model = create_model("resnet8x4", num_classes=4, in_channels=1, options={})
    save_weights(tmp_path / "student.safetensors", model, metadata=metadata)
    done = kdscale("predict", tmp_path / "student.safetensors", folder / "b")
    assert (done.exit_code, message in done.stderr) == (1, True), done.stderr
