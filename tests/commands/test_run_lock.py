"""One command at a time in a run's folder; the second is told so, and the first not disturbed."""

import json
import signal
import time

import pytest
from accelerate import Accelerator

from kdscale.cache import lease
from kdscale.errors import RunError
from kdscale.runs.lock import run_lock


@pytest.fixture
def slow_recipe(write_recipe, tiny_teacher):
    student = {"model": "tiny_models:slow_mlp", "options": {"seconds": 0.005}}
    return write_recipe(student=student, teacher={"weights": tiny_teacher})


def start_and_hold(commands, cwd, until, *command):
    """Start a command, and let it stand still where a file is there."""
    commands.start(*command, cwd=cwd)
    ends = time.monotonic() + 60
    while not until.exists():
        assert time.monotonic() < ends
        time.sleep(0.0005)
    commands.kill(signal.SIGSTOP)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("further", [[], ["--resume"], ["--resume-if-begun"]])
def test_second_training_into_a_run_names_the_first(
    commands, kdscale, slow_recipe, tmp_path, further
):
    command = ["train", slow_recipe, "--run", "run"]
    start_and_hold(commands, tmp_path, tmp_path / "run/metrics.jsonl", *command)
    before = files(tmp_path / "run")
    second = kdscale(*command, *further)
    assert (second.exit_code, files(tmp_path / "run")) == (1, before)
    assert f"process {commands.pid} on" in second.stderr
    assert "is at work in run: let it end, or name another --run" in second.stderr
    commands.kill(signal.SIGCONT)
    assert commands.wait() == 0, commands.output.read_text()
    assert not (tmp_path / "run/claims").exists()


def test_second_run_of_a_recipe_into_a_folder_names_the_first(
    commands, kdscale, slow_recipe, tmp_path
):
    command = ["run", slow_recipe, "--run", "whole"]
    start_and_hold(commands, tmp_path, tmp_path / "whole/recipe.toml", *command)
    second = kdscale(*command, "--set", "student.train.epochs=1")
    assert second.exit_code == 1
    assert "is at work in whole: let it end" in second.stderr
    assert "epochs = 3" in (tmp_path / "whole/recipe.toml").read_text()
    commands.kill(signal.SIGKILL)
    commands.kill(signal.SIGCONT)
    assert commands.wait() == -signal.SIGKILL
    third = kdscale(*command, "--set", "student.train.epochs=1")  # no student was begun
    assert third.exit_code == 0, third.stderr


# --------------------------------------------------------------------------- other machines


def left_by_another_machine(folder, count):
    (folder / "claims").mkdir(exist_ok=True)
    claim = {"builder": "f" * 16, "host": "node-b", "pid": 7, "machine": "other", "started": "5"}
    (folder / "claims/run.0").write_text(json.dumps(claim))
    (folder / f"claims/{'f' * 16}.builder").write_text(str(count))


def test_command_at_work_on_another_machine_is_seen_by_its_counter(tmp_path, monkeypatch):
    left_by_another_machine(tmp_path, 0)
    looks = iter(range(1, 100))
    monkeypatch.setattr(
        "kdscale.polling.time.sleep", lambda _: left_by_another_machine(tmp_path, next(looks))
    )
    with pytest.raises(RunError, match="process 7 on node-b, is at work"), alone(tmp_path):
        pass


def test_folder_that_another_machine_left_is_taken_over_after_a_while(tmp_path, monkeypatch):
    left_by_another_machine(tmp_path, 0)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.05)
    with alone(tmp_path):
        assert (tmp_path / "claims/run.1").is_file()


def test_training_that_was_taken_for_dead_writes_nothing_more(commands, slow_recipe, tmp_path):
    first = tmp_path / "run/checkpoints/step-00000000"
    start_and_hold(commands, tmp_path, first, "train", slow_recipe, "--run", "run")
    claim = {"builder": "f" * 16, "host": "node-b", "pid": 7, "machine": "other", "started": "5"}
    (tmp_path / "run/claims/run.1").write_text(json.dumps(claim))
    before = files(tmp_path / "run")
    commands.kill(signal.SIGCONT)
    assert commands.wait() == 1
    assert "run is another command's now: this one stood still for" in commands.output.read_text()
    after = files(tmp_path / "run")
    ours = {path for path in before if path.suffix == ".builder"}
    assert {path: before[path] for path in before if path not in ours} == after


def alone(folder):
    return run_lock(folder, Accelerator(cpu=True))


def test_nothing_is_left_of_a_run_that_did_not_begin(kdscale, slow_recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        refused = kdscale("train", slow_recipe, "--run", folder, "--resume")
        assert refused.exit_code == 1
        assert f"nothing to resume in {folder}" in refused.stderr
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "mine").iterdir()) == []
