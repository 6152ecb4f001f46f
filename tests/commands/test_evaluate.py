"""Evaluation of finished runs: quality, agreement with the teacher, efficiency."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from earlier_runs import without_identity
from safetensors.torch import load_file, save_file

from kdscale.distributed import create_accelerator
from kdscale.runs.folder import RunFolder

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY_MODELS = Path(__file__).resolve().parents[1] / "assets"
FAST = ("--seconds", 0)
SHARES = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall", "calibration_error")
CONTRACT = {
    "version", "model", "role", "num_samples", "num_classes", "class_names", *SHARES, "calibration",
    "confusion", "per_class", "agreement", "teacher_sha256", "num_parameters", "flops",
    "weight_bytes", "peak_activation_bytes", "latency", "device", "device_name", "num_threads",
    "precision", "library_versions",
}  # fmt: skip


@pytest.fixture
def trained(kdscale, write_recipe, make_once, tmp_path):
    """A finished run and its result."""
    recipe = write_recipe()
    make_once("trained", lambda: kdscale("train", recipe, "--run", "run"))
    return json.loads((tmp_path / "run" / "result.json").read_text())


@pytest.fixture
def distilled(kdscale, write_recipe, tiny_teacher, make_once):
    """Two runs of a given teacher's student: `alone`, and `cached` with a validation split."""
    given = {"weights": tiny_teacher, "train": None}
    recipe = write_recipe(teacher=given, student={"train": {"epochs": 1}})
    cached = ("--targets", "cache", "--run", "cached", "--set", "data.validation=0.25")

    def train():
        for arguments in (("--run", "alone"), cached):
            done = kdscale("train", recipe, *arguments)
            assert done.exit_code == 0, done.stderr

    make_once("distilled", train)
    return recipe


def found_of(done):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["runs"]


def teachers_batches(monkeypatch):
    """Sizes of the batches of a frozen teacher's forward passes."""
    from kdscale.teacher.frozen_teacher import FrozenTeacher

    sizes, original = [], FrozenTeacher.logits

    def logits(self, pixels):
        sizes.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(FrozenTeacher, "logits", logits)
    return sizes


# ------------------------------------------------------------------ one run


def test_evaluating_a_run_gives_what_its_training_reported(kdscale, trained):
    (found,) = found_of(kdscale("evaluate", "run", "--json", *FAST))
    for name in (*SHARES, "num_parameters", "targets", "seed"):
        assert found[name] == trained[name], name
    assert found["run"] == "run"
    assert found["num_samples"] == 64


def test_evaluation_is_stored_in_the_runs_folder(kdscale, trained, tmp_path):
    (found,) = found_of(kdscale("evaluate", "run", "--json", *FAST))
    text = (tmp_path / "run" / "evaluation.json").read_text()
    kept = json.loads(text)
    assert len(kept.pop("checksum")) == 64
    assert kept.pop("run_id").startswith("student-none-seed0-")
    assert kept == {key: value for key, value in found.items() if key != "run"}
    assert kept.keys() >= CONTRACT
    assert len(text.splitlines()) == len(kept) + 4, "one field a line"
    confusion = torch.tensor(kept["confusion"])
    assert confusion.sum() == 64
    assert confusion.diagonal().sum() / 64 == kept["top1_accuracy"]
    assert [one["samples"] for one in kept["per_class"]] == confusion.sum(1).tolist()
    assert sum(kept["calibration"]["samples"]) == 64
    assert kept["weight_bytes"] == 4 * kept["num_parameters"]  # an MLP has nothing else
    assert kept["flops"] == 2 * (64 * 8 + 8 * 4), "a multiplication and an addition a weight"
    for size in ("1", "64"):  # input 64, hidden 8, logits 4, float32; ReLU and dropout keep 8 more
        assert kept["peak_activation_bytes"][size] == int(size) * 4 * (64 + 8 + 8)
        latency = kept["latency"][size]
        assert 0 < latency["median_seconds"] <= latency["p95_seconds"]
        assert latency["rounds"] == 5


def test_page_names_every_field_of_the_file(kdscale, trained, tmp_path):
    kdscale("evaluate", "run", *FAST)
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    named = re.findall(r"`(\w+)`", (DOCS / "evaluation.md").read_text())
    assert sorted(kept.keys() - set(named)) == []


