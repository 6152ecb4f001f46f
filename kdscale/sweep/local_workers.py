"""Several workers on this machine: start them, log how they end, stop them together."""

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
    """Number and command of the workers to start."""

    num_workers: int
    command: Sequence[str]
    """Command that starts one worker."""
    environment: Mapping[str, str]
    """Variables on top of this process's: other users can read a command, and passwords in it."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: "subprocess.Popen[bytes]"
    output: Path
    error: str | None = None
    """Its error message, empty without one; None until its end is logged."""


def run_workers(
    pool: WorkerPool, *, logs: Path, log_progress: Callable[[], None], interval_seconds: float
) -> None:
    """Start workers and wait until all have ended.

    Args:
        pool: number and command of the workers.
        logs: folder for the workers' output.
        log_progress: called at intervals, and once after all have ended.
        interval_seconds: seconds between two such calls.

    Raises:
        Interrupted: a signal stopped the sweep; each worker has saved its state.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers, devices = list[_Worker](), gpus()
    with orderly_stop() as stop:
        try:
            for number in range(pool.num_workers):
                environment = environment_of(number, pool.num_workers, devices)
                environment |= pool.environment
                workers.append(_start(pool.command, number, environment, logs))
            log.info(
                "%d workers: they train the teacher and build the cache where these are missing, "
                "then train the trials; their output is in %s", pool.num_workers, logs,
            )  # fmt: skip
            _wait(workers, stop, log_progress, interval_seconds)
        finally:  # all have ended, unless Ctrl-C came twice or this process fails
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
        if stop.received is not None:
            raise stop.interrupted("stopped")


def gpus() -> list[str]:
    """Return the devices that `CUDA_VISIBLE_DEVICES` may name."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def environment_of(number: int, num_workers: int, devices: Sequence[str]) -> dict[str, str]:
    """Return a worker's environment: its share of the cores, and one GPU if there are any."""
    found = dict(os.environ)
    threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    found.setdefault("OMP_NUM_THREADS", str(threads))
    if devices:
        found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found


def end_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent is killed.

    Raises:
        Stopped: the parent has ended already.
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
            start_new_session=True,  # Ctrl-C reaches this process alone, which forwards it once
        )
    return _Worker(number + 1, process, output)


def _wait(
    workers: Sequence[_Worker],
    stop: StopRequest,
    log_progress: Callable[[], None],
    interval_seconds: float,
) -> None:
    logged, stopping = monotonic(), False
    while any(worker.process.poll() is None for worker in workers):
        if stop.received is not None and not stopping:
            stopping = True
            for worker in workers:
                worker.process.send_signal(signal.SIGTERM)
        if monotonic() - logged > interval_seconds:
            log_progress()
            logged = monotonic()
        _log_ended(workers, stopping=stopping)
        sleep(_POLL_SECONDS)
    _log_ended(workers, stopping=stopping)
    log_progress()


def _log_ended(workers: Sequence[_Worker], *, stopping: bool) -> None:
    for worker in workers:
        code = worker.process.poll()
        if code is None or worker.error is not None:
            continue
        logged = {one.error for one in workers}
        worker.error = _last_error(worker.output) if code > 0 else ""
        if code < 0:
            log.warning(
                "worker %d was killed (%s); its trial goes to another worker",
                worker.number, signal.Signals(-code).name,
            )  # fmt: skip
        elif code and not stopping:
            reason = "the same error" if worker.error in logged else worker.error
            log.error("worker %d has ended: %s", worker.number, reason)


def _last_error(output: Path) -> str:
    """Return the last error message in a worker's output, or where to look for it."""
    lines = output.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Error")]
    if not starts:
        return f"see the end of {output}"
    return "\n".join(lines[starts[-1] :]).removeprefix("Error: ")
