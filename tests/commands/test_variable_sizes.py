"""Both flows on an image folder of several sizes."""

import gc
import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdscale import experiment
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.runs.log import read_metrics

CLASSES = ["dark", "light"]
CLEAN = [{"name": "center_crop", "size": 8}]
VIEWS = {
    "operations": [{"name": "random_resized_crop", "size": 8}, "random_horizontal_flip"],
    "count": 2,
}
MIXED = {"operations": [*VIEWS["operations"], "mixup"], "count": 2}
FIXED = {"operations": VIEWS["operations"], "count": 1, "mode": "fixed"}
PLAIN = {"operations": [], "count": 1}


def write_images(folder, num_samples, seed):
    """Grey noise of many sizes; the class is how light it is."""
    random = np.random.default_rng(seed)
    for number in range(num_samples):
        size = random.integers(8, 20, 2)
        pixels = random.integers(0, 120, size) + 100 * (number % 2)
        path = folder / CLASSES[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder: 48 training and 30 test images."""
    folder = tmp_path_factory.mktemp("variable") / "set"
    write_images(folder / "train", 48, 0)
    write_images(folder / "test", 30, 1)
    return folder


@pytest.fixture
def write(write_recipe, folder):
    """Writes a recipe of the folder, with changes."""

    def write(**changes):
        table = {"data": {"source": str(folder), "clean": CLEAN}, "views": VIEWS}
        table["cache"] = {"shard_samples": 20}
        table["student"] = {"train": {"global_batch_size": 10, "epochs": 2}}
        table["teacher"] = {"train": {"epochs": 3, "global_batch_size": 8}}
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return write_recipe(**table)

    return write


@pytest.fixture
def trained(kdscale, write, tmp_path):
    """The recipe with a teacher's weights."""
    assert kdscale("train", write(), "--model", "teacher", "--run", "teacher").exit_code == 0
    weights = str(tmp_path / "teacher" / "weights.safetensors")
    return lambda **changes: write(teacher={"weights": weights, "train": None}, **changes)


def result(run):
    return json.loads((run / "result.json").read_text())


def decoders():
    """Threads that decode."""
    gc.collect()
    return {thread for thread in threading.enumerate() if thread.name.startswith("decoder")}


def assert_ended(threads):
    """Threads end with the images that they decode; a moment later, so it is waited for."""
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


@pytest.mark.thorough
def test_whole_recipe_runs(kdscale, write, tmp_path):
    done = kdscale("run", write(data={"validation": 0.25}), "--seeds", 1)
    assert done.exit_code == 0, done.stderr
    student = tmp_path / "runs" / "tiny" / "cache-seed0"
    assert result(student)["top1_accuracy"] > 0.8
    assert "best_validation_accuracy" in result(student)
    (found,) = json.loads(kdscale("evaluate", student, "--json", "--seconds", 0).stdout)["runs"]
    assert found["top1_accuracy"] == result(student)["top1_accuracy"]
    assert found["num_samples"] == 30
    done = kdscale("export", student, "--format", "safetensors", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["pixels"]["shape"][2:] == found["input_shape"][1:]


@pytest.mark.parametrize("views", [VIEWS, MIXED, PLAIN], ids=["crop", "mixup", "clean"])
def test_cached_training_equals_online_training(kdscale, trained, tmp_path, views):
    recipe = trained(views=views)
    assert kdscale("cache", "build", recipe, "--cache", "c.zarr").exit_code == 0
    assert (
        kdscale("train", recipe, "--targets", "cache", "--cache", "c.zarr", "--run", "a").exit_code
        == 0
    )
    assert kdscale("train", recipe, "--targets", "teacher", "--run", "b").exit_code == 0
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-4)


def test_digests_are_of_views_made_one_by_one(kdscale, trained, tmp_path):
    from kdscale.config import load_recipe

    path = trained()
    assert kdscale("cache", "build", path, "--cache", "c.zarr").exit_code == 0
    reader = CacheReader(tmp_path / "c.zarr")
    images = experiment.training_images(load_recipe(str(path)), tmp_path / "cache", labelled=True)
    pipeline = Pipeline.from_description(reader.manifest.views)
    for view in range(2):
        kept = reader.read_view(view)["digests"]
        for sample in (0, 19, 20, 47):
            pixels = pipeline(
                torch.from_numpy(images.pixels.decode(sample))[None], view, torch.tensor([sample])
            )
            assert int(digest(pixels)) == int(kept[sample])


def test_fixed_mode_asks_about_the_clean_images(kdscale, trained, tmp_path):
    recipe = trained(views=FIXED)
    assert kdscale("cache", "build", recipe, "--cache", "c.zarr").exit_code == 0
    (operation,) = read_manifest(tmp_path / "c.zarr").views["operations"]
    assert (operation["name"], operation["size"]) == ("center_crop", 8)
    run = kdscale("train", recipe, "--targets", "cache", "--cache", "c.zarr", "--run", "a")
    assert run.exit_code == 0, run.stderr
    other = trained(views=FIXED, data={"clean": [{"name": "resize", "size": [8, 8]}]})
    refused = kdscale("train", other, "--targets", "cache", "--cache", "c.zarr", "--run", "b")
    assert refused.exit_code == 1
    assert "operations" in refused.stderr


def test_stopped_in_mid_epoch_and_resumed_equals_uninterrupted(
    kdscale, write, tmp_path, monkeypatch
):
    recipe = write(
        views=MIXED,
        student={"train": {"global_batch_size": 10, "epochs": 2, "checkpoint_every": 3}},
    )
    assert kdscale("train", recipe, "--run", "whole").exit_code == 0
    batch = BatchLoader.batch

    def stop(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(BatchLoader, "batch", stop)
    assert kdscale("train", recipe, "--run", "run").exit_code != 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert kdscale("train", recipe, "--run", "run", "--resume").exit_code == 0
    ours, theirs = (load_file(tmp_path / run / "weights.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_no_thread_is_left_after_a_command(kdscale, write):
    before = decoders()
    assert kdscale("train", write(), "--run", "run").exit_code == 0
    assert_ended(decoders() - before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_training_ends_at_once(commands, write, tmp_path, number, code):
    recipe = write(student={"train": {"global_batch_size": 10, "epochs": 10_000, "log_every": 1}})
    commands.start("train", recipe, "--run", "run", cwd=tmp_path)
    log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert time.monotonic() < end
        time.sleep(0.01)
    began = time.monotonic()
    commands.kill(number)
    assert commands.wait() == code
    assert time.monotonic() - began < 5
    assert "state saved in run" in commands.output.read_text()


# --------------------------------------------------------------------------- refused


COMMANDS = [["train"], ["cache", "build"], ["run"]]
IDS = ["train", "build", "run"]


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_no_clean_size_is_refused_before_anything(kdscale, write, tmp_path, command):
    done = kdscale(*command, write(data={"clean": []}))
    assert done.exit_code == 2
    assert "images differ in size (heights 8..19, widths 8..19 pixels)" in done.stderr
    assert "no operation of data.clean gives them one: set data.clean = [" in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_views_without_a_size_are_refused(kdscale, write, command):
    views = {"operations": ["random_horizontal_flip"], "count": 2}
    done = kdscale(*command, write(views=views))
    assert done.exit_code == 2
    assert "no operation of views.operations gives them one: name one that does" in done.stderr


def test_teachers_views_without_a_size_are_refused(kdscale, write):
    train = {"epochs": 1, "operations": ["random_horizontal_flip"]}
    done = kdscale("run", write(teacher={"train": train}))
    assert done.exit_code == 2
    assert "no operation of teacher.train.operations gives them one" in done.stderr


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        (["random_horizontal_flip"], "data.clean: random_horizontal_flip draws at random"),
        (["v2.RandomVerticalFlip"], "data.clean: v2.RandomVerticalFlip draws at random"),
        (["mixup"], "data.clean: mixup draws at random"),
        (["centre_crop"], "data.clean: no operation 'centre_crop': did you mean 'center_crop'?"),
    ],
)
def test_clean_operations_that_are_not_are_refused(kdscale, write, clean, message):
    done = kdscale("train", write(data={"clean": clean}))
    assert done.exit_code == 2
    assert message in done.stderr


def test_broken_image_is_named_and_nothing_hangs(kdscale, write, folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    path = broken / "train" / "light" / "021.png"
    path.write_bytes(path.read_bytes()[:60])
    before = decoders()
    done = kdscale("train", write(data={"source": str(broken)}), "--run", "run")
    assert done.exit_code == 1
    assert "row 34 of split 'train' of " in done.stderr
    assert "cannot be decoded" in done.stderr
    del done  # with the error's frames
    assert_ended(decoders() - before)


def test_clean_operations_are_used_for_sets_of_one_size(load_table, shared_root, dataset):
    recipe = load_table(
        data={"source": str(dataset), "clean": [{"name": "center_crop", "size": 6}]}
    )
    images = experiment.training_images(recipe, shared_root, labelled=True)
    assert not isinstance(images.pixels, EncodedImages)
    assert (
        images.fingerprint
        == experiment.training_images(load_table(), shared_root, labelled=True).fingerprint
    )
    found, _ = DeviceImages(images, torch.device("cpu")).gather(torch.arange(3))
    assert found.equal(torch.from_numpy(images.pixels[:3, :, 1:7, 1:7]))
    assert experiment.cached_pipeline(recipe, 128) == experiment.cached_pipeline(load_table(), 128)
    shown_clean = load_table(
        data={"clean": [{"name": "center_crop", "size": 6}]}, views={"operations": [], "count": 1}
    )
    assert (
        experiment.pipeline(shown_clean, 128).operations
        == experiment.clean_pipeline(shown_clean).operations
    )
    assert experiment.fresh_views(shown_clean, shown_clean.student.train, 128).num_views == 1
