"""Batch-norm over all processes: of one process it is torch's, whatever its settings."""

import copy

import pytest
import torch
from torch import distributed, nn

from kdscale.errors import ModelError
from kdscale.training.batch_norm import WholeBatchNorm, with_whole_batches

CPU = torch.device("cpu")
SHAPES = {nn.BatchNorm1d: [(6, 3), (6, 3, 5)], nn.BatchNorm2d: [(6, 3, 4, 5)],
          nn.BatchNorm3d: [(6, 3, 2, 4, 5)]}  # fmt: skip
SETTINGS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False},
            {"eps": 0.1, "momentum": 0.7}]  # fmt: skip


@pytest.fixture
def group(tmp_path):
    """A process that is all of its group."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_one_process_has_batch_norm_as_torch_has_it(group, kind, settings):
    torch.manual_seed(0)
    for shape in SHAPES[kind]:
        theirs = kind(3, **settings)
        if theirs.affine:
            nn.init.normal_(theirs.weight)
            nn.init.normal_(theirs.bias)
        ours = with_whole_batches(copy.deepcopy(theirs), CPU)
        assert isinstance(ours, WholeBatchNorm)
        for _ in range(3):
            values = (torch.randn(shape) * 3 + 2).requires_grad_()
            again = values.detach().clone().requires_grad_()
            weights = torch.randn(shape)
            (theirs(values) * weights).sum().backward()
            (ours(again) * weights).sum().backward()
            torch.testing.assert_close(again.grad, values.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.eval()(values), theirs.eval()(values))


def test_half_precision_stays_half_precision(group):
    values = torch.randn(6, 3, 4, 4, dtype=torch.bfloat16)
    ours = with_whole_batches(nn.BatchNorm2d(3), CPU)(values)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, nn.BatchNorm2d(3)(values), atol=0.05, rtol=0.02)


def test_batch_norms_are_replaced_wherever_they_are_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ModuleDict({"a": nn.BatchNorm2d(2)}), nn.ReLU())
    names, weight = list(model.state_dict()), model[1]["a"].weight
    found = with_whole_batches(model.eval(), CPU)
    assert found is model
    assert list(found.state_dict()) == names
    assert isinstance(found[1]["a"], WholeBatchNorm)
    assert found[1]["a"].weight is weight
    assert not found[1]["a"].training
    assert [type(found[0]), type(found[2])] == [nn.Conv2d, nn.ReLU]


def test_gpus_get_torchs_own():
    found = with_whole_batches(nn.Sequential(nn.BatchNorm2d(2)), torch.device("cuda"))
    assert type(found[0]) is nn.SyncBatchNorm


def test_layer_built_upon_batch_norm_is_refused_by_name():
    class Activated(nn.BatchNorm2d):
        def forward(self, values):
            return super().forward(values).relu()

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(Activated(2)))
    with pytest.raises(ModelError, match=r"cannot replace module '1.0', a Activated built upon"):
        with_whole_batches(model, CPU)
