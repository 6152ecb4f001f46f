"""The launch files are what they say: they parse, they are clean, and SLURM's does its part."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
YAMLS = [ROOT / "accelerate_config.yaml", *sorted(LAUNCH.glob("*.yaml"))]
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), *sorted(LAUNCH.glob("*.sbatch")), ROOT / ".ci" / "run"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def commands_of(markdown):
    """Commands in backticks that start something, without the words of a table around them."""
    return [
        text
        for text in re.findall(r"`([^`\n]+)`", markdown)
        if text.startswith(("accelerate launch", "kdscale ", "launch/", "sbatch ")) and " " in text
    ]


# ------------------------------------------------------------------ Accelerate's files


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_yaml_holds_what_accelerate_knows(path):
    config = load_config_from_file(str(path))  # refuses an unknown key
    assert config.mixed_precision == "no"  # a bare no would be False
    assert config.use_cpu is False


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_yaml_names_no_machine(path):
    keys = yaml.safe_load(path.read_text()).keys()
    assert not keys & {"main_process_ip", "machine_rank", "gpu_ids"}


def test_default_config_starts_one_process():
    config = load_config_from_file(str(ROOT / "accelerate_config.yaml"))
    assert config.distributed_type.value == "NO"
    assert config.num_processes == 1


@pytest.mark.parametrize("name", ["multi_gpu.yaml", "multi_node.yaml"])
def test_multi_process_config_asks_for_the_count(name):
    config = load_config_from_file(str(LAUNCH / name))
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == -1  # which `accelerate launch` refuses


# ------------------------------------------------------------------ scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_is_executable_and_parses(path):
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_passes_shellcheck(path):
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [[], ["2"], ["train", "cifar10-tutorial"], ["0", "train"]])
def test_cpu_script_says_how_it_is_used_when_called_wrongly(arguments):
    done = subprocess.run(
        [LAUNCH / "cpu.sh", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: launch/cpu.sh ")


# ------------------------------------------------------------------ the page


def test_every_file_of_the_page_exists():
    page = (LAUNCH / "README.md").read_text()
    commands = commands_of(page)
    assert len(commands) >= 6
    words = [word for command in commands for word in shlex.split(command)]
    words += re.findall(r"`((?:launch/|accelerate_config)[^` ]*)`", page)
    files = {word for word in words if word.startswith(("launch/", "accelerate_config"))}
    assert sorted(file for file in files if not (ROOT / file).is_file()) == []


def test_every_launch_file_is_on_the_page():
    page = (LAUNCH / "README.md").read_text()
    files = {name_of(path) for path in LAUNCH.iterdir() if path.is_file()} - {"launch/README.md"}
    assert sorted(file for file in files if f"`{file}`" not in page) == []


# ------------------------------------------------------------------ SLURM, played


class Slurm:
    """Stand-ins for SLURM's commands and the launcher, which note how they were called."""

    def __init__(self, folder, launcher, trap=""):
        self.calls = folder / "calls"
        self.calls.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self._command(
            "scontrol",
            'echo "scontrol $*" >> "$CALLS"',
            'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; fi',
        )
        # Drops its own options and runs the rest as the second node would.
        self._command(
            "srun",
            'while [ "${1#-}" != "$1" ]; do shift; done',
            'SLURM_NODEID=1 exec "$@"',
        )
        # Its trap stands before the call is noted: from then on the job may be sent a signal.
        self._command("accelerate", trap, 'echo "accelerate $*" >> "$CALLS"', launcher)

    def _command(self, name, *lines):
        path = self.bin / name
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        path.chmod(0o755)

    def submit(self, *arguments, **extra):
        ours = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [LAUNCH / "slurm.sbatch", *arguments],
            env=ours
            | {
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "CALLS": str(self.calls),
                "SLURM_SUBMIT_DIR": str(ROOT),
                "SLURM_JOB_ID": "41",
                "SLURM_JOB_NODELIST": "node-[a-b]",
                "SLURM_GPUS_ON_NODE": "4",
                "SLURM_CPUS_PER_TASK": "16",
                **extra,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def launched(self):
        (line,) = [line for line in self.calls.read_text().splitlines() if line[:3] == "acc"]
        return line

    def requeued(self):
        return "scontrol requeue 41" in self.calls.read_text().splitlines()

    def wait_until_launched(self):
        deadline = time.perf_counter() + 30
        while "accelerate" not in self.calls.read_text():
            assert time.perf_counter() < deadline
            time.sleep(0.02)


WAITS = "while :; do sleep 0.05; done"


def test_slurm_starts_all_processes_of_all_nodes(tmp_path):
    slurm = Slurm(tmp_path, launcher="exit 0")
    job = slurm.submit("train", "mnist", "--set", "a.b=1")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert slurm.launched() == (
        "accelerate launch --config_file launch/multi_node.yaml --num_machines 2 --num_processes 8 "
        "--machine_rank 1 --main_process_ip node-a --main_process_port 20041 "
        "-m kdscale train mnist --set a.b=1"
    )
    assert not slurm.requeued()


def test_slurm_resumes_a_training_that_was_requeued(tmp_path):
    slurm = Slurm(tmp_path, launcher="exit 0")
    slurm.submit("train", "mnist", SLURM_RESTART_COUNT="1").communicate(timeout=60)
    assert slurm.launched().endswith("-m kdscale train mnist --resume")


def test_slurm_adds_no_resume_to_a_cache_build(tmp_path):
    slurm = Slurm(tmp_path, launcher="exit 0")
    slurm.submit("cache", "build", "mnist", SLURM_RESTART_COUNT="1").communicate(timeout=60)
    assert slurm.launched().endswith("-m kdscale cache build mnist")


def test_slurm_passes_a_failure_on(tmp_path):
    slurm = Slurm(tmp_path, launcher="exit 3")
    job = slurm.submit("train", "mnist")
    job.communicate(timeout=60)
    assert job.returncode == 3
    assert not slurm.requeued()


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_lets_kdscale_save_and_requeues_only_when_time_ran_out(tmp_path, sent, requeued):
    slurm = Slurm(tmp_path, launcher=WAITS, trap="trap 'exit 1' TERM")
    job = slurm.submit("train", "mnist")
    slurm.wait_until_launched()
    job.send_signal(sent)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1, output
    assert slurm.requeued() is requeued


def test_slurm_does_not_requeue_a_run_that_was_finished_when_the_signal_came(tmp_path):
    slurm = Slurm(tmp_path, launcher=WAITS, trap="trap 'exit 0' TERM")
    job = slurm.submit("train", "mnist")
    slurm.wait_until_launched()
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=60)
    assert job.returncode == 0
    assert not slurm.requeued()