def test_run_is_evaluated_on_a_copy_of_its_data(kdscale, trained, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "moved")
    (found,) = found_of(kdscale("evaluate", "run", "--data", "moved", "--json", *FAST))
    assert found["top1_accuracy"] == trained["top1_accuracy"]


def test_model_is_measured_in_the_precision_that_it_was_trained_in(kdscale, write_recipe):
    kdscale("train", write_recipe(), "--run", "run", "--set", "student.train.precision=bfloat16")
    (found,) = found_of(kdscale("evaluate", "run", "--json", *FAST))
    assert found["precision"] == "bfloat16"
    # input in both precisions, then two hidden maps of two bytes: less than float32's 4 * 80
    assert found["peak_activation_bytes"]["1"] == 4 * 64 + 2 * 64 + 2 * 8


# ------------------------------------------------------------------ other images, other answers


def test_evaluation_on_other_images_leaves_that_of_the_runs_own(
    kdscale, trained, make_dataset, tmp_path
):
    kdscale("evaluate", "run", *FAST)
    own = (tmp_path / "run" / "evaluation.json").read_text()
    make_dataset(tmp_path / "other", 64, 32, seed=7)
    done = kdscale("evaluate", "run", "--data", "other", "--json", *FAST)
    (found,) = found_of(done)
    assert (tmp_path / "run" / "evaluation.json").read_text() == own
    (file,) = (tmp_path / "run").glob("evaluation-on-*.json")
    assert str(file.relative_to(tmp_path)) in done.stderr
    written = json.loads(file.read_text())
    seals = {key: written[key] for key in ("checksum", "run_id")}
    assert {**found, **seals} == {**written, "run": found["run"]}
    assert (json.loads(own)["own_test_set"], found["own_test_set"]) == (True, False)
    assert found["test_fingerprint"].startswith(file.stem.removeprefix("evaluation-on-"))
    assert (found["num_samples"], found["test_source"]) == (32, "other")


def test_given_teacher_on_other_images_leaves_that_of_the_recipes_own(
    kdscale, write_recipe, tiny_teacher, make_dataset, tmp_path
):
    recipe = write_recipe(
        teacher={"weights": tiny_teacher, "train": None}, student={"train": {"epochs": 1}}
    )
    assert kdscale("run", recipe, "--run", "all").exit_code == 0
    kept = {path: path.read_text() for path in (tmp_path / "all").rglob("*evaluation.json")}
    make_dataset(tmp_path / "other", 64, 32, seed=7)
    found = found_of(kdscale("evaluate", "all", "--data", "other", "--json", *FAST))
    assert [one["own_test_set"] for one in found] == [False] * 3
    assert {path: path.read_text() for path in kept} == kept
    assert len(list((tmp_path / "all").rglob("*evaluation-on-*.json"))) == 3
    assert all(one["agreement"] is not None for one in found[1:]), "on the same other images"


def test_table_never_mixes_test_splits(kdscale, trained, write_recipe, make_dataset, tmp_path):
    make_dataset(tmp_path / "other", 64, 32, seed=7)
    recipe = write_recipe(name="second", data={"source": str(tmp_path / "other")})
    kdscale("train", recipe, "--run", "second")
    shown = kdscale("evaluate", "run", "second", *FAST).stdout
    heads = [line for line in shown.splitlines() if line.startswith("On ")]
    assert len(heads) == 2
    assert "64 images" in heads[0]
    assert "32 images" in heads[1]
    tables = [line for line in shown.splitlines() if "top-1 %" in line]
    assert len(tables) == 2


