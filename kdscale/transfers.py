"""Copies between host and device memory that neither side waits for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host values to a device through pinned memory, without waiting for the device."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


class SideStream:
    """Copies host tensors to a device beside its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Without a GPU, under fake tensors, there is none.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and torch.cuda.is_available():
            self._stream = torch.cuda.Stream(device)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return host memory for `copy`: pinned, so that a GPU copies it without the host."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._device.type != "cpu")

    def copy(self, pinned: Tensor) -> Callable[[], Tensor]:
        """Start a copy; the function returned gives its result to the stream that calls it."""
        if self._device.type == "cpu":
            return lambda: pinned
        if self._stream is None:
            copy = pinned.to(self._device, non_blocking=True)
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


class HostCopy:
    """A device tensor on its way to host memory.

    The copy follows the work that the device has been given so far; `ready` tells whether it has
    arrived, and `get` waits for it.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=True)  # from a GPU: pinned memory
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
