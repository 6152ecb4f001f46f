"""Processes, devices and signals: what every stage asks of Accelerate before it starts."""

import ctypes
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor

from kdscale.errors import KdscaleError, LaunchError, MainProcessError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES, _OLD_LIMIT = 1 << 30, 1 << 25

T = TypeVar("T")
log = logging.getLogger(__name__)


def create_accelerator(*, all_learn: bool = True) -> Accelerator:
    """Accelerate for this process, once it is sure that the launch is what it seems.

    Precision is the recipe's, part by part, so Accelerate's own setting is off.

    Args:
        all_learn: whether each parameter has a gradient in every step; to find those that have
            none takes time.

    Raises:
        LaunchError: several processes were started, but each believes to be alone.
    """
    # float32 means float32: TF32 would move logits by 1e-3 and depend on the device.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    shared = DistributedDataParallelKwargs(find_unused_parameters=not all_learn)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[shared])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    asked = max(started, processes_asked_for(_launcher()))
    if asked != accelerator.num_processes and "WORLD_SIZE" not in os.environ:
        raise LaunchError(
            f"the launcher was asked for {asked} processes but started one, as it does with --cpu: "
            "on a CPU use launch/cpu.sh; see launch/README.md"
        )
    if started != accelerator.num_processes:
        raise LaunchError(
            f"{started} processes were started, Accelerate sees {accelerator.num_processes}: "
            "each would do all the work. On a CPU use launch/cpu.sh; see launch/README.md"
        )
    return accelerator


def keep_freed_memory() -> None:
    """Make glibc keep the large buffers that each step frees, for the next step to use.

    By default it gives them back to the system and asks for them again, page by page: on two busy
    cores of a virtual machine that cost more than half of a small student's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        # Before 2.35 glibc refuses more than 32 MiB.
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) or mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT)


def wait_for_device(device: torch.device) -> None:
    """Wait for what a device still has to do, or it would be timed as somebody else's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _launcher() -> list[str]:
    """The command line of the process that started this one."""
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent is not None else []
    except psutil.Error:  # it has ended, or is another user's
        return []


def processes_asked_for(command: list[str]) -> int:
    """What `accelerate launch --num_processes N` was asked for; 1 for any other command."""
    if "launch" not in command:
        return 1
    words = " ".join(command[command.index("launch") :]).replace("=", " ").split()
    for word, value in pairwise(words):
        if word in ("--num_processes", "--num-processes") and value.isdecimal():
            return int(value)
    return 1


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs the block alone, then the others do: it may fill a store they share.

    An error of the main process ends them all, so none waits for what never comes.
    """
    problem: list[str | None] = [None]
    try:
        if accelerator.is_main_process:
            yield
    except KdscaleError as error:
        problem[0] = str(error)
        raise
    finally:
        if accelerator.num_processes > 1 and accelerator.is_main_process:
            broadcast_object_list(problem)
    if not accelerator.is_main_process:
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise MainProcessError("the main process has stopped")
        yield


def from_main_process(accelerator: Accelerator, value: T) -> T:
    """The main process's value, in every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def mean_over_processes(value: Tensor, accelerator: Accelerator) -> float:
    """The mean of a scalar over all processes; waits for the device."""
    if accelerator.num_processes > 1:
        value = accelerator.reduce(value, "mean")
    return float(value)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory is full; a CPU raises a plain RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)


@dataclass(slots=True)
class StopRequest:
    """Whether Ctrl-C, SIGTERM or SIGUSR1 asked for an orderly end."""

    received: int | None = None

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked; all of them must call this."""
        if accelerator.num_processes == 1:
            return self.received is not None
        asked = torch.tensor(int(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)


@contextmanager
def orderly_stop() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGUSR1 into a request; a second Ctrl-C ends at once."""
    request = StopRequest()

    def receive(number: int, _frame: FrameType | None) -> None:
        request.received = number
        log.info("stopping as soon as what is under way is safe; Ctrl-C again ends at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, receive) for number in watched}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
