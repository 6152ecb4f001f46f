"""`kdscale run`: what is reused, what is refused, and what is found before hours go into it."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdscale.models import checksums
from kdscale.runs.log import read_metrics

DOCS = Path(__file__).parents[2] / "docs"
TIMES = ("train_seconds", "images_per_second", "build_seconds", "reading")
QUICK = {"train": {"epochs": 1, "global_batch_size": 32}}


@pytest.fixture
def quick(write_recipe, make_dataset, tmp_path):
    """A recipe of one epoch each, on data of its own; with changes."""
    data = str(make_dataset(tmp_path / "data", 64, 32))

    def write(**changes):
        table = {"data": {"source": data}, "student": QUICK, "views": {"count": 1}}
        for section, values in changes.items():
            table[section] = table.get(section, {}) | values
        return write_recipe("quick", **table)

    return write


def change_one_weight(path):
    with safe_open(path, "pt") as file:
        stated = file.metadata()
    metadata = {key: one for key, one in stated.items() if key not in checksums.KEYS}
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + torch.ones(1)
    save_file(tensors, path, metadata=metadata)


def test_changed_teacher_does_not_leave_old_students_in_a_new_table(
    kdscale, quick, tiny_teacher, tmp_path
):
    weights = shutil.copy(tiny_teacher, tmp_path / "teacher.safetensors")
    recipe = quick(teacher={"weights": str(weights), "train": None})
    assert kdscale("run", recipe, "--run", "r").exit_code == 0
    before = (tmp_path / "r" / "result.json").read_text()
    change_one_weight(weights)
    done = kdscale("run", recipe, "--run", "r")
    assert done.exit_code == 1
    assert "was trained on other inputs" in done.stderr
    assert "teacher: it has" in done.stderr
    assert (tmp_path / "r" / "result.json").read_text() == before


def test_changed_data_is_noticed_when_a_run_is_gone_on_with(
    kdscale, quick, make_dataset, tmp_path, monkeypatch
):
    from kdscale.training.trainer import Trainer

    def fails(self, batch):
        if self.state.step == 1:
            raise KeyboardInterrupt
        return original(self, batch)

    original = Trainer.losses_of
    recipe = quick()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "losses_of", fails)
        kdscale("train", recipe, "--run", "r", "--set", "student.train.checkpoint_every=1")
    shutil.rmtree(tmp_path / "data")
    make_dataset(tmp_path / "data", 64, 32, seed=5)
    done = kdscale("train", recipe, "--run", "r", "--resume",
                   "--set", "student.train.checkpoint_every=1")  # fmt: skip
    assert done.exit_code == 1
    assert "dataset: it has" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("student.model=mnist-mpl", "mnist-mlp"),
        ('views.operations=["random_crop"]', "padding is missing"),
        ("data.test_split=tset", "tset"),
        ("student.options={hiden=4}", "hiden"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_trained(
    kdscale, quick, tmp_path, change, message
):
    recipe = quick()
    done = kdscale("run", recipe, "--run", "r", "--set", change)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert not (tmp_path / "r").exists()
    assert not list((tmp_path / "cache").glob("*.zarr"))


def test_corrected_recipe_goes_on_in_the_same_folder(kdscale, quick, tmp_path):
    recipe = quick()
    assert kdscale("run", recipe, "--run", "r", "--set", "student.model=nothing").exit_code == 1
    assert kdscale("run", recipe, "--run", "r").exit_code == 0
    assert (tmp_path / "r" / "report.md").is_file()


def test_another_student_is_taught_by_the_teacher_that_is_there(kdscale, quick):
    recipe = quick()
    assert kdscale("run", recipe).exit_code == 0
    done = kdscale("run", recipe, "--run", "r2", "--set", "student.options.hidden=5")
    assert done.exit_code == 0
    assert "training teacher" not in done.stderr
    assert "fits and is complete: reused" in done.stderr


def test_teacher_of_other_settings_is_not_taken_for_the_recipes(kdscale, quick, tmp_path):
    recipe = quick()
    assert kdscale("train", recipe, "--model", "teacher", "--seed", 1).exit_code == 0
    assert kdscale("cache", "build", recipe).exit_code == 0
    done = kdscale("cache", "build", recipe, "--set", "teacher.train.epochs=2")
    assert done.exit_code == 1
    assert "teacher.train.epochs: it has 6, now 2" in done.stderr
    assert "--set name=NAME" in done.stderr
    assert "--run" not in done.stderr
    (cache,) = (tmp_path / "cache").glob("*.zarr")  # answers in the teacher's place
    trained = kdscale("train", recipe, "--targets", "cache", "--cache", cache, "--run", "t",
                      "--set", "teacher.train.epochs=2")  # fmt: skip
    assert trained.exit_code == 0, trained.stderr


@pytest.mark.parametrize("command", [["run"], ["sweep"], ["cache", "build"]])
def test_cache_that_is_a_file_is_refused_before_anything(kdscale, quick, tmp_path, command):
    (tmp_path / "mine.zarr").write_text("precious")
    swept = {"data": {"validation": 0.5}, "sweep": {"space": {"seed": [0]}}}
    done = kdscale(*command, quick(**swept), "--cache", "mine.zarr")
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.stderr
    assert "mine.zarr is a file" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "mine.zarr").read_text() == "precious"


def test_seed_that_no_generator_takes_is_refused(kdscale, quick):
    done = kdscale("train", quick(), "--seed", 1 << 63)
    assert done.exit_code == 2
    assert "is not in the range 0<=x<=9223372036854775807" in done.stderr


def test_cache_that_only_its_name_finds_is_mentioned_once(kdscale, quick):
    done = kdscale("run", quick(), "--run", "r", "--cache", "mine")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("has no ending .zarr") == 1


@pytest.mark.parametrize("command", ["run", "train"])
def test_files_that_are_no_runs_are_left_alone(kdscale, quick, tmp_path, command):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("precious")
    done = kdscale(command, quick(), "--run", "mine")
    assert done.exit_code == 1
    assert "metrics.jsonl" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == "precious"


def test_unlabelled_images_are_distilled_without_a_student_alone(
    kdscale, quick, make_dataset, tiny_teacher, tmp_path
):
    data = make_dataset(tmp_path / "unlabelled", 64, 32, unlabelled=True)
    recipe = quick(
        data={"source": str(data)},
        teacher={"weights": tiny_teacher, "train": None},
        loss={"hard_weight": 0.0, "soft_weight": 1.0},
    )
    done = kdscale("run", recipe, "--run", "r")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "r" / "result.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["teacher", "cache"]


def test_page_names_every_field_of_results_and_metrics(kdscale, quick, tmp_path):
    chosen = ("--set", "data.validation=0.25", "--set", "student.train.restore_best=true")
    assert kdscale("run", quick(), "--run", "r", *chosen).exit_code == 0
    named = set(re.findall(r"`(\w+)`", (DOCS / "runs.md").read_text()))
    whole = json.loads((tmp_path / "r" / "result.json").read_text())
    fields = {*whole, *whole["reading"], *whole["rows"][0]}.union(*read_metrics(tmp_path / "r"))
    assert {"last_top1_accuracy", "chosen_step", "learning_rate", "split"} <= fields
    assert sorted(fields - named) == []


def test_student_that_read_by_windows_is_reused(kdscale, quick, tmp_path):
    student = {"train": {"epochs": 1, "global_batch_size": 8}}
    recipe = quick(cache={"shard_samples": 16, "targets_memory": 1600}, student=student)
    first = kdscale("run", recipe, "--run", "r")
    assert first.exit_code == 0, first.stderr
    assert "windows" in first.stderr
    again = kdscale("run", recipe, "--run", "r", "--online")
    assert again.exit_code == 0, again.stderr
    assert "cache-seed0 is finished: reused" in again.stderr


def test_best_weights_say_what_they_are(kdscale, quick, tmp_path):
    from kdscale.models.weights import read_metadata

    kdscale("train", quick(), "--run", "r", "--set", "data.validation=0.25")
    best, last = (read_metadata(tmp_path / "r" / f"{n}.safetensors") for n in ("best", "weights"))
    for key in ("model", "options", "num_classes", "class_names", "preprocess"):
        assert best[key] == last[key]


def test_stopped_recipe_says_to_run_the_same_command_again(kdscale, quick, monkeypatch):
    from kdscale.training.trainer import Trainer

    original = Trainer.losses_of

    def stops(self, batch):
        signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "losses_of", stops)
    done = kdscale("run", quick(), "--run", "r")
    assert done.exit_code == 75
    assert "run the same command again" in done.stderr
    assert "--resume" not in done.stderr.splitlines()[-1]


def without_times(rows):
    return [
        (row["label"], [{k: v for k, v in one.items() if k not in TIMES} for one in row["results"]])
        for row in rows
    ]


STAGES = ["run/teacher/metrics.jsonl", "cache/*.zarr/zarr.json", "run/alone-seed0/recipe.toml",
          "run/cache-seed0/metrics.jsonl"]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("stops", [len(STAGES), pytest.param(30, marks=pytest.mark.slow)])
def test_recipe_that_is_stopped_at_any_moment_goes_on_to_the_same_table(
    commands, quick, tmp_path, stops
):
    """As soon as it has come to a stage, then at random moments."""
    recipe = quick(student={"train": {"epochs": 6, "global_batch_size": 8}})
    assert commands.run("run", recipe, "--run", "whole", cwd=tmp_path)[0] == 0
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    number, codes = random.Random(stops), []
    for stage in STAGES + [None] * (stops - len(STAGES)):
        commands.start("run", recipe, "--run", "run", cwd=tmp_path)
        if stage is None:
            time.sleep(number.uniform(0, 1.0))
        ends = time.monotonic() + 60
        while stage and not list(tmp_path.glob(stage)) and time.monotonic() < ends:
            time.sleep(0.001)
        commands.kill(number.choice([signal.SIGTERM, signal.SIGUSR1]))
        codes.append(commands.wait())
        output = commands.output.read_text()
        assert "Traceback" not in output
        assert codes[-1] == 0 or "the same command again" in output.splitlines()[-1]
    assert set(codes) <= {0, 75}
    assert codes[0] == 75
    status, output = commands.run("run", recipe, "--run", "run", cwd=tmp_path)
    assert status == 0, output
    found = [json.loads((tmp_path / one / "result.json").read_text()) for one in ("run", "whole")]
    assert without_times(found[0]["rows"]) == without_times(found[1]["rows"])