def test_logits_that_are_not_finite_are_wrong_counted_and_reported(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(student={"model": "tiny_models:undefined_when_dark", "options": {}})
    done = kdscale("train", recipe, "--run", "run")
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    bad = result["non_finite_samples"]
    assert 0 < bad < 64
    assert f"{bad} of 64 evaluated images: logits are NaN or infinite" in done.stderr
    (found,) = found_of(kdscale("evaluate", "run", "--json", *FAST))
    assert found["non_finite_samples"] == bad
    assert sum(map(sum, found["confusion"])) == sum(found["calibration"]["samples"]) == 64 - bad
    assert sum(one["samples"] for one in found["per_class"]) == 64
    correct = sum(found["confusion"][label][label] for label in range(4))
    assert found["top1_accuracy"] == result["top1_accuracy"] == correct / 64
    assert found["top5_accuracy"] == (64 - bad) / 64
    shown = kdscale("evaluate", "run", *FAST)
    assert f"run: {bad} images with NaN or infinite logits, counted as wrong" in shown.stdout


@pytest.fixture
def run_of_classes(kdscale, write_recipe, write_split, tmp_path):
    """`run_of_classes(run, 21_841)` trains a run, whose folder it returns, on so many classes."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8), np.uint8)

    def train(run, num_classes):
        names = [f"class number {n}" for n in range(num_classes)]
        labels = np.linspace(0, num_classes - 1, 12).astype(np.int64)
        for split in ("train", "test"):
            write_split(tmp_path / f"{run}-data" / f"{split}.parquet", pixels, labels, names)
        recipe = write_recipe(
            data={"source": f"{run}-data"},
            student={"train": {"epochs": 1, "global_batch_size": 4}},
        )
        assert kdscale("train", recipe, "--run", run).exit_code == 0
        return tmp_path / run

    return train


def test_evaluation_of_21841_classes_is_small(kdscale, run_of_classes, tmp_path):
    run = run_of_classes("run", 21_841)
    (found,) = found_of(kdscale("evaluate", "run", "--json", *FAST))
    assert found["confusion"] is None
    assert sum(one["samples"] for one in found["per_class"]) == 12
    assert found["most_confused"]
    for path in run.iterdir():
        assert path.suffix == ".safetensors" or path.is_dir() or path.stat().st_size < 4e6, path
    assert kdscale("report", "run", "--html", "page.html").exit_code == 0
    assert (tmp_path / "page.html").stat().st_size < 1e6


_MEASURED = """
import json, re, sys
from kdscale.cli import main
try:
    main()
except SystemExit as done:
    status = open("/proc/self/status").read()
    kibibytes = int(re.search(r"VmHWM:\\s*(\\d+) kB", status).group(1))
    print(json.dumps(1024 * kibibytes), file=sys.stderr)
    raise
"""
"""Not `getrusage`, whose peak is at least that of the process that started this one."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "RUN", "--json", "--trust-code", *FAST),
        ("report", "RUN", "--html", "page.html"),
    ],
)
def test_21841_classes_take_no_square_of_memory(command, run_of_classes, tmp_path):
    """The bound is above the same command on 12 classes, most of whose memory is the libraries'
    own, which differs between their versions (0.7 to 0.9 GB); a matrix would be 3.8 GB."""

    def peak_and_output(run):
        arguments = [argument.replace("RUN", run) for argument in map(str, command)]
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(TINY_MODELS)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stderr.splitlines()[-1]), done.stdout

    few, _ = peak_and_output(run_of_classes("few", 12).name)
    many, output = peak_and_output(run_of_classes("many", 21_841).name)
    assert many - few < 250e6
    assert len(output) < 10e6


def test_two_models_without_an_answer_do_not_agree():
    from kdscale.commands.evaluate import _agreement
    from kdscale.evaluation.evaluator import Examined
    from kdscale.evaluation.metrics import NO_PREDICTION, Counts
    from kdscale.evaluation.teacher_predictions import TeacherPredictions

    classes = torch.tensor([NO_PREDICTION, 1, 2, NO_PREDICTION])
    examined = Examined(Counts.none(3), classes, torch.zeros(4))
    assert _agreement(examined, TeacherPredictions(classes, "0")) == 0.5


@pytest.mark.parametrize(
    ("run", "problem"),
    [("nowhere", "no run at nowhere"), ("begun", "begun holds an unfinished run")],
)
def test_what_is_no_finished_run_is_refused(kdscale, tmp_path, run, problem):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.toml").write_text("")
    done = kdscale("evaluate", run, *FAST)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {problem}")


