"""What a launch was asked for, and whether the processes that came of it are those."""

import os
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from kdscale.errors import LaunchError

_OURS = ("launch", "start.py")  # the last parts of its path


_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which torch's processes find each other."""
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


def check_environment() -> None:
    """Stop where the environment holds half a launch: torch would fail, or wait for nobody.

    Raises:
        LaunchError: RANK or LOCAL_RANK is set without the rest, or a value is no such number.
    """
    given = {name: os.environ[name] for name in _OF_A_LAUNCH if name in os.environ}
    named = [name for name in ("RANK", "LOCAL_RANK") if given.get(name, "-1") != "-1"]
    for name in _NUMBERS:
        if not given.get(name, "0").removeprefix("-").isdecimal():
            raise LaunchError(f"{name} is {given[name][:80]!r} in the environment, {_WANTED}")
    if not named:
        return
    if missing := [name for name in _OF_A_LAUNCH if name not in given]:
        raise LaunchError(
            f"{' and '.join(named)} is set in the environment, but not {', '.join(missing)}: "
            f"{_WANTED}"
        )
    if not 0 <= int(given["RANK"]) < int(given["WORLD_SIZE"]):
        raise LaunchError(
            f"RANK is {given['RANK']} of {given['WORLD_SIZE']} processes (WORLD_SIZE), {_WANTED}"
        )


_WANTED = (
    "wanted what a launcher sets for each process. For one process: unset RANK LOCAL_RANK "
    "WORLD_SIZE; for several see launch/README.md"
)


def check_world_size(seen: int) -> None:
    """Stop where processes would work side by side without knowing of each other.

    Args:
        seen: processes that Accelerate sees.

    Raises:
        LaunchError: the launcher was asked for more, or has started more.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != seen:
        raise LaunchError(
            f"{started} processes were started, Accelerate sees {seen}: each would do all the "
            "work. On a CPU use launch/cpu.sh; see launch/README.md"
        )
    command = _launcher()
    asked, source = expected_processes(command)
    if asked > seen and "WORLD_SIZE" not in os.environ:
        raise LaunchError(
            f"the launcher was asked for {asked} processes ({source}) but started one, as it does "
            "with --cpu and with distributed_type: MULTI_CPU. On a CPU use launch/cpu.sh; see "
            "launch/README.md"
        )


def expected_processes(command: list[str]) -> tuple[int, str]:
    """How many processes a launcher's command line or the file that it names asks for.

    Args:
        command: of the process that started this one.

    Returns:
        The number, and where it stands; 1 where the command is no launcher's.
    """
    arguments = _launch_arguments(command)
    if arguments is None:
        return 1, ""
    try:
        with redirect_stderr(StringIO()):
            known, _ = launch_command_parser().parse_known_args(arguments)
    except SystemExit:  # it only looks like a launcher's
        return 1, ""
    if known.num_processes is not None:
        return known.num_processes, "--num_processes"
    if known.config_file is None and known.cpu:
        return 1, ""  # accelerate reads no file then
    path = known.config_file or default_config_file
    try:
        config = load_config_from_file(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it has been read once
        return 1, ""
    return getattr(config, "num_processes", None) or 1, f"num_processes in {path}"


def _launch_arguments(command: list[str]) -> list[str] | None:
    """What follows the name of a launcher, as a script, as a module or ours; None of others."""
    for position, word in enumerate(command[:4]):  # the interpreter and its options come first
        path, rest = Path(word), command[position + 1 :]
        if path.name == "accelerate-launch" or path.parts[-2:] == _OURS:
            return rest
        if word == "accelerate.commands.launch" or path.parts[-3:-1] == ("accelerate", "commands"):
            return rest if path.name != "accelerate_cli.py" else rest[1:]
        if path.name == "accelerate" and rest[:1] == ["launch"]:
            return rest[1:]
    return None


def _launcher() -> list[str]:
    """The command line of the process that started this one."""
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent is not None else []
    except psutil.Error:  # it has ended, or is another user's
        return []
