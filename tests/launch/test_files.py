"""The launch files are what they say: they parse, they are clean, the page lists them."""

import re
import shlex
import stat
import subprocess
import sysconfig
from pathlib import Path

import click
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
YAMLS = [ROOT / "accelerate_config.yaml", *sorted(LAUNCH.glob("multi_*.yaml"))]
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


def test_every_command_of_the_page_is_one():
    """With arguments that kdscale takes; what the files start is tried in the other tests."""
    from kdscale.cli import cli

    page = (LAUNCH / "README.md").read_text()
    lines = re.findall(
        r"(?:-m kdscale|`kdscale|cpu.sh \d|slurm.sbatch) ((?:train|run) [^`]*)`", page
    )
    assert len(lines) >= 6
    for line in lines:
        name, *arguments = shlex.split(line)
        command = cli.commands[name]
        command.make_parser(click.Context(command)).parse_args(arguments)


def test_every_launch_file_is_on_the_page():
    page = (LAUNCH / "README.md").read_text()
    files = {name_of(path) for path in LAUNCH.iterdir() if path.is_file()} - {"launch/README.md"}
    assert sorted(file for file in files if f"`{file}`" not in page) == []
