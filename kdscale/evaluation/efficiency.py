"""Cost of a model in use: bytes of its weights and activations, FLOPs and latency."""

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdscale.distributed import is_out_of_memory, wait_for_device
from kdscale.evaluation.activations import peak_activation_bytes
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
