"""How many processes a launch really starts, and whether they know of each other."""

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import time
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
        "PYTHONPATH": os.pathsep.join([str(HERE), ours.get("PYTHONPATH", "")]),
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


@pytest.mark.slow
def test_default_file_starts_one_process(tmp_path):
    command = ["accelerate", "launch", "--config_file", "accelerate_config.yaml"]
    reports = reports_of([*command, "-m", "report_processes", tmp_path], tmp_path)
    assert [report["num_processes"] for report in reports] == [1]


# ------------------------------------------------------------------ launches that cannot work


TRAPS = {
    "--cpu": ["--cpu", "--num_processes", "2"],
    "MULTI_CPU": ["--config_file", "wrong.yaml"],
    "use_cpu": ["--config_file", "wrong.yaml", "--num_processes", "2", "--main_process_port", "0"],
}
REFUSED = {
    "--cpu": "launcher set MASTER_ADDR, as for several processes, but started one",
    "MULTI_CPU": "launcher set MASTER_ADDR, as for several processes, but started one",
    "use_cpu": "2 processes were started, Accelerate sees 1: each would do all the work. On a CPU",
}


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param("--cpu", marks=pytest.mark.slow),
        "MULTI_CPU",
        pytest.param("use_cpu", marks=pytest.mark.slow),
    ],
)
def test_kdscale_stops_where_a_launch_is_not_what_it_seems(tmp_path, trap):
    """What it says is what Accelerate does: a failure here may mean that it does better now."""
    text = (ROOT / "launch" / "multi_gpu.yaml").read_text()
    if trap == "MULTI_CPU":
        text = text.replace("MULTI_GPU", "MULTI_CPU") + "num_processes: 2\n"
    wrong = text.replace("use_cpu: false", "use_cpu: true")
    (tmp_path / "wrong.yaml").write_text(wrong)
    command = ["accelerate", "launch", *TRAPS[trap], "-m", "kdscale", "train", "quickstart"]
    done = subprocess.run(
        [*command, "--run", "run"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert REFUSED[trap] in done.stderr
    assert "use launch/cpu.sh; see launch/README.md" in done.stderr
    assert not (tmp_path / "run").exists()


def test_processes_that_believe_to_be_alone_are_refused(monkeypatch):
    from kdscale.errors import LaunchError
    from kdscale.launcher import check_world_size

    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world_size(2)
    with pytest.raises(
        LaunchError, match="2 processes were started, Accelerate sees 1: each would"
    ):
        check_world_size(1)


def test_one_process_may_know_a_main_address(monkeypatch):
    from kdscale.launcher import check_world_size

    monkeypatch.setenv("MASTER_ADDR", "node-a")  # as a SLURM script exports it for later launches
    check_world_size(1)


# ------------------------------------------------------------------ what a launcher asks for


def accelerates(*flags, config=None):
    """Environment that `accelerate launch` gives its process, by its own code."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    words = [*flags, *(["--config_file", str(config)] if config else []), "-m", "kdscale"]
    arguments = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    if "--use_fsdp" in flags or "--use_megatron_lm" in flags:
        arguments.main_process_port = 0
        found = prepare_multi_gpu_env(arguments)
    else:
        found = prepare_simple_launcher_cmd_env(arguments)[1]
    return {name: value for name, value in found.items() if name.startswith("ACCELERATE_")}


REFUSED_SETTINGS = {
    "bf16": (["--mixed_precision", "bf16"], "--mixed_precision bf16 (ACCELERATE_MIXED_PRECISION)",
             "set precision of [student.train]"),
    "fp16": (["--mixed_precision", "fp16"], "--mixed_precision fp16", "precision of [student"),
    "dynamo": (["--dynamo_backend", "inductor"], "--dynamo_backend INDUCTOR", "set compile of [st"),
    "FSDP": (["--use_fsdp", "--num_processes", "2"], "does not support FSDP",
             "each process trains the whole model (DistributedDataParallel)"),
    "Megatron": (["--use_megatron_lm", "--num_processes", "2"], "support Megatron-LM",
                 "launch with distributed_type MULTI_GPU"),
}  # fmt: skip


def refused(kdscale, write_recipe, tmp_path):
    """Standard error of a training that is refused before it begins."""
    done = kdscale("train", write_recipe(), "--model", "teacher", "--run", tmp_path / "run")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    return done.stderr


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_launch_flags_that_the_recipe_decides_are_refused_by_its_field(
    kdscale, write_recipe, tmp_path, monkeypatch, case
):
    flags, what, remedy = REFUSED_SETTINGS[case]
    for name, value in accelerates(*flags).items():
        monkeypatch.setenv(name, value)
    message = refused(kdscale, write_recipe, tmp_path)
    assert what in message
    assert remedy in message


def test_accelerate_config_that_the_recipe_decides_is_refused_by_its_field(
    kdscale, write_recipe, tmp_path, monkeypatch
):
    text = (ROOT / "accelerate_config.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace('"no"  # the', '"bf16"  # the'))
    for name, value in accelerates(config=tmp_path / "mine.yaml").items():
        monkeypatch.setenv(name, value)
    message = refused(kdscale, write_recipe, tmp_path)
    assert (
        "--mixed_precision bf16 (ACCELERATE_MIXED_PRECISION), which the recipe decides" in message
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "kdscale does not support DeepSpeed"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "does not support a parallelism_config"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "support Accelerate's SageMaker launcher"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "precision of [student.train], [teacher.train] or"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulation of [student.train] or"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "gradient_clip of [student.train] or"),
    ],
)
def test_variables_that_cannot_be_followed_are_refused_by_name(
    kdscale, write_recipe, tmp_path, monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    found = refused(kdscale, write_recipe, tmp_path)
    assert name in found
    assert message in found


@pytest.mark.parametrize(
    "flags", [["--mixed_precision", "no"], ["--cpu"], ["--dynamo_backend", "no"]], ids=str
)
def test_launches_that_agree_with_the_recipe_go_on(monkeypatch, flags):
    from kdscale.launcher import check_environment, check_world_size

    for name, value in accelerates(*flags).items():
        monkeypatch.setenv(name, value)
    check_environment()
    check_world_size(1)


def test_tpus_are_refused_by_name():
    from kdscale.errors import LaunchError
    from kdscale.launcher import check_device

    check_device("cuda")
    with pytest.raises(LaunchError, match=r"does not support TPUs \(device xla\)"):
        check_device("xla")


# ------------------------------------------------------------------ how a launch ends


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([0, 0], 0),
        ([0, 2], 2),
        ([75, 3], 3),  # what the others were ended for
        ([76, 1], 1),
        ([75, -9], 137),
        ([-9, 76], 137),
        ([76, 75], 75),
        ([130, 130], 130),
        ([75, 0], 75),
        ([0, 76], 76),
    ],
)
def test_launch_ends_as_the_process_that_the_others_ended_for(codes, status, capsys):
    location = ROOT / "launch" / "start.py"
    specification = importlib.util.spec_from_file_location("start", location)
    start = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(start)
    assert start.status_of(codes) == status
    said = "" if status in (0, 75, 76, 130) else f"processes exited with {codes[0]}, {codes[1]}\n"
    assert capsys.readouterr().err == said


def catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return int(caught[1], 16) >> (number - 1) & 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_before_anything_was_started_ends_the_launch(tmp_path, number):
    (tmp_path / "x.py").write_text("open('started', 'w').close()")
    launcher = subprocess.Popen(
        [sys.executable, ROOT / "launch" / "start.py", "--cpu", "--num_processes", "1", "x.py"],
        cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not catches(launcher.pid, number):
        assert launcher.poll() is None
        time.sleep(0.001)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=TIMEOUT_SECONDS)
    assert launcher.returncode == 75
    assert "Traceback" not in said
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_reaches_the_one_process_of_a_launch(tmp_path, number):
    """Torch's launcher passes signals on to several processes; Accelerate's to one does not."""
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, ROOT / "launch" / "start.py", "--cpu", "--num_processes", "1", "waits.py"],
        cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ends = time.monotonic() + TIMEOUT_SECONDS
    while not (tmp_path / "ready").exists():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < ends
        time.sleep(0.05)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=50)  # less than the process would sleep
    assert launcher.returncode == 75
    assert "Traceback" not in said


def test_hangup_that_was_ignored_stays_so_under_torchs_launcher(tmp_path):
    """As `nohup launch/cpu.sh` has it."""
    (tmp_path / "waits.py").write_text(
        "import os, signal, time\n"
        "open(os.environ['RANK'], 'w').write(signal.getsignal(signal.SIGHUP).name)\n"
        "while not os.path.exists('enough'): time.sleep(0.05)\n"
    )
    launcher = subprocess.Popen(
        [ROOT / "launch" / "cpu.sh", "2", "wait"], cwd=tmp_path,
        env=environment(KDSCALE_MODULE="waits", PYTHONPATH=str(tmp_path)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    ends = time.monotonic() + TIMEOUT_SECONDS
    while not all((tmp_path / name).exists() for name in "01"):
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < ends
        time.sleep(0.05)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    (tmp_path / "enough").touch()
    _, said = launcher.communicate(timeout=TIMEOUT_SECONDS)
    assert launcher.returncode == 0, said
    assert (tmp_path / "0").read_text() == "SIG_IGN"


def test_torchrun_leaves_options_behind_two_dashes_to_the_command():
    """Without them it takes --run for one of its own (--run-path), and refuses it."""
    from torch.distributed.run import get_args_parser

    words = ["--nproc_per_node", "2", "-m", "kdscale", "--", "recipes", "mnist"]
    known = get_args_parser().parse_args([*words[:5], "train", "r.toml", "--run", "x"])
    assert known.training_script == "kdscale"
    rest = known.training_script_args
    assert [word for word in rest if word != "--"] == ["train", "r.toml", "--run", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "kdscale", *words[4:]], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("#")  # so do they where Python leaves the dashes in


HALVES = [
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set in the environment, but not RANK"),
    ({"RANK": "1"}, "RANK is set in the environment, but not LOCAL_RANK"),
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
    ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
    (
        {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
        "RANK is 2 of 2 processes",
    ),
]


@pytest.mark.parametrize(("variables", "said"), HALVES)
def test_half_a_launch_is_reported_in_one_line(
    kdscale, write_recipe, tmp_path, monkeypatch, variables, said
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = kdscale("train", write_recipe(), "--model", "teacher", "--run", tmp_path / "run")
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", ["0", "1", "7", "x"])
def test_commands_that_read_print_whatever_the_rank(kdscale, tiny_cache, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "8")
    root = tiny_cache.parent
    for words in (("cache", "info", tiny_cache), ("cache", "list", "--cache-root", root),
                  ("cache", "verify", tiny_cache), ("recipes",), ("recipes", "mnist")):  # fmt: skip
        done = kdscale(*words)
        assert (done.exit_code, done.stdout != "") == (0, True), (words, done.stderr)


def test_wrong_arguments_of_a_launch_are_reported_by_accelerate(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "start.py", "--num_processes", "many", "x.py"],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "invalid int value: 'many'" in done.stderr


def test_interpreter_without_the_environment_is_reported():
    """A person who has not activated it: kdscale is called by its path, launch/cpu.sh is not."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "launch" / "start.py", "-m", "kdscale"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{sys.executable} has no accelerate: activate the environment" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "imported"),
    [([ROOT / "launch" / "start.py", "x.py"], "accelerate"), (["-m", "kdscale"], "click")],
)
def test_interrupt_while_a_command_is_imported_leaves_no_traceback(tmp_path, command, imported):
    # A shell's background command, such as CI may be, begins with SIGINT ignored.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    interrupted = f"import signal\n{heard}\nsignal.raise_signal(signal.SIGINT)\n"
    (tmp_path / f"{imported}.py").write_text(interrupted)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, env=environment() | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


FAULTS = """
import resource, sys, torch
from kdscale.distributed import create_accelerator
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
def test_memory_that_a_step_frees_is_reused_by_the_next():
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 2, faults
