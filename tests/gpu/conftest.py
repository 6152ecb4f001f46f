"""Tests that need a GPU: `pytest tests/gpu -m gpu`, which benchmarks/gpu.py also runs.

With KDSCALE_TRY_GPU_TESTS=1 they run on a CPU where they can: their code is tried, a GPU is not.
"""

import contextlib
import os

import pytest
import torch

ON_CPU = os.environ.get("KDSCALE_TRY_GPU_TESTS") == "1" and not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available() and not ON_CPU:
        pytest.skip("no CUDA device")


@pytest.fixture
def device():
    """Return the first CUDA device."""
    return torch.device("cpu") if ON_CPU else torch.device("cuda", 0)


@pytest.fixture
def waiting_for_nothing():
    """Makes any synchronisation with the host an error, within a `with` block."""

    @contextlib.contextmanager
    def guarded():
        if ON_CPU:
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded
