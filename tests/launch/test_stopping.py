"""Two processes that are stopped and killed: what a person sees, and what comes of the run."""

import os
import re
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import psutil
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("train_seconds", "images_per_second", "build_seconds", "reading")

pytestmark = [pytest.mark.launch, pytest.mark.slow]


@pytest.fixture
def launch(tmp_path, recipe_table, tiny_teacher, tiny_cache):
    """Starts two processes that train on a cache, with dropout and a validation split."""
    table = recipe_table(
        student={
            "model": "tiny_models:slow_mlp",
            "options": {"seconds": 0.03, "dropout": 0.3},
            "train": {"epochs": 16, "checkpoint_every": 3, "evaluate_every": 2},
        },
        teacher={"weights": tiny_teacher},
        data={"validation": 0.125},
    )
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    left_out = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "COV_CORE_", "COVERAGE_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{environment['PATH']}"

    def start(run):
        train = ["train", "tiny.toml", "--targets", "cache", "--cache", str(tiny_cache)]
        return subprocess.Popen(
            [ROOT / "launch" / "cpu.sh", "2", *train, "--run", run, "--resume-if-begun"],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    return start


def wait_until(condition):
    ends = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def processes_of(launcher):
    """Those that train, in their order."""
    found = {}
    for one in psutil.Process(launcher.pid).children(recursive=True):
        try:
            if "tiny.toml" in one.cmdline():
                found[one.environ().get("RANK")] = one
        except psutil.Error:  # one that has just ended
            continue
    return [found[rank] for rank in ("0", "1") if rank in found]


def num_lines(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def ended(launcher):
    output, _ = launcher.communicate(timeout=200)
    assert "Traceback" not in output
    return launcher.returncode, output


def test_two_processes_stopped_and_killed_end_as_those_left_alone(launch, tmp_path):
    assert ended(launch("whole"))[0] == 0
    run = tmp_path / "run"

    launcher = launch("run")  # a scheduler, while it starts
    wait_until(lambda: len(processes_of(launcher)) == 2)
    time.sleep(1.5)
    launcher.send_signal(signal.SIGTERM)
    status, output = ended(launcher)
    assert status in (75, 143)  # before there was a Python to hear it
    assert not run.exists() or not num_lines(run)

    launcher = launch("run")  # Ctrl-C in a terminal
    wait_until(lambda: num_lines(run) > 8)
    os.killpg(launcher.pid, signal.SIGINT)
    status, output = ended(launcher)
    assert status == 130
    told = r"stopping as soon as .*\nError: stopped after step \d+ of 64; state saved in run: run "
    assert re.search(told, output)
    assert len(output.splitlines()) <= 8, output

    launcher = launch("run")  # one is killed, as where memory is full
    wait_until(lambda: num_lines(run) > 30)
    processes_of(launcher)[1].kill()
    status, output = ended(launcher)
    assert status == 137
    assert "Error: another process of this launch has ended: read its output" in output
    assert "processes exited with 76, -9" in output

    launcher = launch("run")  # one alone is asked to stop: both do
    wait_until(lambda: num_lines(run) > 55)
    processes_of(launcher)[1].send_signal(signal.SIGUSR1)
    status, output = ended(launcher)
    assert status == 75
    assert output.count("Error") == 1

    status, output = ended(launch("run"))
    assert status == 0
    assert "going on from step " in output
    ours, theirs = (load_file(tmp_path / one / "weights.safetensors") for one in ("run", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    logs = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(tmp_path / one)]
        for one in ("run", "whole")
    ]
    assert logs[0] == logs[1]
    results = [RunFolder(tmp_path / one).read_result() for one in ("run", "whole")]
    assert results[0]["num_processes"] == results[1]["num_processes"] == 2
    assert results[0]["top1_accuracy"] == results[1]["top1_accuracy"]
