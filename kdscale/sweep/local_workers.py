"""Several workers on this machine: started, listened to, stopped together."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from kdscale.errors import Stopped
from kdscale.signals import StopRequest, orderly_stop

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Workers that are to be started."""

    num_workers: int
    command: Sequence[str]
    """Starts one."""
    environment: Mapping[str, str]
    """For them, beside what this process has: others can read a command, and passwords in it."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: "subprocess.Popen[bytes]"
    output: Path
    heard: str | None = None
    """How it ended, once that is told."""


def run_workers(crew: WorkerPool, *, logs: Path, tell: Callable[[], None], every: float) -> None:
    """Start workers and wait until all have ended.

    Args:
        crew: the workers.
        logs: folder of what they say.
        tell: called now and then, to say how it goes.
        every: seconds between.

    Raises:
        Interrupted: asked to stop; each worker has saved its state.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers, devices = list[_Worker](), gpus()
    with orderly_stop() as stop:
        try:
            for number in range(crew.num_workers):
                environment = environment_of(number, crew.num_workers, devices)
                environment |= crew.environment
                workers.append(_start(crew.command, number, environment, logs))
            log.info(
                "%d workers: teacher and cache, where they are not there, then the trials; what "
                "each says is in %s", crew.num_workers, logs,
            )  # fmt: skip
            _wait(workers, stop, tell, every)
        finally:  # all have ended, but where Ctrl-C came twice or this process fails
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
        if stop.received is not None:
            raise stop.interrupted("stopped")


def gpus() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` may name, one each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def environment_of(number: int, num_workers: int, devices: Sequence[str]) -> dict[str, str]:
    """A worker's environment: its share of the cores, its turn's GPU where there are some."""
    found = dict(os.environ)
    threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    found.setdefault("OMP_NUM_THREADS", str(threads))
    if devices:
        found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found


def end_with(parent: int) -> None:
    """Be stopped, orderly, when the process that started this one is killed.

    Raises:
        Stopped: it has ended already.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # other systems have none
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise Stopped("the process that started this worker has ended")


def _start(command: Sequence[str], number: int, environment: dict[str, str], logs: Path) -> _Worker:
    output = logs / f"{socket.gethostname()}-{os.getpid()}-{number + 1}.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  (this very program)
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on, once
        )
    return _Worker(number + 1, process, output)


def _wait(
    workers: Sequence[_Worker], stop: StopRequest, tell: Callable[[], None], every: float
) -> None:
    told, asked = monotonic(), False
    while any(worker.process.poll() is None for worker in workers):
        if stop.received is not None and not asked:
            asked = True
            for worker in workers:
                worker.process.send_signal(signal.SIGTERM)
        if monotonic() - told > every:
            tell()
            told = monotonic()
        _tell_of_ends(workers, stopping=asked)
        sleep(_POLL_SECONDS)
    _tell_of_ends(workers, stopping=asked)
    tell()


def _tell_of_ends(workers: Sequence[_Worker], *, stopping: bool) -> None:
    for worker in workers:
        code = worker.process.poll()
        if code is None or worker.heard is not None:
            continue
        told = {one.heard for one in workers}
        worker.heard = _last_words(worker.output) if code > 0 else ""
        if code < 0:
            log.warning(
                "worker %d was killed (%s); its trial goes to another worker",
                worker.number, signal.Signals(-code).name,
            )  # fmt: skip
        elif code and not stopping:
            words = "likewise" if worker.heard in told else worker.heard
            log.error("worker %d has ended: %s", worker.number, words)


def _last_words(output: Path) -> str:
    """Why a worker says that it ended, or where to read it."""
    lines = output.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Error")]
    if not starts:
        return f"see the end of {output}"
    return "\n".join(lines[starts[-1] :]).removeprefix("Error: ")
