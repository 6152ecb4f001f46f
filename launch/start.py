#!/usr/bin/env python3
"""`accelerate launch` with an end that a person can read and a script can act on.

    python launch/start.py --config_file launch/multi_gpu.yaml --num_processes 4 \
        -m kdscale train cifar10-tutorial

Takes the arguments of `accelerate launch` and starts what it starts. Where a process does not exit
with 0, that one exits with 1 and a traceback of its own; this one leaves it to the processes to
say why, and exits as they did:

    1, 2, ...  what the first that failed exited with
    128 + N    one was killed by signal N
    130        Ctrl-C; 75 SIGTERM or SIGUSR1: states are saved, the same command goes on
"""

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

STARTED: "list[subprocess.Popen[Any]]" = []
SCRIPT: list[str] = []
"""What is launched, once the arguments are read."""
_TORCH_HANDLES = "SIGTERM,SIGINT,SIGQUIT"
LATER = (130, 75, 76, 0)  # Ctrl-C, a scheduler, another process lost, done: if nothing is worse


class Remembered(subprocess.Popen):  # type: ignore[type-arg]
    """A process that can be asked how it ended: the launchers below tell it in their own ways."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        STARTED.append(self)


def main() -> int:
    """Launch, and return the exit status."""
    subprocess.Popen = Remembered  # type: ignore[misc]  # before torch takes its own copy
    for part in (
        "multiprocessing",
        "agent.server",
    ):  # of torch's launcher: they tell all ends again
        logging.getLogger(f"torch.distributed.elastic.{part}.api").disabled = True
    # Left alone, either would end the launcher and leave its processes running. For several
    # processes torch's launcher passes SIGTERM on itself; for one nobody does.
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a terminal that is closed
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        from accelerate.commands.launch import launch_command, launch_command_parser
    except ModuleNotFoundError as error:
        print(  # noqa: T201
            f"Error: {sys.executable} has no {error.name}: activate the environment that kdscale "
            "is installed in (source .venv/bin/activate)",
            file=sys.stderr,
        )
        return 1

    arguments = launch_command_parser().parse_args()
    SCRIPT.append(arguments.training_script)
    # Without SIGHUP, which torch's launcher would take over although nohup has it ignored.
    arguments.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _TORCH_HANDLES
    # A user's own datasets/ or random.py in the current folder is not to stand in for a library's.
    if arguments.module and importlib.util.find_spec(arguments.training_script) is not None:
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        launch_command(arguments)
    except (KeyboardInterrupt, SystemExit, Exception):  # --quiet exits, too
        if not ours(arguments.training_script):
            raise  # the launch itself went wrong
    return status_of([process.wait() for process in ours(arguments.training_script)])


def pass_on(number: int, _: object) -> None:
    """Hand a signal on to what was started, and go on waiting for it; end where nothing was."""
    started = ours(SCRIPT[0]) if SCRIPT else []
    if not started:
        raise SystemExit(75)
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


def ours(script: str) -> "list[subprocess.Popen[Any]]":
    """Processes that were started to run it; others were asked about the machine."""
    return [process for process in STARTED if script in process.args]  # type: ignore[operator]


def status_of(codes: Sequence[int]) -> int:
    """The exit status of a launch, from those of its processes; says them where one failed."""
    status = next((code for code in codes if code > 0 and code not in LATER), None)
    status = status or next((128 - code for code in codes if code < 0), None)
    if status is None:
        status = next(code for code in LATER if code in codes)
    if status not in LATER:
        print(f"processes exited with {', '.join(map(str, codes))}", file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before anything was started, or again while it ends
        sys.exit(130)
