"""The command line's contract: exit codes, what goes where, and one clear line for bad input."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.cache.verify import verify
from kdscale.errors import StorageError
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights


def assert_refused(done, exit_code, *parts):
    """One message on standard error, nothing on standard output, no traceback."""
    assert done.exit_code == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    for part in parts:
        assert part in done.stderr


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --------------------------------------------------------------------------- help, recipes


@pytest.mark.parametrize(
    "command",
    ["", "quickstart", "recipes", "run", "train", "evaluate", "export", "predict", "bench",
     "views", "env", "cache", "cache build", "cache extend",
     "cache info", "cache list", "cache plan", "cache remove", "cache repair", "cache show",
     "cache verify", "sweep", "sweep mnist", "sweep status", "sweep best"],
)  # fmt: skip
def test_every_command_has_help(kdscale, command):
    done = kdscale(*command.split(), "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ")


def test_module_is_the_command(kdscale_process):
    done = kdscale_process("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("kdscale, version ")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['kdscale', '--help']\n"
        "from kdscale.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'zarr', 'numpy', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes_are_listed_with_their_descriptions(kdscale):
    done = kdscale("recipes")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"quickstart", "mnist", "cifar10-tutorial"} <= set(names)
    assert "MNIST: CNN teacher" in done.stdout


def test_recipe_is_printed_so_that_it_can_be_saved_and_run(kdscale, tmp_path):
    (tmp_path / "mine.toml").write_text(kdscale("recipes", "mnist").stdout)
    assert kdscale("recipes", "mine.toml").exit_code == 0


# --------------------------------------------------------------------------- caches as JSON

INFO = {
    "id", "complete", "format_version", "num_views", "num_samples", "num_classes", "encoding",
    "bytes", "bytes_per_target", "fidelity", "teacher", "dataset", "views",
}  # fmt: skip


def test_cache_info_gives_the_documented_fields(kdscale, tiny_cache):
    done = kdscale("cache", "info", tiny_cache, "--json")
    assert done.exit_code == 0
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found.keys() >= INFO
    assert found["complete"] is True
    assert found["format_version"] == 3
    assert found["num_views"] == 3
    assert found["bytes_per_target"] == 16
    sizes = sum(path.stat().st_size for path in tiny_cache.rglob("*") if path.is_file())
    assert found["bytes"] == sizes


def test_cache_info_for_people_names_the_same(kdscale, tiny_cache):
    shown = kdscale("cache", "info", tiny_cache).stdout
    assert f"id: {read_manifest(tiny_cache).id}" in shown
    assert "  model: tiny_models:mlp" in shown


def test_cache_list_gives_the_same_with_paths(kdscale, cache_copy, tmp_path):
    done = kdscale("cache", "list", "--cache-root", tmp_path, "--json")
    (found,) = json.loads(done.stdout)
    info = json.loads(kdscale("cache", "info", cache_copy, "--json").stdout)
    assert found == {"path": str(cache_copy), **info}
    shown = kdscale("cache", "list", "--cache-root", tmp_path).stdout
    assert shown.startswith(f"{cache_copy}  {info['id']}  complete  3 views x 128 samples, float32")


def test_cache_list_without_caches_is_empty_and_says_so(kdscale):
    done = kdscale("cache", "list", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    done = kdscale("cache", "list")
    assert done.stdout == ""
    assert "no caches in cache" in done.stderr


def test_cache_list_goes_on_past_a_damaged_one(kdscale, cache_copy, tmp_path):
    (tmp_path / "a-broken.zarr").mkdir()
    (tmp_path / "a-broken.zarr" / "zarr.json").write_text("{")
    done = kdscale("cache", "list", "--cache-root", tmp_path, "--json")
    assert [found["path"] for found in json.loads(done.stdout)] == [str(cache_copy)]
    assert "a-broken.zarr" in done.stderr


def test_cache_root_may_come_from_the_environment(kdscale, cache_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSCALE_CACHE_ROOT", str(tmp_path))
    assert len(json.loads(kdscale("cache", "list", "--json").stdout)) == 1


def test_sound_cache_verifies_with_exit_code_0(kdscale, tiny_cache):
    done = kdscale("cache", "verify", tiny_cache, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["ok"] is True
    assert found["missing_shards"] == found["corrupt_shards"] == []
    assert kdscale("cache", "verify", tiny_cache).exit_code == 0


def test_corrupt_and_missing_shards_are_named_with_exit_code_1(kdscale, cache_copy):
    flip_a_bit(cache_copy / "logits" / "c" / "1" / "2" / "0")
    (cache_copy / "digests" / "c" / "2" / "3").unlink()
    done = kdscale("cache", "verify", cache_copy, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["ok"] is False
    assert found["corrupt_shards"] == ["view-00001/shard-00002"]
    assert found["missing_shards"] == ["view-00002/shard-00003"]
    shown = kdscale("cache", "verify", cache_copy)
    assert shown.exit_code == 1
    assert "corrupt: view-00001/shard-00002" in shown.stdout + shown.stderr


@pytest.mark.parametrize("command", ["info", "verify"])
def test_cache_that_is_not_there_is_refused(kdscale, command):
    assert_refused(kdscale("cache", command, "nowhere"), 1, "no cache at nowhere")


# --------------------------------------------------------------------------- wrong usage: 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "mnits"], ["no recipe 'mnits': did you mean 'mnist'?"]),
        (["run", "nowhere.toml"], ["no recipe file 'nowhere.toml'"]),
        (["train", "mnist", "--set", "loss.temprature=2"], ["did you mean 'temperature'?"]),
        (["train", "mnist", "--set", "loss.temperature=-1"], ["loss.temperature is -1: "]),
        (["train", "mnist", "--set", "student.train.epochs=many"], ["student.train.epochs is"]),
        (["train", "mnist", "--set", "loss"], ["write section.field=value"]),
        (["train", "mnist", "--data", "nowhere"], ["nowhere", "does not exist"]),
        (["train", "mnist", "--cache", "x.zarr"], ["--cache goes with --targets cache"]),
        (["train", "mnist", "--model", "teacher", "--targets", "cache"], ["is trained on labels"]),
        (["train", "mnist", "--seed", "-1"], ["--seed"]),
        (["run", "mnist", "--seeds", "0"], ["--seeds"]),
        (["trian", "mnist"], ["trian"]),
        (["evaluate"], ["RUN"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_exits_2(kdscale, arguments, parts):
    assert_refused(kdscale(*arguments), 2, *parts)


def test_recipe_with_several_problems_lists_them_all(kdscale):
    done = kdscale("train", "mnist", "--set", "loss.temperature=0", "--set", "los.x=1")
    assert_refused(done, 2, "loss.temperature is 0", "unknown key 'los': did you mean 'loss'?")


def test_recipe_without_a_training_section_is_refused(kdscale, write_recipe):
    done = kdscale("train", write_recipe(student={"train": None}))
    assert_refused(done, 2, "recipe 'tiny' has no [student.train] section: add one")


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("random_crp", "did you mean 'random_crop'?"),
        ({"name": "random_crop"}, "padding is missing"),
        ({"name": "random_crop", "padding": 0}, "padding is 0"),
    ],
)
def test_wrong_view_operation_is_refused(kdscale, write_recipe, operation, part):
    recipe = write_recipe(views={"operations": [operation]})
    assert_refused(kdscale("train", recipe), 2, part)


# --------------------------------------------------------------------------- what the world held: 1


def test_missing_data_is_refused(kdscale, write_recipe, tmp_path):
    done = kdscale("train", write_recipe(data={"source": str(tmp_path / "nowhere.parquet")}))
    assert_refused(done, 1, "nowhere.parquet", "--data")


def test_missing_column_is_refused_naming_those_there_are(kdscale, write_recipe):
    for column in ("image", "label"):
        done = kdscale("train", write_recipe(data={column: "picture"}))
        assert_refused(done, 1, "no column 'picture': columns are image", f"data.{column}")


def test_missing_split_is_refused_naming_those_there_are(kdscale, write_recipe):
    done = kdscale("train", write_recipe(data={"train_split": "trian"}))
    assert_refused(done, 1, "no split 'trian'", "test, train")


def test_corrupt_image_is_refused_by_its_row(kdscale, write_recipe, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data")
    table = pq.read_table(data / "train.parquet")
    rows = table.to_pylist()
    rows[41]["image"]["bytes"] = rows[41]["image"]["bytes"][:40]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), data / "train.parquet")
    done = kdscale("cache", "build", write_recipe(data={"source": str(data)}))
    assert_refused(done, 1, "row 41 of split 'train'", "cannot be decoded")


@pytest.fixture
def weights(tmp_path):
    """Writes random weights of the tiny teacher; its class count may be wrong."""

    def write(num_classes=4):
        model = create_model(
            "tiny_models:mlp", num_classes=num_classes, in_channels=1, options={"hidden": 32}
        )
        save_weights(tmp_path / "weights.safetensors", model, metadata={})
        return tmp_path / "weights.safetensors"

    return write


TEACHER_NEEDED = [("cache", "build"), ("train", "--targets", "teacher"), ("run",)]


@pytest.mark.parametrize("command", TEACHER_NEEDED, ids=" ".join)
def test_teacher_head_of_another_class_count_is_refused_before_anything_runs(
    kdscale, write_recipe, weights, command, tmp_path
):
    recipe = write_recipe(teacher={"weights": str(weights(num_classes=7))})
    assert_refused(kdscale(*command, recipe), 1, "head for 7 classes, the data set has 4")
    assert not list((tmp_path / "cache").glob("*.zarr"))


def test_message_about_a_teacher_without_weights_states_how_to_get_them(kdscale, write_recipe):
    done = kdscale("cache", "build", write_recipe())
    assert_refused(done, 1, "train tiny --model teacher", "teacher.weights")


@pytest.mark.parametrize("command", TEACHER_NEEDED, ids=" ".join)
def test_truncated_weights_are_refused(kdscale, write_recipe, weights, command):
    path = weights()
    path.write_bytes(path.read_bytes()[:-100])
    recipe = write_recipe(teacher={"weights": str(path)})
    assert_refused(kdscale(*command, recipe), 1, "weights.safetensors", "damaged")


def test_weights_of_another_model_are_refused(kdscale, write_recipe, save_random_model, tmp_path):
    save_random_model("linear", tmp_path / "linear.safetensors")
    recipe = write_recipe(teacher={"weights": str(tmp_path / "linear.safetensors")})
    assert_refused(kdscale("cache", "build", recipe), 1, "is not of this teacher", "missing 4.bias")


def test_pickled_checkpoint_is_refused_without_being_run(kdscale, write_recipe, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    recipe = write_recipe(teacher={"weights": str(tmp_path / "trap.pt")})
    assert_refused(kdscale("cache", "build", recipe), 1, "opening it would run code")
    assert not (tmp_path / "ran").exists()


def test_incomplete_cache_is_refused(kdscale, write_recipe, cache_copy):
    from dataclasses import replace

    write_manifest(cache_copy, replace(read_manifest(cache_copy), complete=False))
    done = kdscale("train", write_recipe(), "--targets", "cache", "--cache", cache_copy)
    assert_refused(done, 1, f"{cache_copy} is not complete", "cache build")


def test_corrupt_chunk_stops_training_and_its_shard_is_named(kdscale, write_recipe, cache_copy):
    flip_a_bit(cache_copy / "logits" / "c" / "1" / "2" / "0")
    done = kdscale("train", write_recipe(), "--targets", "cache", "--cache", cache_copy)
    assert_refused(done, 1, "view-00001/shard-00002", "cache verify")


def test_corrupt_manifest_is_refused(kdscale, write_recipe, cache_copy):
    document = cache_copy / "zarr.json"
    document.write_text(document.read_text().replace('"num_views": 3', '"num_views": 2'))
    done = kdscale("train", write_recipe(), "--targets", "cache", "--cache", cache_copy)
    assert_refused(done, 1, "manifest", "damaged")


def test_grey_images_and_colour_statistics_do_not_go_together(kdscale, write_recipe, tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "colour" / split / label
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (folder / "1.png").write_bytes(buffer.getvalue())
    done = kdscale("train", write_recipe(), "--data", "colour")
    assert_refused(done, 1, "3 channels")


# --------------------------------------------------------------------------- disk, memory, Ctrl-C


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
@pytest.mark.parametrize("command", [("train",), ("cache", "build"), ("run",)], ids=" ".join)
def test_disk_that_is_full_or_read_only_is_one_clear_line(
    kdscale, write_recipe, tiny_teacher, monkeypatch, tmp_path, command, number, reason
):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    recipe = write_recipe(teacher={"weights": tiny_teacher})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        assert_refused(kdscale(*command, recipe), 1, reason)
    assert not list(tmp_path.rglob("*.tmp"))
    assert kdscale(*command, recipe).exit_code == 0  # and nothing left over is in the way


def test_disk_that_fills_up_in_training_keeps_the_last_checkpoint(
    kdscale, write_recipe, monkeypatch, tmp_path
):
    from kdscale.runs import checkpoint

    original, written = checkpoint.write_durably, []

    def fills_up(path, data):
        written.append(path)
        if len(written) > 7:
            path.write_bytes(b"half")
            raise StorageError(
                f"cannot write {path} (No space left on device): finished work is stored"
            )
        original(path, data)

    recipe = write_recipe()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_durably", fills_up)
        done = kdscale("train", recipe, "--run", "run")
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr
    assert "finished work is stored" in done.stderr
    kdscale("train", recipe, "--run", "whole")
    assert kdscale("train", recipe, "--run", "run", "--resume").exit_code == 0
    ours, theirs = (
        (tmp_path / run / "weights.safetensors").read_bytes()[-500:] for run in ("run", "whole")
    )
    assert ours == theirs


@pytest.mark.parametrize("model", ["hungry", "hungry_cpu"])
def test_student_that_does_not_fit_into_memory_is_one_clear_line(kdscale, write_recipe, model):
    recipe = write_recipe(student={"model": f"tiny_models:{model}", "options": {}})
    done = kdscale("train", recipe, "--run", "run")
    assert_refused(done, 1, "out of memory", "global_batch_size")
    smaller = ["--set", "student.train.global_batch_size=8", "--run", "smaller"]
    assert kdscale("train", recipe, *smaller).exit_code == 0


def test_interruption_before_there_is_a_state_is_no_traceback(kdscale, write_recipe, monkeypatch):
    from kdscale.experiment import experiment

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "training_images", interrupt)
    done = kdscale("train", write_recipe())
    assert_refused(done, 130, "interrupted", "run the same command again")


def test_programming_error_keeps_its_traceback(kdscale, write_recipe, monkeypatch):
    from kdscale.experiment import experiment

    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(experiment, "training_images", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        kdscale("train", write_recipe())


def test_nothing_that_fails_touches_a_cache(kdscale, write_recipe, cache_copy):
    before = {p: p.read_bytes() for p in cache_copy.rglob("*") if p.is_file()}
    recipe = write_recipe(views={"seed": 9})
    kdscale("train", recipe, "--targets", "cache", "--cache", cache_copy)
    kdscale("cache", "verify", cache_copy)
    kdscale("cache", "info", cache_copy)
    assert {p: p.read_bytes() for p in cache_copy.rglob("*") if p.is_file()} == before
    assert verify(cache_copy).ok


def test_batch_norm_of_a_single_sample_has_a_message_of_its_own(
    kdscale, write_recipe, make_dataset, tmp_path
):
    data = make_dataset(tmp_path / "data", num_train=4)
    train = {"global_batch_size": 1}
    student = {"model": "tiny_models:batch_norm_of_vectors", "options": {}, "train": train}
    done = kdscale("train", write_recipe(student=student), "--data", data, "--run", "run")
    assert_refused(done, 1, "batch-norm cannot train on a single sample", "global_batch_size")


def test_control_characters_reach_no_terminal(kdscale, tmp_path):
    done = kdscale("cache", "verify", tmp_path / "no\x1b[31mcache\x07.zarr")
    assert done.exit_code == 1
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr
    assert r"no\x1b[31mcache\x07.zarr" in done.stderr
