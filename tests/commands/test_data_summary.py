"""Commands say what data they read before they use it, and refuse what cannot be trained on."""

import json
import re
import tomllib

import numpy as np
import pytest
from PIL import Image

CLASSES = ["cat", "dog"]


def lines_about_data(done):
    return [line for line in done.stderr.splitlines() if line.startswith("data: ")]


def write_folder(folder, splits=("train", "test"), classes=CLASSES, count=8, dtype=np.uint8):
    """Grey images of 8 x 8 with levels 0..255, in files of the bit depth of `dtype`."""
    random = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8)).astype(dtype)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_each_command_says_each_split_once(kdscale, write_recipe, tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data/train/cat/.DS_Store").write_text("")
    brief = {"train": {"epochs": 1}}
    recipe = write_recipe(data={"source": "data"}, teacher=brief, student=brief)
    weights = "runs/tiny/teacher/weights.safetensors"
    for splits, *command in (
        (["test", "train"], "run", recipe),
        (["train"], "cache", "build", recipe, "--set", f"teacher.weights={weights}"),
        (["test", "train"], "train", recipe, "--targets", "none", "--run", "alone"),
        (["train"], "views", recipe, "--out", "views.png"),
        (["test"], "evaluate", "alone", "--seconds", 0),
    ):
        done = kdscale(*command)
        assert done.exit_code == 0, done.stderr
        lines = lines_about_data(done)
        assert sorted(line.split("split '")[1].split("'")[0] for line in lines) == splits
        assert "data: " not in done.stdout
        for line in lines:
            if "split 'train'" in line:
                assert line.startswith("data: 16 images of 2 classes (cat, dog), split 'train' of ")
                assert line.endswith("passed over: 1 hidden or system file (.DS_Store)")


@pytest.mark.thorough
def test_json_is_not_touched(kdscale, write_recipe, tmp_path):
    write_folder(tmp_path / "data")
    recipe = write_recipe(data={"source": "data"})
    assert kdscale("run", recipe).exit_code == 0
    done = kdscale("cache", "plan", recipe, "--seconds", 0.1, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)
    assert lines_about_data(done)


REFUSED = {
    "one class": (["train", "test"], ["cat"], 8, "no column of labels|one class"),
    "one image": (["train"], ["cat"], 1, "holds 1 image: wanted at least two"),
    "train of one class": (["train"], ["cat"], 8, "of one of its 2 classes, 'cat'"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", [["run"], ["train", "--model", "teacher", "--run", "run"]])
def test_what_cannot_be_distinguished_is_refused_before_training(
    kdscale, write_recipe, tmp_path, command, name
):
    splits, classes, count, message = REFUSED[name]
    write_folder(tmp_path / "data", splits, classes, count)
    if splits == ["train"]:
        write_folder(tmp_path / "data", ["test"])
    done = kdscale(command[0], write_recipe(data={"source": "data"}), *command[1:])
    assert done.exit_code == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert re.search(message, error)
    assert "epoch 1" not in done.stderr


def test_range_of_grey_levels_is_part_of_recipe_run_and_cache(kdscale, write_recipe, tmp_path):
    write_folder(tmp_path / "data", dtype=np.uint16)
    done = kdscale("run", write_recipe(data={"source": "data"}))
    assert done.exit_code == 1
    assert "set data.grey_range" in done.stderr
    recipe = write_recipe(data={"source": "data", "grey_range": [0, 255]})
    done = kdscale("run", recipe)
    assert done.exit_code == 0, done.stderr
    stored = next(tmp_path.glob("runs/**/recipe.toml"))
    assert tomllib.loads(stored.read_text())["data"]["grey_range"] == [0.0, 255.0]
    (cache,) = tmp_path.glob("cache/*.zarr")
    assert kdscale("cache", "show", cache, "--out", "cache.png").exit_code == 0
    assert kdscale("cache", "verify", cache, "--teacher", 4, "--recipe", recipe).exit_code == 0
    assert "reused" in kdscale("cache", "build", recipe).stderr