def test_unlabelled_test_split_is_refused(kdscale, trained, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "unlabelled", 64, 32, unlabelled=True)
    (data / "train.parquet").replace(data / "test.parquet")
    done = kdscale("evaluate", "run", "--data", "unlabelled", *FAST)
    assert done.exit_code == 1
    assert "label" in done.stderr
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_wrong_name_is_reported_before_others_are_evaluated(kdscale, trained, tmp_path):
    done = kdscale("evaluate", "run", "rum", *FAST)
    assert done.exit_code == 1
    assert "no run at rum" in done.stderr
    assert not (tmp_path / "run" / "evaluation.json").exists()


# ------------------------------------------------------------------ last and best


def test_best_weights_are_evaluated_beside_the_last(kdscale, distilled, tmp_path):
    best = found_of(kdscale("evaluate", "cached", "--weights", "best", "--json", *FAST))[0]
    assert best["weights"] == "best"
    assert (tmp_path / "cached" / "evaluation-best.json").is_file()
    assert not (tmp_path / "cached" / "evaluation.json").exists()


def test_best_weights_of_another_folders_teacher_leave_what_is_known_of_the_last(
    kdscale, write_recipe, tmp_path
):
    recipe = write_recipe(data={"validation": 0.25}, student={"train": {"epochs": 1}})
    assert kdscale("train", recipe, "--model", "teacher").exit_code == 0  # runs/tiny/teacher
    assert kdscale("run", recipe, "--run", "other").exit_code == 0
    found_of(kdscale("evaluate", "other", "--weights", "best", "--json", *FAST))
    kept = {
        path.name: json.loads(path.read_text()) for path in (tmp_path / "other").glob("t*.json")
    }
    assert {name: one["weights"] for name, one in kept.items()} == {
        "teacher-evaluation.json": "last", "teacher-evaluation-best.json": "best"
    }  # fmt: skip


def test_run_without_validation_has_no_best_weights(kdscale, trained):
    done = kdscale("evaluate", "run", "--weights", "best", *FAST)
    assert done.exit_code == 1
    assert "data.validation" in done.stderr


# ------------------------------------------------------------------ agreement


def agreement_by_hand(recipe_path, run, teacher, root):
    """Share of equal arg-max over the test split, models loaded apart from any evaluation."""
    from safetensors.torch import load_file

    from kdscale.config import load_recipe
    from kdscale.data.image_dataset import load_images
    from kdscale.models.registry import create_model

    recipe = load_recipe(str(recipe_path))
    test = load_images(recipe.data.source, split="test", root=root)
    pixels = (torch.tensor(test.pixels).float() / 255 - 0.4) / 0.25
    answers = []
    for hidden, weights in ((8, run / "weights.safetensors"), (32, teacher)):
        model = create_model(
            "tiny_models:mlp", num_classes=4, in_channels=1, options={"hidden": hidden}
        )
        model.load_state_dict(load_file(weights))
        answers.append(model.eval()(pixels).argmax(1))
    return float((answers[0] == answers[1]).double().mean())


def test_agreement_is_the_share_of_equal_first_answers(
    kdscale, distilled, tiny_teacher, tmp_path, monkeypatch
):
    sizes = teachers_batches(monkeypatch)
    found = found_of(kdscale("evaluate", "alone", "cached", "--json", *FAST))
    for one in found:
        run = tmp_path / one["run"]
        expected = agreement_by_hand(distilled, run, tiny_teacher, tmp_path / "cache")
        assert one["agreement"] == expected
        assert 0 < one["agreement"] < 1
        assert one["agreement_note"] is None
    assert found[0]["teacher_sha256"] == found[1]["teacher_sha256"]
    assert len(sizes) == 3, "the teacher is asked once for both students"
    kdscale("evaluate", "alone", *FAST)
    assert len(sizes) == 4, "and not again by another command"


def test_teacher_is_found_from_inside_the_runs_folder_too(
    kdscale, write_recipe, dataset, tmp_path, monkeypatch, shared_root
):
    recipe = write_recipe(data={"source": str(dataset)}, student={"train": {"epochs": 1}})
    root = ("--cache-root", shared_root)
    assert kdscale("run", recipe, "--run", "all", *root).exit_code == 0
    monkeypatch.chdir(tmp_path / "all" / "alone-seed0")
    (found,) = found_of(kdscale("evaluate", ".", "--json", *FAST, *root))
    assert found["agreement_note"] is None
    assert found["agreement"] is not None


