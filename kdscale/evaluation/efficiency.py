"""Cost of a model in use: bytes of its weights and activations, FLOPs and latency."""

import logging
import platform
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from kdscale.distributed import is_out_of_memory, wait_for_device
from kdscale.precision import autocast

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 64)
_WARM_UP_ROUNDS = 3
_FEWEST_ROUNDS = 5  # of a model so slow that fewer would fit
_MOST_ROUNDS = 2000


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a weights file of the model holds."""
    return sum(one.numel() * one.element_size() for one in model.state_dict().values())


def flops_of(model: nn.Module, inputs: Tensor, *, precision: str) -> int:
    """Count the floating-point operations of the forward pass of one image.

    `torch.utils.flop_counter` counts matrix products, convolutions and attention; a multiplication
    with its addition is two. Element-wise operations and custom kernels count nothing.

    Args:
        model: in evaluation mode.
        inputs: preprocessed images [B, C, H, W] on the model's device, in its memory format.
        precision: of the pass.
    """
    one = inputs[:1].clone(memory_format=torch.preserve_format)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, autocast(precision, one.device):
        model(one)
    return int(counter.get_total_flops())


def forward_cost(
    model: nn.Module, inputs: Tensor, *, precision: str, seconds: float
) -> dict[str, dict[str, Any]]:
    """Memory and time of the forward pass alone, by batch size.

    Without loading, preprocessing and copying of images; in inference mode and warm. Each round is
    one pass, from a device that has nothing to do until it has nothing to do again.

    Args:
        model: in evaluation mode.
        inputs: preprocessed images [64, C, H, W] on the model's device, in its memory format.
        precision: of the pass.
        seconds: to spend on the rounds of each batch size; five rounds at least.

    Returns:
        `peak_activation_bytes` (see there) and `latency` (`median_seconds`, `p95_seconds`,
        `rounds`), each by batch size, without those that the device has no memory for.
    """
    cost: dict[str, dict[str, Any]] = {"peak_activation_bytes": {}, "latency": {}}
    for size in BATCH_SIZES:
        batch = inputs[:size].clone(memory_format=torch.preserve_format)
        try:
            peak, times = _measure(model, batch, precision, seconds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("the device has no memory for a batch of %d: it is not measured", size)
            continue
        cost["peak_activation_bytes"][str(size)] = peak
        cost["latency"][str(size)] = times
    return cost


def _measure(
    model: nn.Module, batch: Tensor, precision: str, seconds: float
) -> tuple[int, dict[str, Any]]:
    def forward() -> None:
        with autocast(precision, batch.device):
            model(batch)

    peak = peak_activation_bytes(model, batch, forward)
    return peak, latency(forward, batch.device, seconds)


@torch.inference_mode()
def latency(forward: Callable[[], None], device: torch.device, seconds: float) -> dict[str, Any]:
    """Median and 95th percentile of the seconds of single calls, and how many there were."""

    def timed() -> float:
        wait_for_device(device)
        began = perf_counter()
        forward()
        wait_for_device(device)
        return perf_counter() - began

    for _ in range(_WARM_UP_ROUNDS):
        forward()
    times: list[float] = []
    until = perf_counter() + seconds
    while len(times) < _FEWEST_ROUNDS or (perf_counter() < until and len(times) < _MOST_ROUNDS):
        times.append(timed())
    median, p95 = torch.tensor(times, dtype=torch.float64).quantile(_QUANTILES).tolist()
    return {"median_seconds": median, "p95_seconds": p95, "rounds": len(times)}


_QUANTILES = torch.tensor([0.5, 0.95], dtype=torch.float64)


def device_name(device: torch.device) -> str:
    """Return the name of a device, on which alone its latencies are valid."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_activation_bytes(model: nn.Module, inputs: Tensor, forward: Callable[[], Any]) -> int:
    """The largest sum of bytes of activations that are alive at one time in a forward pass.

    Counted are the memory of the inputs, which a caller holds throughout, and of every tensor that
    an operation of the pass makes, from then on until nothing refers to it: views and in-place
    operations add nothing. Not counted are parameters, buffers and what is computed from them alone
    (the copies in another precision that autocast makes), what a kernel needs for itself (cuDNN's
    workspaces), and the allocator's rounding. So the number is a property of the model, the same on
    any device where that runs the same operations.

    Args:
        model: in evaluation mode.
        inputs: what it is called with.
        forward: calls it; without autograd, which would keep activations.
    """
    weights = [*model.parameters(), *model.buffers()]
    with torch.no_grad(), _LiveBytes(weights, inputs) as live:
        forward()
    peak: int = live.peak
    return peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, until nothing refers to them."""

    def __init__(self, weights: list[Tensor], inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights, self._counted = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for weight in weights:
            self._weights[weight.untyped_storage()] = True
        self._now = self.peak = 0
        self._count(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        made_of = [one.untyped_storage() for one in _tensors((args, kwargs))]
        only_weights = bool(made_of) and all(one in self._weights for one in made_of)
        for tensor in _tensors(output):
            if only_weights:
                self._weights[tensor.untyped_storage()] = True
            else:
                self._count(tensor)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._weights or storage in self._counted:
            return
        size = storage.nbytes()
        self._counted[storage] = True
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self._now -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(values) if isinstance(one, Tensor))
