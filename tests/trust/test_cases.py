"""Inputs that users of other tools stumbled over, each with what is right: work, or one line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pyarrow as pa
import pytest
import sandbox
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("train", "r.toml", "--model", "teacher", "--run", "teacher")
RUN = ("run", "r.toml", "--run", "run")
_MEBIBYTE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _imported(material):
    """Commands are imported once, not in every child."""


@pytest.fixture
def run(tmp_path):
    """Runs a command in the case's folder."""
    return lambda *args, **more: sandbox.run_command(*args, cwd=tmp_path, **more)


def assert_works(done):
    assert (done.exit_code, done.fault) == (0, None), done.stderr


def assert_refused(done, *parts):
    """One message, exit code 1 or 2, no traceback; it has each part, of which | parts choices."""
    assert done.fault is None, done.fault
    assert done.exit_code in (1, 2), done.stderr
    assert [line[:6] for line in done.stderr.splitlines()].count("Error:") == 1, done.stderr
    for part in parts:
        assert any(one in done.stderr for one in part.split("|")), done.stderr


def read_training_split(folder):
    """Images and classes, as a command reads them."""

    def read():
        from kdscale import experiment
        from kdscale.config import load_recipe

        recipe = load_recipe("r.toml")
        images = experiment.training_images(recipe, Path("root"), labelled=True)
        pixels = np.asarray(images.pixels)
        return {"count": images.num_samples, "classes": list(images.classes),
                "first": pixels[0].tolist()}  # fmt: skip

    done = sandbox.run(read, cwd=folder)
    assert done.fault is None, done.fault
    return done.value


def assert_refused_or_read(folder, done, *parts, count, classes):
    """Named in a refusal, or read whole."""
    if done.exit_code:
        assert_refused(done, *parts)
        return
    assert_works(done)
    found = read_training_split(folder)
    assert (found["count"], found["classes"]) == (count, classes)


# --------------------------------------------------------------------------- data


def test_folders_in_class_folders_are_no_classes(tmp_path, run):
    cases.write_recipe(tmp_path)
    names = [f"{name}/{place}" for name in ("cat", "dog") for place in ("indoor", "outdoor")]
    cases.image_folders(tmp_path, names, count=4)
    done = run(*TRAIN)
    assert_refused_or_read(tmp_path, done, "indoor|cat", count=16, classes=["cat", "dog"])