def test_damaged_note_of_who_taught_a_run_is_reported(kdscale, distilled, tmp_path):
    (tmp_path / "cached" / "content.json").write_text("{")
    done = kdscale("evaluate", "cached", *FAST)
    assert done.exit_code == 1
    assert "content.json is damaged" in done.stderr


def test_changed_predictions_on_disk_are_computed_again(kdscale, distilled, tmp_path):
    before = found_of(kdscale("evaluate", "cached", "--json", *FAST))[0]
    (kept,) = (tmp_path / "cache" / "predictions").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    after = found_of(kdscale("evaluate", "cached", "--json", *FAST))[0]
    assert after["agreement"] == before["agreement"]


def test_teacher_that_is_not_at_hand_leaves_agreement_open(
    kdscale, write_recipe, tiny_teacher, tmp_path
):
    gone = shutil.copy(tiny_teacher, tmp_path / "gone.safetensors")
    recipe = write_recipe(teacher={"weights": str(gone), "train": None})
    kdscale("train", recipe, "--run", "run")
    gone.unlink()
    done = kdscale("evaluate", "run", *FAST)
    assert done.exit_code == 0
    assert f"agree - of run: no teacher at {gone}" in done.stdout
    assert "--teacher" in done.stdout
    moved = kdscale("evaluate", "run", "--teacher", tiny_teacher, "--json", *FAST)
    assert found_of(moved)[0]["agreement"] > 0


def test_teacher_that_is_named_and_will_not_do_is_an_error(kdscale, distilled, tmp_path):
    (tmp_path / "notes.safetensors").write_text("no weights")
    for file in ("notes.safetensors", "alone/weights.safetensors"):
        done = kdscale("evaluate", "cached", "--teacher", file, *FAST)
        assert done.exit_code in (1, 2)
        assert file in done.stderr
        assert "Traceback" not in done.stderr


def test_teacher_that_cannot_be_created_here_leaves_agreement_open(kdscale, distilled, tmp_path):
    file = tmp_path / "cached" / "recipe.toml"
    recipe = tomllib.loads(file.read_text())
    recipe["teacher"]["model"] = "code_that_is_elsewhere:teacher"
    file.write_text(tomli_w.dumps(recipe))
    (found,) = found_of(kdscale("evaluate", "cached", "--json", *FAST))
    assert found["agreement"] is None
    assert "code_that_is_elsewhere" in found["agreement_note"]


def test_another_teacher_than_the_one_that_taught_is_not_compared_with(
    kdscale, distilled, write_recipe
):
    other = write_recipe("other")
    short = ("--seed", 1, "--set", "teacher.train.epochs=1")
    assert kdscale("train", other, "--model", "teacher", "--run", "other", *short).exit_code == 0
    shown = kdscale("evaluate", "cached", "--teacher", "other/weights.safetensors", *FAST)
    assert shown.exit_code == 0
    assert "other/weights.safetensors is not the teacher that it was distilled from" in shown.stdout


def test_students_of_several_teachers_have_no_one_to_agree_with(kdscale, distilled, tmp_path):
    folder = RunFolder(tmp_path / "cached")
    without_identity(folder.path)  # of the run that it was
    content = folder.read_content()
    folder.write_content(replace(content, teacher=f"{content.teacher}+{'0' * 64}"))
    shown = kdscale("evaluate", "cached", *FAST).stdout
    assert "agree - of cached: it has several teachers" in shown


# ------------------------------------------------------------------ several runs


def test_several_runs_make_two_tables_that_fit_a_terminal(kdscale, write_recipe, trained):
    kdscale("train", write_recipe(), "--model", "teacher", "--run", "other")
    shown = kdscale("evaluate", "run", "other", *FAST).stdout
    rows = [line.split()[1] for line in shown.splitlines() if line.startswith("|")]
    assert rows == 2 * ["run", rows[1], "run", "other"]
    assert max(len(line) for line in shown.splitlines()) <= 100


