"""How many processes a launch really starts, and whether they know of each other."""

import json
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 240

pytestmark = pytest.mark.launch


def environment(**extra):
    """This process's environment, less what another launcher may have left in it."""
    left_out = ("ACCELERATE_", "OMP_", "MASTER_", "TORCHELASTIC_", "COV_CORE_", "COVERAGE_")
    ours = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(left_out) and key not in {"WORLD_SIZE", "RANK", "LOCAL_RANK"}
    }
    scripts = sysconfig.get_path("scripts")
    return ours | {
        "PATH": f"{scripts}{os.pathsep}{ours['PATH']}",
        "PYTHONPATH": str(HERE),
        "CUDA_VISIBLE_DEVICES": "",
        **extra,
    }


def reports_of(command, folder, **extra):
    """Run a launch of report_processes and return what its processes wrote, by process index."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(reports, key=lambda report: report["process_index"])


def test_cpu_script_starts_two_processes_that_know_each_other(tmp_path):
    reports = reports_of(
        [ROOT / "launch" / "cpu.sh", 2, tmp_path, "--set", "a.b=two words"],
        tmp_path,
        KDSCALE_MODULE="report_processes",
    )
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [report["process_index"] for report in reports] == [0, 1]
    for report in reports:
        assert report["num_processes"] == 2
        assert report["world_size"] == "2"
        assert report["sum_over_processes"] == 2
        assert report["device"] == "cpu"
        assert report["backend"] == "gloo"
        assert report["omp_num_threads"] == str(threads)
        assert report["arguments"] == ["--set", "a.b=two words"]


def test_launch_with_cpu_flag_starts_one_process_whatever_it_is_told(tmp_path):
    """The trap that cpu.sh is for. A failure here means that accelerate has changed."""
    reports = reports_of(
        ["accelerate", "launch", "--cpu", "--num_processes", 2, "-m", "report_processes", tmp_path],
        tmp_path,
    )
    assert [report["num_processes"] for report in reports] == [1]
    assert reports[0]["world_size"] is None  # so kdscale reads the launcher's command line


def test_multi_gpu_file_with_use_cpu_starts_two_strangers(tmp_path):
    """The other trap: two processes, each the first of one. Here WORLD_SIZE tells."""
    text = (ROOT / "launch" / "multi_gpu.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("use_cpu: false", "use_cpu: true"))
    command = ["accelerate", "launch", "--config_file", wrong, "--num_processes", 2]
    reports = reports_of(
        [*command, "--main_process_port", 0, "-m", "report_processes", tmp_path], tmp_path
    )
    assert [report["process_index"] for report in reports] == [0, 0]
    assert [report["num_processes"] for report in reports] == [1, 1]
    assert [report["world_size"] for report in reports] == ["2", "2"]


def test_kdscale_stops_where_the_launcher_started_fewer_processes_than_asked(tmp_path):
    command = ["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "kdscale"]
    done = subprocess.run(
        [*command, "train", "quickstart", "--run", str(tmp_path / "run")],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert "asked for 2 processes but started one" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "kdscale"], 2),
        (["python", "accelerate", "launch", "--num_processes=4", "-m", "kdscale"], 4),
        (["python", "accelerate", "launch", "-m", "kdscale"], 1),
        (["bash", "-c", "kdscale train x --num_processes 3"], 1),
        ([], 1),
    ],
)
def test_processes_asked_for_are_read_from_the_launchers_command(command, asked):
    from kdscale.engine.processes import processes_asked_for

    assert processes_asked_for(command) == asked


FAULTS = """
import resource, sys, torch
from kdscale.engine.processes import create_accelerator
if sys.argv[1] == "kept":
    create_accelerator()
def step():
    torch.ones(12 << 20)  # 48 MiB: more than glibc ever keeps by itself, whatever lies around it
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _glibc():
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else (0,)


@pytest.mark.skipif(_glibc() < (2, 35), reason="only glibc since 2.35 keeps buffers this large")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 2, faults
