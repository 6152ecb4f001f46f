"""Checkpoints: whole or not there, and back bit for bit."""

import errno
import os

import pytest
import torch

from kdscale.errors import RunError, StorageError
from kdscale.runs import checkpoint
from kdscale.training.optim import create_optimizer

STATE = {"step": 7, "train_seconds": 0.1 + 0.2, "metrics_bytes": 123}


def trained(name="adam", seed=0):
    """A model and its optimizer after a few steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = create_optimizer(name, model.parameters(), learning_rate=0.1)
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write(folder, model, optimizer, step=7):
    checkpoint.write_process_state(folder, 0)
    checkpoint.write_shared_state(folder, model, optimizer, {**STATE, "step": step})
    checkpoint.publish(folder, step)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_restored_training_continues_bit_for_bit(tmp_path, name):
    model, optimizer = trained(name)
    write(tmp_path, model, optimizer)
    expected = torch.randn(4)
    other, other_optimizer = trained(name, seed=1)
    checkpoint.restore(checkpoint.newest(tmp_path), other, other_optimizer, 0, 1)
    assert torch.equal(torch.randn(4), expected)  # the generator continues too
    for both in ((model, optimizer), (other, other_optimizer)):
        both[0](torch.ones(5, 3)).square().sum().backward()
        both[1].step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_loop_state_is_read_back_exactly(tmp_path):
    write(tmp_path, *trained())
    assert checkpoint.read_loop_state(checkpoint.newest(tmp_path)) == STATE


def test_the_last_two_are_retained(tmp_path):
    model, optimizer = trained()
    for step in (9, 10, 100):
        write(tmp_path, model, optimizer, step)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000010", "step-00000100"]
    assert checkpoint.newest(tmp_path).name == "step-00000100"


def test_folder_without_a_checkpoint_has_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_unpublished_checkpoint_does_not_count(tmp_path):
    model, optimizer = trained()
    write(tmp_path, model, optimizer, 5)
    checkpoint.write_process_state(tmp_path, 0)
    checkpoint.write_shared_state(tmp_path, model, optimizer, {**STATE, "step": 6})
    assert checkpoint.newest(tmp_path).name == "step-00000005"
    write(tmp_path, model, optimizer, 6)  # and what was left over does no harm
    assert checkpoint.read_loop_state(checkpoint.newest(tmp_path))["step"] == 6


def test_every_process_gets_its_own_random_state_back(tmp_path):
    model, optimizer = trained()
    expected = {}
    for process in (0, 1):
        torch.manual_seed(100 + process)
        checkpoint.write_process_state(tmp_path, process)
        expected[process] = torch.randn(3)
    checkpoint.write_shared_state(tmp_path, model, optimizer, STATE)
    checkpoint.publish(tmp_path, 7)
    for process in (0, 1):
        checkpoint.restore(checkpoint.newest(tmp_path), model, optimizer, process, 2)
        assert torch.equal(torch.randn(3), expected[process])


@pytest.mark.parametrize(("wrote", "goes_on"), [(1, 2), (2, 1)])
def test_other_number_of_processes_than_wrote_it_is_refused(tmp_path, wrote, goes_on):
    for process in range(wrote):
        checkpoint.write_process_state(tmp_path, process)
    write(tmp_path, *trained())
    message = f"was written by {wrote} process(es)?, .* {goes_on} are to go on: start {wrote}"
    with pytest.raises(RunError, match=message):
        checkpoint.restore(checkpoint.newest(tmp_path), *trained(), 0, goes_on)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_truncated_checkpoint_is_refused_by_name(tmp_path, file):
    write(tmp_path, *trained())
    path = checkpoint.newest(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match="step-00000007 cannot be used"):
        checkpoint.restore(path.parent, *trained(), 0, 1)


def test_damaged_loop_state_is_refused(tmp_path):
    write(tmp_path, *trained())
    (checkpoint.newest(tmp_path) / "state.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be used"):
        checkpoint.read_loop_state(checkpoint.newest(tmp_path))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    write(tmp_path, *trained())
    other = torch.nn.Linear(3, 5)
    optimizer = create_optimizer("adam", other.parameters(), learning_rate=0.1)
    with pytest.raises(RunError, match="cannot be used"):
        checkpoint.restore(checkpoint.newest(tmp_path), other, optimizer, 0, 1)


def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, *trained(), step=5)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write(tmp_path, *trained(), step=6)
    assert checkpoint.newest(tmp_path).name == "step-00000005"


def test_tied_weights_are_saved_and_restored(tmp_path):
    def tied():
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = tied()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    write(tmp_path, model, optimizer)
    other, its_optimizer = tied()
    checkpoint.restore(checkpoint.newest(tmp_path), other, its_optimizer, 0, 1)
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    write(tmp_path, *trained())
    suffixes = {path.suffix for path in checkpoint.newest(tmp_path).iterdir()}
    assert suffixes == {".safetensors", ".json"}
