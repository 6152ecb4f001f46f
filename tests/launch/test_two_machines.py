"""Two machines of one process each, on this one: the files for several machines and for SLURM."""

import json
import os
import re
import signal
import socket
import sysconfig
import time

import pytest
import tomli_w
import torch
from played_slurm import ON_TWO_NODES, Slurm
from safetensors.torch import load_file

from kdscale.commands.train import train
from kdscale.experiment import Experiment, Locations
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec

TOLERANCE = 5e-6
"""As in tests/commands/test_two_processes.py."""

pytestmark = pytest.mark.launch


def free_port():
    """One that slurm.sbatch can arrive at from a job's number."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        if 20000 <= port < 40000:
            return port


@pytest.fixture
def changes(tiny_teacher):
    """32 steps of 50 ms, with evaluations between them, of a number of samples that splits."""
    return {
        "student": {
            "model": "tiny_models:slow_mlp",
            "options": {"seconds": 0.05, "dropout": 0.0},
            "train": {"epochs": 8, "checkpoint_every": 3},
        },
        "teacher": {"weights": tiny_teacher},
        "data": {"validation": 0.125},
    }


@pytest.fixture
def submit(tmp_path):
    """Submits `kdscale train ...` to two nodes, and gives the job and the cluster."""
    clusters = []

    def start(*arguments, **extra):
        folder = tmp_path / f"cluster-{len(clusters)}"
        folder.mkdir()
        slurm = Slurm(folder, srun=ON_TWO_NODES, nodes=("127.0.0.1", "127.0.0.1"))
        clusters.append(slurm)
        scripts = sysconfig.get_path("scripts")
        job = slurm.submit(
            "slurm.sbatch", "train", tmp_path / "tiny.toml", "--run", tmp_path / "run", *arguments,
            SLURM_JOB_ID=str(free_port() - 20000), SLURM_GPUS_ON_NODE="1", SLURM_CPUS_PER_TASK="1",
            ACCELERATE_USE_CPU="true", HOME=str(tmp_path),
            PATH=os.pathsep.join([str(slurm.bin), scripts, os.environ["PATH"]]), **extra,
        )  # fmt: skip
        return slurm, job

    return start


def wait_for_lines(run, count):
    log, ends = run / "metrics.jsonl", time.monotonic() + 200
    while not log.is_file() or log.read_bytes().count(b"\n") < count:
        assert time.monotonic() < ends
        time.sleep(0.01)


def losses(run):
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


def test_training_on_two_machines_is_requeued_goes_on_and_equals_one_process(
    submit, changes, recipe_table, load_table, shared_root, tmp_path
):
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(recipe_table(**changes)))
    arguments = ["--targets", "teacher", "--cache-root", tmp_path / "cache"]
    slurm, job = submit(*arguments)
    wait_for_lines(tmp_path / "run", 5)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 75, output
    assert slurm.requeued()
    (step,) = re.findall(r"Error: stopped after step (\d+) of 32; state saved in ", output)
    assert "Traceback" not in output
    slurm, job = submit(*arguments, SLURM_RESTART_COUNT="1")
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    assert f"going on from step {step} of " in output
    assert not slurm.requeued()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_processes"] == 2
    one = RunSpec("student", "teacher", 0)
    train(
        Experiment(load_table(**changes), Locations(run=tmp_path / "one", cache_root=shared_root)),
        one,
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)
    ours, theirs = (load_file(tmp_path / f"{run}/weights.safetensors") for run in ("run", "one"))
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name
