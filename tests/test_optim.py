"""Learning rates as functions of the step, and optimizers by name."""

import pytest
import torch
from torch import nn

from kdscale.training.optim import Schedule, create_optimizer
from kdscale.training.parameter_groups import decay_groups


def rates(schedule, num_steps):
    return [schedule(step) for step in range(num_steps)]


@pytest.mark.parametrize("kind", ["constant", "steps", "cosine", "one_cycle"])
def test_schedule_is_a_pure_function_of_the_step(kind):
    schedule = Schedule(kind, 0.1, 40, warmup_steps=5, milestones=[20], gamma=0.5)
    forwards = rates(schedule, 40)
    backwards = [schedule(step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert all(0 <= rate <= 0.1 * (1 + 1e-12) for rate in forwards)


def test_constant_is_constant():
    assert set(rates(Schedule("constant", 0.1, 10), 10)) == {0.1}


@pytest.mark.parametrize("kind", ["constant", "steps", "cosine"])
def test_warmup_rises_linearly_to_the_peak(kind):
    schedule = Schedule(kind, 0.1, 40, warmup_steps=4, milestones=[30])
    assert rates(schedule, 4) == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert schedule(4) == pytest.approx(0.1)


def test_steps_decay_at_each_milestone():
    schedule = Schedule("steps", 1.0, 30, milestones=[10, 20], gamma=0.1)
    assert [schedule(s) for s in (9, 10, 19, 20, 29)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_falls_from_the_peak_to_nearly_zero():
    schedule = Schedule("cosine", 0.2, 100)
    assert schedule(0) == pytest.approx(0.2)
    assert schedule(50) == pytest.approx(0.1)
    assert schedule(99) < 1e-4
    assert rates(schedule, 100) == sorted(rates(schedule, 100), reverse=True)


@pytest.mark.parametrize("num_steps", [20, 100, 470])
def test_one_cycle_is_torchs(num_steps):
    peak = 3e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], peak)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=num_steps, pct_start=(0.3 * num_steps + 1) / num_steps
    )
    expected = []
    for _ in range(num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < num_steps:
            theirs.step()
    assert rates(Schedule("one_cycle", peak, num_steps), num_steps) == pytest.approx(expected)


def test_one_cycle_starts_at_a_25th_peaks_as_configured_and_ends_at_almost_nothing():
    schedule = Schedule("one_cycle", 1.0, 50, warmup_steps=10)
    assert schedule(0) == pytest.approx(1 / 25)
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(49) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("kind", ["constant", "steps", "cosine", "one_cycle"])
def test_schedule_of_a_single_step_has_a_rate(kind):
    assert Schedule(kind, 0.1, 1)(0) >= 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_optimizer_is_the_one_named_with_its_settings(name, kind):
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = create_optimizer(name, parameters, learning_rate=0.3, weight_decay=0.01)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_sgd_takes_momentum_and_nesterov():
    optimizer = create_optimizer(
        "sgd", [torch.nn.Parameter(torch.zeros(2))], learning_rate=0.3, momentum=0.8, nesterov=True
    )
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)


def test_decay_groups_decay_matrices_and_convolutions_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    decayed, free = decay_groups(model, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in free["params"]] == [(4,), (4,), (2,)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_momentum_begins_at_zero_where_the_first_update_is_left_out():
    """A fused optimizer leaves out updates of gradients that are not finite, in float16."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
    try:
        parameter = torch.nn.Parameter(torch.zeros(4))
        optimizer = create_optimizer("sgd", [parameter], learning_rate=0.1, fused=True)
        for gradient, found_inf in ((float("inf"), 1.0), (1.0, 0.0)):
            parameter.grad = torch.full((4,), gradient)
            optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(found_inf)
            optimizer.step()
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert parameter.tolist() == pytest.approx([-0.1] * 4)


def test_cosine_with_cool_down_is_that_of_timm():
    from timm.scheduler import CosineLRScheduler

    optimizer = create_optimizer("sgd", [nn.Parameter(torch.zeros(1))], learning_rate=0.1)
    of_timm = CosineLRScheduler(
        optimizer, t_initial=20, lr_min=0.01, warmup_t=4, warmup_prefix=True, t_in_epochs=False
    )
    ours = Schedule("cosine", 0.1, 30, warmup_steps=4, cooldown_steps=6, lowest=0.01)
    for step in range(4, 30):  # the first step of timm's warm-up has a rate of 0, ours a share
        of_timm.step_update(step)
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert rates(ours, 30)[24:] == [0.01] * 6


def test_cool_down_that_follows_the_warm_up_at_once_is_at_the_lowest_rate():
    schedule = Schedule("cosine", 0.1, 10, warmup_steps=4, cooldown_steps=6, lowest=0.01)
    assert rates(schedule, 10)[4:] == [0.01] * 6
