"""A user's own file that is called as a library is: kdscale finds the library, and their models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["datasets", "random", "queue", "accelerate", "json", "logging", "signal"]
AT_START = "types"
"""Needed by `python -m` itself, before any of kdscale is there."""
MODEL = """
from torch import nn

def mine(num_classes, in_channels) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.fixture
def place(tmp_path, recipe_table):
    """A folder with a recipe, the model that it names, and files called as libraries are."""
    for name in [*NAMES, AT_START]:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the folder was run')\n")
    (tmp_path / "models_of_mine.py").write_text(MODEL)
    table = recipe_table(
        data={"validation": 0.25},
        student={"model": "models_of_mine:mine", "options": {}, "train": {"epochs": 1}},
        teacher={"model": "models_of_mine:mine", "options": {}, "train": {"epochs": 1}},
        sweep={"space": {"seed": [0, 1]}},
    )
    (tmp_path / "r.toml").write_text(tomli_w.dumps(table))
    return tmp_path


def started(place, *command, **extra):
    keep = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=place, env=keep | {"OMP_NUM_THREADS": "1"} | extra,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "the file of the folder" not in done.stderr + done.stdout
    return done


def finished(done, run):
    assert done.returncode == 0, done.stderr
    return json.loads((run / "result.json").read_text())


TRAIN = ("train", "r.toml", "--run", "run")
SCRIPT = Path(sys.executable).with_name("kdscale")


@pytest.mark.thorough
@pytest.mark.skipif(not SCRIPT.exists(), reason="kdscale is not installed as a script")
def test_command_takes_models_from_the_current_folder_and_libraries_from_elsewhere(place):
    assert finished(started(place, SCRIPT, *TRAIN), place / "run")["role"] == "student"


@pytest.mark.thorough
def test_module_takes_models_from_the_current_folder_and_libraries_from_elsewhere(place):
    (place / f"{AT_START}.py").unlink()
    assert finished(started(place, sys.executable, "-m", "kdscale", *TRAIN), place / "run")


@pytest.mark.thorough
def test_module_under_the_safe_path_is_not_disturbed_by_any_name(place):
    assert finished(started(place, sys.executable, "-P", "-m", "kdscale", *TRAIN), place / "run")


@pytest.mark.thorough
def test_own_package_of_a_librarys_name_is_none_of_kdscales_business(place):
    for name in [*NAMES, AT_START]:
        (place / f"{name}.py").unlink()
    (place / "datasets").mkdir()
    (place / "datasets" / "__init__.py").write_text("")
    assert finished(started(place, sys.executable, "-m", "kdscale", *TRAIN), place / "run")


@pytest.mark.slow
def test_workers_of_a_sweep_are_not_disturbed_by_any_name(place):
    words = ("sweep", "r.toml", "--run", "sweep", "--workers", 2)
    done = started(place, sys.executable, "-P", "-m", "kdscale", *words)
    assert done.returncode == 0, done.stderr
    assert len(list((place / "sweep" / "trials").glob("*/result.json"))) == 2


@pytest.mark.slow
@pytest.mark.launch
def test_launched_processes_are_not_disturbed_by_any_name(place):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = started(place, ROOT / "launch" / "cpu.sh", 2, *TRAIN, PATH=path)
    assert finished(done, place / "run")["num_processes"] == 2
