"""Processes and devices under Accelerate: launch checks, broadcasts, agreed stops."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor

from kdscale.errors import KdscaleError, MainProcessError
from kdscale.launcher import check_device, check_environment, check_world_size
from kdscale.signals import StopRequest
from kdscale.transfers import HostCopy

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_REUSED_BYTES, _OLD_LIMIT = 1 << 30, 1 << 25

T = TypeVar("T")


def create_accelerator() -> Accelerator:
    """Create the accelerator of this process, after the launch was checked.

    Precision is the recipe's, part by part, so Accelerate's own setting is off.

    Raises:
        LaunchError: several processes were started or requested, but each believes to be alone; or
            the environment holds half a launch.
    """
    check_environment()
    # float32 means float32: TF32 would move logits by 1e-3 and depend on the device.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    accelerator = Accelerator(mixed_precision="no")
    missing = accelerator.device.type == "mps" and not torch.backends.mps.is_available()
    check_device("cpu" if missing else accelerator.device.type)
    if accelerator.device.type == "cpu":
        reuse_freed_memory()
    check_world_size(accelerator.num_processes)
    return accelerator


def expect_unused_parameters(accelerator: Accelerator) -> None:
    """Let processes find, in each step, parameters without a gradient; before `prepare`.

    Without it they wait for such gradients; with it each step takes longer.
    """
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def reuse_freed_memory() -> None:
    """Make glibc reuse the large buffers that each step frees in the next step.

    By default it returns them to the system and requests them anew, page by page: on two busy cores
    of a virtual machine that cost more than half of a small student's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _REUSED_BYTES)
        # Before 2.35 glibc refuses more than 32 MiB.
        mallopt(_M_MMAP_THRESHOLD, _REUSED_BYTES) or mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT)


def wait_for_device(device: torch.device) -> None:
    """Wait until a device has done its queued work, which would be timed with later work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block in the main process alone, then in the others: it may fill a shared store.

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


def broadcast_from_main(accelerator: Accelerator, value: T) -> T:
    """Return the main process's value in every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def means_over_processes(
    values: Mapping[str, Tensor], accelerator: Accelerator
) -> dict[str, float]:
    """Return the mean of each scalar over all processes, by one collective and one copy."""
    stacked = torch.stack(list(values.values()))
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means full device memory; a CPU raises a plain RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)


def any_process_stopped(request: StopRequest, accelerator: Accelerator) -> bool:
    """Return whether any process received a signal to stop; all processes must call this."""
    if accelerator.num_processes == 1:
        return request.received is not None
    return _take_over(request, _signals(request, accelerator))


def _signals(request: StopRequest, accelerator: Accelerator) -> Tensor:
    """Return the signal of each process, at its index, 0 for none: on the device."""
    own = torch.zeros(accelerator.num_processes, dtype=torch.int64, device=accelerator.device)
    own[accelerator.process_index] = request.received or 0
    found: Tensor = accelerator.reduce(own, "sum")
    return found


def _take_over(request: StopRequest, signals: Tensor) -> bool:
    largest = int(signals.max())
    if largest:  # never back to none: one may have come in just now
        request.received = largest
    return bool(largest)


class StopPoll:
    """Polls whether any process received a signal to stop, without waiting for a GPU.

    On GPUs each poll returns what the one before exchanged: all processes get the same answer at
    the same poll, and the exchange has the time of the steps between them.
    """

    def __init__(self, request: StopRequest, accelerator: Accelerator) -> None:
        self._request, self._accelerator = request, accelerator
        self._exchanged: HostCopy | None = None

    def __call__(self) -> bool:
        """Return whether any process is to stop; all processes must call this equally often."""
        if self._accelerator.num_processes == 1:
            return self._request.received is not None
        if self._accelerator.device.type != "cuda":
            return any_process_stopped(self._request, self._accelerator)
        earlier = self._exchanged
        self._exchanged = HostCopy(_signals(self._request, self._accelerator))
        return earlier is not None and _take_over(self._request, earlier.get())