def test_whole_recipe_is_evaluated_at_its_end_and_again_on_request(
    kdscale, write_recipe, tmp_path, monkeypatch
):
    recipe = write_recipe(student={"train": {"epochs": 1}})
    assert kdscale("run", recipe, "--run", "all").exit_code == 0
    names = ["teacher", "alone-seed0", "cache-seed0"]
    for name in names:
        kept = json.loads((tmp_path / "all" / name / "evaluation.json").read_text())
        assert kept.keys() >= CONTRACT
        assert (kept["agreement"] is None) == (name == "teacher")
    sizes = teachers_batches(monkeypatch)
    found = found_of(kdscale("evaluate", "all", "--json", *FAST))
    assert [one["run"] for one in found] == [f"all/{name}" for name in names]
    assert len(sizes) == 3, "what the teacher answers first is known"
    table = kdscale("evaluate", "all", *FAST).stdout
    assert table.splitlines()[0] == "all:"
    rows = [line.split()[1] for line in table.splitlines() if line.startswith("|")]
    assert rows == 2 * ["run", rows[1], *names]


@pytest.mark.thorough
def test_finished_recipe_is_not_measured_again_unless_a_model_has_changed(
    kdscale, write_recipe, tmp_path
):
    recipe = write_recipe(student={"train": {"epochs": 1}})
    kdscale("run", recipe, "--run", "all")
    files = [tmp_path / "all" / name / "evaluation.json" for name in ("teacher", "cache-seed0")]
    before = [file.stat().st_mtime_ns for file in files]
    assert "evaluating" not in kdscale("run", recipe, "--run", "all").stderr
    assert [file.stat().st_mtime_ns for file in files] == before
    files[1].write_text("{damaged")
    done = kdscale("run", recipe, "--run", "all")
    assert "evaluating all/cache-seed0" in done.stderr
    assert json.loads(files[1].read_text()).keys() >= CONTRACT


def test_given_teacher_is_evaluated_into_the_recipes_folder(
    kdscale, write_recipe, tiny_teacher, tmp_path
):
    recipe = write_recipe(
        teacher={"weights": tiny_teacher, "train": None, "memory_format": "channels_last"},
        student={"train": {"epochs": 1}},
    )
    assert kdscale("run", recipe, "--run", "all").exit_code == 0
    kept = json.loads((tmp_path / "all" / "teacher-evaluation.json").read_text())
    assert kept.keys() >= CONTRACT
    assert (kept["role"], kept["memory_format"]) == ("teacher", "channels_last")
    row = json.loads((tmp_path / "all" / "result.json").read_text())["rows"][0]["results"][0]
    for name in (*SHARES, "num_parameters", "num_samples"):
        assert row[name] == kept[name]
    assert "confusion" not in row


def test_given_teacher_is_measured_again_on_other_images(
    kdscale, write_recipe, tiny_teacher, tmp_path
):
    bare = tmp_path / "bare.safetensors"  # says nothing of its input
    save_file(load_file(tiny_teacher), bare)

    def loss(**changes):
        teacher = {"weights": str(bare), "train": None, **changes}
        recipe = write_recipe(teacher=teacher, student={"train": {"epochs": 1}})
        done = kdscale("run", recipe, "--run", "all")
        assert done.exit_code == 0, done.stderr
        for student in (tmp_path / "all").glob("*-seed0"):
            shutil.rmtree(student)  # as if it had been stopped before them
        kept = json.loads((tmp_path / "all" / "teacher-evaluation.json").read_text())
        row = json.loads((tmp_path / "all" / "result.json").read_text())["rows"][0]["results"][0]
        assert row["calibration_error"] == kept["calibration_error"]
        return kept["cross_entropy"]

    assert loss(input={"mean": [0.9], "std": [0.5]}) != loss()


