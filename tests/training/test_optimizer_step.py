"""One optimizer step: float16 with a loss scale, clipping, skipped updates, resuming."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdscale.errors import DivergedError
from kdscale.training.optim import OptimizerStep, Schedule, create_optimizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as when the script is run

from sync_cases import updates
from sync_cases.counting import count

CPU = torch.device("cpu")
RATE = Schedule("constant", 0.1, 100)


def step_of(model, name="sgd", **options):
    optimizer = create_optimizer(name, model.parameters(), learning_rate=0.1)
    return OptimizerStep(optimizer, RATE, CPU, **options)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def take(step, model, factor=1.0):
    loss = model(torch.ones(4, 3)).square().sum() * factor
    step.backward(loss)
    step.apply(model.parameters(), 0.1)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_scaled_loss_changes_weights_as_an_unscaled_one_does(name, clip):
    models = linear(), linear()
    steps = [
        step_of(model, name, gradient_clip=clip, precision=precision)
        for model, precision in zip(models, ("float32", "float16"), strict=True)
    ]
    for _ in range(3):
        for step, model in zip(steps, models, strict=True):
            take(step, model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)
    if clip is None:
        assert steps[1].gradient_norm is None
    else:
        torch.testing.assert_close(steps[0].gradient_norm, steps[1].gradient_norm)
    assert steps[0].scale_state() == {}
    assert steps[1].describe_scale() == {"loss_scale": 65536.0, "skipped_steps": 0}


def test_step_without_finite_gradients_changes_nothing_halves_the_scale_and_is_counted():
    model = linear()
    step, before = step_of(model, precision="float16"), model.weight.detach().clone()
    take(step, model, float("inf"))
    assert torch.equal(model.weight, before)
    assert step.describe_scale() == {"loss_scale": 32768.0, "skipped_steps": 1}
    take(step, model)
    assert not torch.equal(model.weight, before)
    assert step.scale_state() == {"scale": 32768.0, "steps_at_scale": 1, "skipped_steps": 1}


def test_restored_scale_goes_on_as_it_was():
    model = linear()
    step, other = step_of(model, precision="float16"), step_of(model, precision="float16")
    take(step, model, float("nan"))
    take(step, model)
    other.restore_scale(step.scale_state())
    assert other.scale_state() == step.scale_state()
    take(other, model, float("nan"))
    assert other.scale_state() == {"scale": 16384.0, "steps_at_scale": 0, "skipped_steps": 2}


def test_scale_that_no_gradients_are_finite_at_ends_training():
    model = linear()
    step = step_of(model, precision="float16")
    for _ in range(26):
        take(step, model, float("nan"))
    step.check_scale(26)
    take(step, model, float("nan"))
    with pytest.raises(DivergedError, match="not finite at step 27, however small the loss scale"):
        step.check_scale(27)


def test_update_that_a_fused_optimizer_leaves_out_counts_as_skipped():
    """As on a GPU: it is called, and finds out on the device."""
    model = linear()
    optimizer = create_optimizer("sgd", model.parameters(), learning_rate=0.1, fused=True)
    step, before = OptimizerStep(optimizer, RATE, CPU, precision="float16"), model.weight.clone()
    take(step, model, float("inf"))
    assert torch.equal(model.weight, before)
    take(step, model)
    assert step.skipped_steps == 1


def test_tf32_is_allowed_in_the_backward_pass_alone_and_where_it_is_set():
    model, seen = linear(), []
    for allowed in (False, True):
        step = step_of(model, allow_tf32=allowed)
        loss = model(torch.ones(4, 3)).sum()
        loss.register_hook(lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32))
        before = torch.backends.cuda.matmul.allow_tf32
        step.backward(loss)
        assert torch.backends.cuda.matmul.allow_tf32 == before
    assert seen == [False, True]


@pytest.mark.parametrize("case", list(updates.cases()), ids=lambda case: case.name)
def test_update_on_a_gpu_waits_for_nothing(case):
    found = count(case)
    assert (found.host_syncs, found.blocking_copies, found.async_copies) == (0, 0, 0)
