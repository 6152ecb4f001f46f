"""Processes agree on a stop; on GPUs without waiting for the device."""

from types import SimpleNamespace

import pytest
import torch

from kdscale import distributed
from kdscale.distributed import StopPoll
from kdscale.signals import StopRequest


@pytest.mark.parametrize(("device", "answers"), [("cpu", "001"), ("cuda", "0001")])
def test_poll_tells_of_another_process_at_once_on_a_cpu_and_at_the_next_poll_on_gpus(
    device, answers, monkeypatch
):
    signals = iter([[0, 0], [0, 0], [0, 15], [0, 15]])
    monkeypatch.setattr(distributed, "_signals", lambda *_: torch.tensor(next(signals)))
    accelerator = SimpleNamespace(num_processes=2, device=torch.device(device))
    request = StopRequest()
    poll = StopPoll(request, accelerator)
    assert [poll() for _ in answers] == [answer == "1" for answer in answers]
    assert request.received == 15


def test_single_process_reads_its_own_request():
    request = StopRequest()
    poll = StopPoll(request, SimpleNamespace(num_processes=1))
    assert not poll()
    request.received = 2
    assert poll()
