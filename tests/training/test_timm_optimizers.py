"""Optimizers of timm: equal to timm's own, resumed bit for bit, refused by name."""

import pytest
import timm.optim
import torch
from torch import nn

from kdscale.errors import ConfigError
from kdscale.runs import checkpoint
from kdscale.training.optim import create_optimizer

LARGE_FAMILIES = ["lamb", "lion", "adan", "muon", "adafactorbv", "nadamw"]
USED = [
    name
    for name in timm.optim.list_optimizers()
    if not name.startswith(("bnb", "fused", "kron", "adahessian"))
]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def take_steps(model, optimizer, first, last):
    for number in range(first, last):
        inputs = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        model(inputs).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def assert_equal(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def check_resumed(name, folder):
    def start(seed=0):
        model = network(seed)
        return model, create_optimizer(f"timm/{name}", model.parameters(), learning_rate=1e-3)

    whole, optimizer = start()
    take_steps(whole, optimizer, 0, 6)
    stopped, optimizer = start()
    take_steps(stopped, optimizer, 0, 3)
    checkpoint.write_process_state(folder, 0)
    checkpoint.write_shared_state(folder, stopped, optimizer, {})
    checkpoint.publish(folder, 3)
    resumed, optimizer = start(seed=1)
    checkpoint.restore(checkpoint.newest(folder), resumed, optimizer, 0, 1)
    take_steps(resumed, optimizer, 3, 6)
    assert_equal(whole, resumed)


@pytest.mark.parametrize("name", LARGE_FAMILIES)
def test_optimizer_is_resumed_bit_for_bit(tmp_path, name):
    check_resumed(name, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in USED if name not in LARGE_FAMILIES])
def test_every_other_optimizer_is_resumed_bit_for_bit(tmp_path, name):
    check_resumed(name, tmp_path)


def test_steps_are_those_of_timm():
    ours, theirs = network(), network()
    optimizer = create_optimizer(
        "timm/sgdw", ours.parameters(), learning_rate=0.1, momentum=0.8, weight_decay=0.1,
        options={"nesterov": False, "dampening": 0.1},
    )  # fmt: skip
    of_timm = timm.optim.create_optimizer_v2(
        list(theirs.parameters()),
        "sgdw",
        lr=0.1,
        momentum=0.8,
        weight_decay=0.1,
        nesterov=False,
        dampening=0.1,
    )
    take_steps(ours, optimizer, 0, 4)
    take_steps(theirs, of_timm, 0, 4)
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/lionn", {}, r"timm has no optimizer 'lionn' \(did you mean .*lion"),
        ("timm/kron", {}, "random numbers of its own, which no checkpoint contains"),
        ("timm/adahessian", {}, "second derivatives"),
        ("timm/bnbadam8bit", {}, "never resumed"),
        ("timm/adan", {"beta": 1}, r"'timm/adan' does not take beta = 1: .* It takes betas, eps"),
        ("timm/sgdw", {"betas": [0.9, 0.99]}, r"does not take betas = .* It takes momentum, "),
        ("timm/lion", {"eps": 1e-6}, "'timm/lion' does not take eps = 1e-06"),
        ("timm/lion", {"layer_decay": 0.9}, "'timm/lion' does not take layer_decay"),
        ("adamw", {"betas": [0.9, 7]}, "optimizer 'adamw' cannot be created .* Invalid beta"),
        ("adamw", {"lr": 1}, "optimizer_options has 'lr': set learning_rate"),
        ("timm/lamb", {"fused": True}, "optimizer_options has 'fused': leave it out"),
    ],
)
def test_what_cannot_be_used_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        create_optimizer(name, network().parameters(), learning_rate=0.1, options=options)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("timm/lion", {"momentum": 0.8}, "does not take momentum = 0.8: leave it out. It takes be"),
        ("timm/lion", {"nesterov": True}, "does not take nesterov = True"),
        ("timm/sgdw", {"nesterov": True}, "set optimizer_options = { nesterov = true }"),
    ],
)
def test_field_that_the_optimizer_does_not_read_is_refused(name, given, message):
    with pytest.raises(ConfigError, match=message):
        create_optimizer(name, network().parameters(), learning_rate=0.1, **given)


def test_options_are_those_of_the_optimizer():
    group = create_optimizer(
        "adamw", network().parameters(), learning_rate=0.1, options={"betas": [0.5, 0.6]}
    ).param_groups[0]
    assert list(group["betas"]) == [0.5, 0.6]