def test_class_of_files_that_are_not_read_does_not_vanish(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    for split in cases.SPLITS:
        (tmp_path / "data" / split / "c").mkdir()
        cases.noise().save(tmp_path / "data" / split / "c/0.avif", "PNG")
    done = run(*TRAIN)
    assert_refused_or_read(tmp_path, done, "0.avif", count=17, classes=["a", "b", "c"])


def test_files_without_a_suffix_do_not_vanish(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    for number in range(4):
        path = tmp_path / f"data/train/b/{number}.png"
        path.rename(path.with_suffix(""))
    done = run(*TRAIN)
    assert_refused_or_read(tmp_path, done, "b/0|b/1|b/2|b/3", count=16, classes=["a", "b"])


def test_images_that_metadata_leaves_out_are_counted_or_refused(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    listed = "file_name,label\na/0.png,a\na/1.png,a\nb/0.png,b\nb/1.png,b\n"
    for split in cases.SPLITS:
        (tmp_path / f"data/{split}/metadata.csv").write_text(listed)
    done = run(*TRAIN)
    if done.exit_code:
        assert_refused(done, "metadata.csv")
        return
    assert_works(done)
    assert read_training_split(tmp_path)["count"] == 16 or "12" in done.stderr


def test_missing_part_of_a_split_is_refused(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.parquet(tmp_path, ["a", "b"] * 8, pa.string(), name="{split}-00000-of-00002.parquet")
    assert_refused(run(*TRAIN), "of-00002|of 2|of two")


def test_number_that_is_a_folders_name_is_that_class(tmp_path, run):
    cases.write_recipe(tmp_path, data={"classes": [1, 2]})
    cases.image_folders(tmp_path, ("1", "2", "10"))
    done = run(*TRAIN)
    assert_refused_or_read(tmp_path, done, "1", count=16, classes=["1", "2"])


def test_grey_levels_of_8_bits_in_16_are_refused_with_their_range(tmp_path, run):
    cases.write_recipe(tmp_path, channels=1)
    cases.image_folders(tmp_path, convert=lambda image: Image.fromarray(
        np.asarray(image.convert("L")).astype(np.uint16)))  # fmt: skip
    done = run(*TRAIN)
    assert_refused(done, "255|254|253", "16")


def test_labels_beyond_63_bits_are_refused(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.parquet(tmp_path, [2**63 + number % 2 for number in range(16)], pa.uint64())
    done = run(*TRAIN)
    if done.exit_code:
        assert_refused(done, "label")
    else:
        assert_works(done)


def test_single_class_is_refused(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.parquet(tmp_path, ["a"] * 16, pa.string())
    assert_refused(run(*RUN), "class")


def test_single_image_is_refused(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path, ("a",), count=1, splits=("train",))
    cases.image_folders(tmp_path, splits=("test",))
    assert_refused(run(*RUN))


def test_test_images_of_another_size_are_refused_before_training(tmp_path, run):
    cases.write_recipe(tmp_path, student="keras-student")
    cases.image_folders(tmp_path, splits=("train",))
    cases.image_folders(tmp_path, splits=("test",), size=48)
    assert_refused(run("train", "r.toml", "--run", "new"), "48")
    assert not (tmp_path / "new/metrics.jsonl").exists()


def test_photograph_whose_exif_cannot_be_written_is_read_upright(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path, suffix="jpg")
    upright = Image.new("RGB", (32, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # the upper half; to be turned to the right
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", exif=cases.unwritable_exif())
    (tmp_path / "data/train/a/0.jpg").write_bytes(buffer.getvalue())
    assert_works(run(*TRAIN))
    (channel, *_) = read_training_split(tmp_path)["first"]
    assert [row[-1] > 200 for row in channel] == [True] * 32
    assert [row[0] < 50 for row in channel] == [True] * 32


# --------------------------------------------------------------------------- teachers


def cached_shards(folder):
    return list(folder.glob("root/*.zarr/logits/c/*/*/*"))


@pytest.mark.parametrize("teacher", ["dropping", "batchwise"])
def test_teacher_that_is_no_function_of_the_image_is_found_before_the_build(tmp_path, run, teacher):
    cases.write_recipe(tmp_path, teacher=f"tiny:{teacher}")
    cases.image_folders(tmp_path)
    assert_refused(run(*RUN), "teacher")
    assert cached_shards(tmp_path) == []


def test_teacher_that_gives_probabilities_is_reported_before_the_build(tmp_path, run):
    cases.write_recipe(tmp_path, teacher="tiny:probabilities")
    cases.image_folders(tmp_path)
    done = run(*RUN)
    assert done.fault is None, done.fault
    assert "probabilit" in done.stderr
    before, _, _ = done.stderr.partition("probabilit")
    assert "shard" not in before


def test_nan_is_never_a_hit_and_is_reported(tmp_path, run):
    cases.write_recipe(tmp_path, student="tiny:standardised")
    cases.image_folders(tmp_path)
    for number in range(8):  # all of class a
        Image.new("RGB", (32, 32)).save(tmp_path / f"data/test/a/{number}.png")
    done = run("train", "r.toml", "--run", "new")
    assert done.fault is None, done.fault
    if done.exit_code:
        assert_refused(done, "NaN|finite")
        return
    done = run("evaluate", "new", "--seconds", "0", "--json", "--trust-code")
    assert_works(done)
    (found,) = json.loads(done.stdout)["runs"]
    assert found["top1_accuracy"] <= 0.5
    assert "NaN" in done.stderr + done.stdout or "finite" in done.stderr + done.stdout


def test_teacher_that_gives_nan_is_refused_at_build(tmp_path, run):
    cases.write_recipe(tmp_path, teacher="tiny:standardised")
    cases.image_folders(tmp_path)
    assert_works(run(*TRAIN))
    for number in range(8):
        Image.new("RGB", (32, 32)).save(tmp_path / f"data/train/a/{number}.png")
    done = run("cache", "build", "r.toml", "--set", "teacher.weights=teacher/weights.safetensors")
    assert_refused(done, "NaN|finite")


# --------------------------------------------------------------------------- models


def test_mnasnet_can_be_trained_and_evaluated(tmp_path, run):
    cases.write_recipe(tmp_path, student="torchvision/mnasnet0_5")
    cases.image_folders(tmp_path)
    assert_works(run("train", "r.toml", "--run", "new"))
    assert_works(run("evaluate", "new", "--seconds", "0"))


@pytest.mark.launch
def test_two_processes_train_a_model_with_unused_parameters(tmp_path):
    cases.write_recipe(tmp_path, student="tiny:unused")
    cases.image_folders(tmp_path)
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [ROOT / "launch/cpu.sh", "2", "train", "r.toml", "--run", "new"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "count", [3_000, pytest.param(21_841, marks=pytest.mark.slow)], ids="{} classes".format
)
def test_many_classes_stay_within_a_gibibyte_and_ten_megabytes(tmp_path, run, count):
    cases.write_recipe(tmp_path)
    names = [f"class {number}" for number in range(count)]
    cases.parquet(tmp_path, list(range(8)), pa.int64(), names=names)
    for args in (TRAIN, ("evaluate", "teacher", "--seconds", "0", "--trust-code")):
        done = run(*args, seconds=300)
        assert (done.exit_code, done.crash) == (0, None), done.stderr
        assert done.growth_bytes < 1024 * _MEBIBYTE
    written = [path for path in (tmp_path / "teacher").glob("*.json*") if path.is_file()]
    assert sum(path.stat().st_size for path in written) < 10 * _MEBIBYTE


# --------------------------------------------------------------------------- surroundings


@pytest.mark.thorough
def test_package_of_the_users_called_datasets_does_no_harm(tmp_path):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    (tmp_path / "datasets").mkdir()
    # The tests' own PYTHONPATH may end in a colon, which stands for the current folder.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "datasets/__init__.py").write_text("open('IMPORTED', 'w').close()\n")
    done = subprocess.run(
        [sys.executable, "-m", "kdscale", *TRAIN],
        cwd=tmp_path,
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2), done.stderr
    assert not (tmp_path / "IMPORTED").exists()
    if done.returncode:
        assert "Error:" in done.stderr
        assert "datasets" in done.stderr


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_one_variable_of_a_launcher_alone_is_one_line_or_no_matter(
    tmp_path, run, monkeypatch, variable
):
    monkeypatch.setenv(variable, "0" if variable != "WORLD_SIZE" else "1")
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    done = run(*TRAIN)
    if done.exit_code:
        assert_refused(done, variable)
    else:
        assert_works(done)


def test_name_of_300_letters_is_refused(tmp_path, run):
    cases.write_recipe(tmp_path, name="n" * 300)
    cases.image_folders(tmp_path)
    assert_refused(run("run", "r.toml"), "name")


def test_recipe_with_a_byte_order_mark_is_read(tmp_path, run):
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_works(run(*TRAIN))


def test_tilde_is_the_home_folder(tmp_path, run, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    cases.write_recipe(tmp_path)
    cases.image_folders(tmp_path)
    assert_works(run("train", "r.toml", "--model", "teacher", "--run=~/x", "--cache-root=~/c"))
    assert not (tmp_path / "~").exists()
    assert (home / "x/result.json").is_file()
    assert (home / "c").is_dir()
