"""Copies between host and device memory that neither side waits for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host values to a device through pinned memory, without waiting for the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class SideStream:
    """A stream beside that of a device's computations; on a CPU there is none.

    It copies host tensors to the device, and runs what follows some of the computations without
    waiting for those that were given to the device since.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Without a GPU, under fake tensors, there is none.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and torch.cuda.is_available():
            self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return host memory for `copy`: pinned, so that a GPU copies it without the host."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._device.type == "cuda")

    def follow(self) -> None:
        """Let later copies begin after the work that the calling thread has given the device."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def copy_into(self, target: Tensor, values: Tensor) -> None:
        """Start to copy host values into device memory; work follows it after `arrival`."""
        if self._device.type != "cuda":
            target.copy_(values)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(values.pin_memory(), non_blocking=True)

    def arrival(self) -> Callable[[], None]:
        """Return a function: work that its caller gives the device follows all copies so far."""
        if self._stream is None:
            return lambda: None
        arrived = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(arrived)

    def copy(self, pinned: Tensor) -> Callable[[], Tensor]:
        """Start a copy; the function returned gives its result to the stream that calls it."""
        if self._stream is None:
            copy = pinned.to(self._device, non_blocking=self._device.type == "cuda")
            return lambda: copy
        with torch.cuda.stream(self._stream):
            copied = pinned.to(self._device, non_blocking=True)
            arrived = self._stream.record_event()

        def result() -> Tensor:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            copied.record_stream(current)  # its memory is not reused before that stream is done
            return copied

        return result

    def moment(self) -> "torch.cuda.Event | None":
        """Return an event that follows the work of the calling stream so far."""
        if self._stream is None:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event

    @contextmanager
    def after(self, moment: "torch.cuda.Event | None") -> Iterator[None]:
        """Run the block on this stream, after an event that `moment` returned.

        The block has to end with a copy to the host that it waits for: then what it used is free.
        """
        if self._stream is None or moment is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(moment)
            yield


class HostCopy:
    """A device tensor on its way to host memory.

    The copy follows the work that the device has been given so far; `ready` is whether it has
    arrived, and `get` waits for it.
    """

    def __init__(self, values: Tensor) -> None:
        # From a GPU into pinned memory, which torch takes for such copies.
        self._values = values.detach().to("cpu", non_blocking=values.is_cuda)
        self._on_host = not values.is_cuda
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda and torch.cuda.is_available():
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    @property
    def ready(self) -> bool:
        """Whether `get` would return at once; under fake tensors, which have no values, never."""
        return self._on_host or (self._arrived is not None and self._arrived.query())

    def get(self) -> Tensor:
        """Return the values in host memory, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