def test_teacher_of_another_folder_is_evaluated_into_this_one(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(student={"train": {"epochs": 1}})
    assert kdscale("train", recipe, "--model", "teacher").exit_code == 0  # runs/tiny/teacher
    assert kdscale("run", recipe, "--run", "other").exit_code == 0
    kept = json.loads((tmp_path / "other" / "teacher-evaluation.json").read_text())
    assert kept["role"] == "teacher"
    assert json.loads((tmp_path / "other/cache-seed0/evaluation.json").read_text())["agreement"]


def test_trials_of_a_sweep_are_evaluated(kdscale, distilled, tmp_path):
    for number, run in enumerate(("alone", "cached")):
        shutil.copytree(tmp_path / run, tmp_path / "sweep" / "trials" / f"{number:05d}")
    (tmp_path / "sweep" / "trials" / "00002").mkdir()  # begun
    found = found_of(kdscale("evaluate", "sweep", "--json", *FAST))
    assert [one["run"] for one in found] == ["sweep/trials/00000", "sweep/trials/00001"]


# ------------------------------------------------------------------ cost


def network():
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.mark.parametrize("size", [1, 64])
def test_peak_activations_of_a_network_counted_by_hand(size):
    from kdscale.evaluation.efficiency import peak_activation_bytes

    model, inputs = network(), torch.randn(size, 1, 8, 8)
    # At the first ReLU: inputs 64, what the convolution gave 4 * 64, and as many after the ReLU.
    # Later: inputs 64, 256 into the second convolution, 128 out of it; its ReLU works in place.
    by_hand = 4 * size * (64 + 256 + 256)
    assert peak_activation_bytes(model, inputs, lambda: model(inputs)) == by_hand


def test_peak_activations_count_neither_weights_nor_their_copies_in_bfloat16():
    from kdscale.evaluation.efficiency import peak_activation_bytes

    model, inputs = torch.nn.Linear(1000, 1000), torch.randn(1, 1000)

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            model(inputs)

    # inputs in float32 and in bfloat16, outputs in bfloat16
    assert peak_activation_bytes(model, inputs, forward) == 4000 + 2000 + 2000


def test_peak_activations_know_what_was_freed():
    from kdscale.evaluation.efficiency import peak_activation_bytes

    class Kept(torch.nn.Module):
        def __init__(self, keeps):
            super().__init__()
            self.keeps = keeps

        def forward(self, values):
            kept = [values]
            for _ in range(5):
                kept.append(kept[-1] + 1)
                kept = kept if self.keeps else kept[-1:]
            return kept[-1]

    inputs = torch.zeros(250)  # 1000 bytes
    peaks = [peak_activation_bytes(m, inputs, lambda m=m: m(inputs)) for m in map(Kept, (0, 1))]
    assert peaks == [3000, 6000]


def test_latency_counts_single_rounds_within_its_time(monkeypatch):
    from kdscale.evaluation import efficiency

    now = [0.0]

    def clock():
        return now[0]

    def forward():
        calls.append(1)
        now[0] += 0.1 if len(calls) % 10 else 0.5  # one in ten is slow

    calls = []
    monkeypatch.setattr(efficiency, "perf_counter", clock)
    found = efficiency.latency(forward, torch.device("cpu"), seconds=10.0)
    assert found["median_seconds"] == pytest.approx(0.1)
    assert found["p95_seconds"] == pytest.approx(0.5)
    assert 60 < found["rounds"] < 80
    assert len(calls) == found["rounds"] + 3, "three to warm up"


def test_batch_that_the_device_cannot_hold_is_left_open(kdscale, write_recipe, tmp_path):
    kdscale("train", write_recipe(student={"model": "tiny_models:hungry", "options": {
        "largest": 32}}), "--run", "run")  # fmt: skip
    done = kdscale("evaluate", "run", *FAST)
    assert done.exit_code == 0, done.stderr
    assert "no memory for a batch of 64" in done.stderr
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(kept["latency"]) == list(kept["peak_activation_bytes"]) == ["1"]


def test_flops_of_a_convolution_are_counted_for_one_image_at_any_precision():
    from torch import nn

    from kdscale.evaluation.efficiency import flops_of

    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    for precision in ("float32", "bfloat16"):
        found = flops_of(model.eval(), torch.zeros(64, 3, 32, 32), precision=precision)
        assert found == 2 * 32 * 32 * 16 * 3 * 3 * 3


def test_weight_bytes_are_those_of_the_tensors_in_a_weights_file(tmp_path):
    from safetensors.torch import load_file

    from kdscale.evaluation.efficiency import weight_bytes
    from kdscale.models.registry import create_model
    from kdscale.models.weights import save_weights

    model = create_model("tiny_models:batch_norm", num_classes=4, in_channels=1)
    save_weights(tmp_path / "w.safetensors", model, metadata={})
    stored = load_file(tmp_path / "w.safetensors").values()
    assert weight_bytes(model) == sum(one.numel() * one.element_size() for one in stored)


def test_device_is_named():
    from kdscale.evaluation.efficiency import device_name

    assert device_name(create_accelerator().device)
