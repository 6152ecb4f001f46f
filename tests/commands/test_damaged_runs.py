"""Damaged runs: resumed exactly from the checkpoint before, or refused in one message."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from kdscale.experiment.saved_runs import read_recipe
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics

TIMES = (
    "train_seconds",
    "images_per_second",
)


def flip(path, place=-40):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def without_times(records):
    return [{key: one for key, one in record.items() if key not in TIMES} for record in records]


@pytest.fixture
def whole(kdscale, write_recipe, make_once, tmp_path):
    """A command, and a run with dropout and a validation split that it trained."""
    options = {"model": "tiny_models:slow_mlp", "options": {"seconds": 0.0, "dropout": 0.3}}
    train = {"epochs": 4, "checkpoint_every": 4, "evaluate_every": 2}
    recipe = write_recipe(student={**options, "train": train}, data={"validation": 0.25})

    def train():
        assert kdscale("train", recipe, "--run", "whole").exit_code == 0

    make_once("whole", train)
    return ["train", recipe], tmp_path / "whole"


@pytest.fixture
def unfinished(kdscale, whole, stopped_after_step, make_once, tmp_path):
    """The same, stopped after 10 of 12 steps: checkpoints of steps 8 and 10."""

    def train_until_stopped():
        with stopped_after_step(9):
            assert kdscale(*whole[0], "--run", "run").exit_code == 75

    make_once("unfinished", train_until_stopped)
    return tmp_path / "run"


def assert_same(run, whole):
    for name in ("weights.safetensors", "best.safetensors"):
        ours, theirs = load_file(run / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
    assert without_times(read_metrics(run)) == without_times(read_metrics(whole))


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "random-0.json"]
)
def test_damaged_checkpoint_is_made_up_for_by_the_one_before(kdscale, whole, unfinished, file):
    flip(unfinished / "checkpoints" / "step-00000010" / file)
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 0, done.output
    (told,) = (line for line in done.stderr.splitlines() if "cannot be used" in line)
    assert "step-00000010" in told
    assert told.endswith("it is damaged; going on from the one before it, step-00000008")
    assert "going on from step 8" in done.stderr
    assert_same(unfinished, whole[1])
    kept = sorted(path.name for path in (unfinished / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000012"] or kept == ["step-00000008", "step-00000012"]


def test_damaged_best_weights_are_reported_and_chosen_anew(kdscale, whole, unfinished):
    flip(unfinished / "best.safetensors")
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 0
    assert "the best weights, of step 6, are lost" in done.stderr
    result = RunFolder(unfinished).read_result()
    assert result["chosen_step"] == 12
    assert kdscale("evaluate", "run", "--weights", "best", "--seconds", 0).exit_code == 0


def test_run_without_a_sound_checkpoint_is_refused_and_left_alone(kdscale, whole, unfinished):
    for path in (unfinished / "checkpoints").iterdir():
        flip(path / "model.safetensors")
    before = sorted(unfinished.rglob("*"))
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 1
    assert done.stderr.count("Error: no checkpoint in run/checkpoints can be used") == 1
    assert "start again in a new --run" in done.stderr
    assert sorted(unfinished.rglob("*")) == before


@pytest.mark.parametrize("lost", [1, 300])
def test_log_that_lost_lines_is_reported_and_the_training_is_the_same(
    kdscale, whole, unfinished, lost
):
    log = unfinished / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-lost])
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 0
    assert "run/metrics.jsonl has " in done.stderr
    assert "the curves of the report will have a gap" in done.stderr
    assert b"\0" not in log.read_bytes()
    ours, theirs = (load_file(run / "weights.safetensors") for run in (unfinished, whole[1]))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    found, expected = (without_times(read_metrics(run)) for run in (unfinished, whole[1]))
    assert len(found) < len(expected)
    assert [record for record in expected if record in found] == found


def test_damaged_line_of_a_log_is_left_out_of_the_report_which_says_so(kdscale, whole):
    log = whole[1] / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"1", b"2", 1)
    log.write_bytes(b"\n".join(lines))
    page = kdscale("report", "whole", "--markdown", "-").stdout
    assert "line 3 of whole/metrics.jsonl is damaged" in page


def test_run_of_an_earlier_kdscale_is_resumed_and_evaluated(kdscale, whole, unfinished, tmp_path):
    """Its files have no checksums, and the log says so in one line."""
    for path in [*unfinished.glob("*.json"), *unfinished.glob("checkpoints/*/state.json")]:
        table = json.loads(path.read_text())
        for key in ("checksum", "crc32", "versions"):
            table.pop(key, None)
        path.write_text(json.dumps(table))
    recipe = unfinished / "recipe.toml"
    recipe.write_text("".join(recipe.read_text().splitlines(keepends=True)[:-1]))
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 0, done.output
    told = [line for line in done.stderr.splitlines() if "without checksums" in line]
    assert len(told) == 1
    assert_same(unfinished, whole[1])
    assert kdscale("evaluate", "run", "--seconds", 0).exit_code == 0


DOCUMENTS = ["run.json", "content.json", "result.json", "evaluation.json", "recipe.toml"]
BAD = {
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"[]",
    "null": b"null",
    "deep": b'{"a": ' + b"[" * 100_000,
    "endless integer": b'{"seed": ' + b"9" * 10_000 + b"}",
    "wrong types": b'{"model": 1, "seed": "x", "top1_accuracy": [], "test": {}, "rows": 3}',
    "NaN": b'{"model": "student", "targets": "none", "seed": NaN, "top1_accuracy": NaN}',
    "out of range": b'{"top1_accuracy": 7, "role": "student", "targets": "none", "seed": 0}',
}


@pytest.mark.parametrize("file", DOCUMENTS)
def test_malformed_files_of_a_run_end_in_one_message(kdscale, whole, tmp_path, file):
    path = tmp_path / "whole" / file
    kdscale("evaluate", "whole", "--seconds", 0)
    sound = path.read_bytes()
    commands = [["evaluate", "whole", "--seconds", 0], ["report", "whole", "--markdown", "-"],
                [*whole[0], "--run", "whole", "--resume-if-begun"]]  # fmt: skip
    for name, content in BAD.items():
        for command in commands:
            path.write_bytes(content)
            done = kdscale(*command)  # which raises what is no KdscaleError
            assert done.exit_code in (0, 1, 2), (name, command)
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
            assert len(errors) == (done.exit_code != 0), (name, command)
        if file in ("run.json", "recipe.toml"):
            assert done.exit_code in (1, 2), name
    path.write_bytes(sound)


@pytest.mark.parametrize("file", [*DOCUMENTS, "metrics.jsonl", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_link_pipe_or_folder_in_a_files_place_is_neither_read_nor_written(
    kdscale, whole, unfinished, tmp_path, file, kind
):
    path, elsewhere = unfinished / file, tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes() if path.exists() else b"")
    before = elsewhere.read_bytes()
    path.unlink(missing_ok=True)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path),
     "link": lambda: path.symlink_to(elsewhere)}[kind]()  # fmt: skip
    done = kdscale(*whole[0], "--run", "run", "--resume")
    assert done.exit_code == 1, done.output
    assert done.stderr.count("Error:") == 1
    assert file in done.stderr
    assert elsewhere.read_bytes() == before
    assert kdscale("report", "run", "--markdown", "-").exit_code in (0, 1)
    assert kdscale("evaluate", "run", "--seconds", 0).exit_code == 1
    assert elsewhere.read_bytes() == before


def test_recipe_that_was_changed_on_purpose_is_taken_without_its_last_line(whole):
    folder = RunFolder(whole[1])
    lines = folder.recipe_file.read_text().splitlines(keepends=True)
    assert lines[-1].startswith("# SHA-256 of the lines above: ")
    folder.recipe_file.write_text("".join(lines[:-1]).replace("epochs = 4", "epochs = 5"))
    assert read_recipe(folder.path).student.train.epochs == 5
