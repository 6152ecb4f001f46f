"""Tests that need a GPU: `pytest tests/gpu -m gpu`, which benchmarks/gpu.py also runs."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def device():
    """Return the first CUDA device."""
    return torch.device("cuda", 0)
