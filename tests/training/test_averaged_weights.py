"""The moving average of weights: timm's, buffers and all, and nothing that a step waits for."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from kdscale.errors import ModelError
from kdscale.training.averaged_weights import AveragedWeights
from kdscale.training.feature_student import StudentWithFeatures


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def steps_of(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, 9):
        model(torch.randn(8, 3, 8, 8)).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


@pytest.mark.parametrize("decay", [0.5, 0.9998])
def test_average_is_that_of_timm_with_warm_up(decay):
    model = network()
    ours, theirs = AveragedWeights(model, decay), ModelEmaV3(model, decay, use_warmup=True)
    for step in steps_of(model):
        ours.update(model, step)
        theirs.update(model, step)
    averages = theirs.module.state_dict()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, averages[name]), name
    assert not torch.equal(ours.model[0].weight, model[0].weight)
    assert not ours.model.training


def test_average_after_the_first_step_is_the_weights():
    model = network()
    average = AveragedWeights(model, 0.9)
    for step in steps_of(model):
        average.update(model, step)
        break
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_average_of_a_student_with_adapters_is_of_the_student():
    student = network()
    model = StudentWithFeatures(student, [], [])
    model.adapters.append(nn.Linear(2, 2))
    average = AveragedWeights(model, 0.9)
    average.update(model, 1)
    assert average.model.state_dict().keys() == student.state_dict().keys()
    together = set(average.beside(model).state_dict())
    assert {"model.adapters.0.weight", "model.student.0.weight", "average.0.weight"} <= together


def test_model_that_cannot_be_copied_is_refused():
    model = network()
    model.seen = model[0].weight * 2  # a tensor with a history
    with pytest.raises(ModelError, match="ema_decay needs a copy of the model"):
        AveragedWeights(model, 0.9)
