"""Groups of parameters: the same as timm's, with and without layer decay."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from kdscale.errors import ConfigError
from kdscale.training.feature_student import StudentWithFeatures
from kdscale.training.parameter_groups import decay_groups, layer_decay_groups

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2})
MODELS = [VIT, ("resnet18", {})]


def create(name, options):
    return timm.create_model(name, num_classes=10, **options)


def settings_of(groups, model):
    """Decay and factor of the learning rate of each parameter, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_weight_decay_is_that_of_timm(name, options):
    model = create(name, options)
    of_timm = create_optimizer_v2(model, "adamw", weight_decay=0.05).param_groups
    ours = settings_of(decay_groups(model, 0.05), model)
    assert ours == settings_of(of_timm, model)
    assert len(ours) == len(list(model.parameters()))


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_layer_decay_is_that_of_timm(name, options, everything):
    model = create(name, options)
    of_timm = create_optimizer_v2(
        model, "adamw", weight_decay=0.05, layer_decay=0.7, filter_bias_and_bn=not everything
    ).param_groups
    groups = layer_decay_groups(model, 0.05, 0.7, decay_norm_and_bias=everything)
    ours, theirs = settings_of(groups, model), settings_of(of_timm, model)
    if everything:  # timm exempts what the model lists all the same
        exempt = getattr(model, "no_weight_decay", set)()
        theirs = {key: (0.05, rate) if key in exempt else (decay, rate)
                  for key, (decay, rate) in theirs.items()}  # fmt: skip
    assert ours == theirs
    assert len({rate for _, rate in ours.values()}) > 2


def test_position_embeddings_of_torchvision_are_not_decayed():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 1, 2, 8, 8, num_classes=2)
    ours = settings_of(decay_groups(model, 0.1), model)
    assert ours["class_token"][0] == ours["encoder.pos_embedding"][0] == 0.0
    assert ours["conv_proj.weight"][0] == ours["heads.head.weight"][0] == 0.1


def test_adapters_of_feature_losses_are_in_a_group():
    student = create(*VIT)
    model = StudentWithFeatures(student, [], [])
    model.adapters.append(nn.Linear(4, 4))
    decayed, free = decay_groups(model, 0.1)
    assert any(one is model.adapters[0].weight for one in decayed["params"])
    assert any(one is student.pos_embed for one in free["params"])
    for everything in (False, True):
        groups = layer_decay_groups(model, 0.1, 0.5, decay_norm_and_bias=everything)
        found = settings_of(groups, model)
        assert found["adapters.0.weight"] == (0.1, 1.0)
        assert found["adapters.0.bias"] == (0.1 if everything else 0.0, 1.0)


def test_model_without_layers_has_no_layer_decay():
    with pytest.raises(ConfigError, match="Linear does not: leave layer_decay out"):
        layer_decay_groups(nn.Linear(2, 2), 0.1, 0.5, decay_norm_and_bias=False)


def test_frozen_parameters_are_in_no_group():
    model = create(*VIT)
    model.head.requires_grad_(False)
    for groups in (
        decay_groups(model, 0.1),
        layer_decay_groups(model, 0.1, 0.5, decay_norm_and_bias=False),
    ):
        assert not any(name.startswith("head.") for name in settings_of(groups, model))


def test_learning_rate_of_a_group_is_scaled_in_each_step():
    from kdscale.training.optim import OptimizerStep, Schedule, create_optimizer

    model = create(*VIT)
    groups = layer_decay_groups(model, 0.0, 0.5, decay_norm_and_bias=False)
    optimizer = create_optimizer("sgd", groups, learning_rate=1.0)
    step = OptimizerStep(optimizer, Schedule("constant", 0.1, 10), torch.device("cpu"))
    for rate in (0.1, 0.2):
        step.apply(model.parameters(), rate)
        assert [one["lr"] for one in optimizer.param_groups] == [
            rate * one["lr_scale"] for one in groups
        ]
