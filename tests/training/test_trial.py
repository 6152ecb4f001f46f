"""A step in training mode before the first: what cannot be trained is told, and nothing changed."""

import pytest
import torch
from torch import nn

from kdscale.errors import ModelError
from kdscale.losses.objective import FeatureTerm
from kdscale.models.registry import check_model, create_model
from kdscale.training.feature_student import with_features
from kdscale.training.trial_step import unused_parameters

INPUTS = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A classifier whose training mode may differ from evaluation."""

    def __init__(self, in_training=lambda self, logits: logits):
        super().__init__()
        self.body, self.aux = nn.Linear(64, 4), nn.Linear(64, 4)
        self.in_training = in_training

    def forward(self, pixels):
        logits = self.body(pixels.flatten(1))
        return self.in_training(self, logits) if self.training else logits


def tried(model, inputs=INPUTS, num_classes=4, precision="float32"):
    return unused_parameters(
        model, inputs, num_classes=num_classes, precision=precision, what="student"
    )


def fail(self, logits):
    raise RuntimeError("auxiliary heads need 75 pixels")


@pytest.mark.parametrize(
    ("in_training", "said"),
    [
        (lambda self, logits: (logits, logits), "gives a tuple in training mode"),
        (lambda self, logits: (logits, logits, logits), "gives a tuple in training mode"),
        (lambda self, logits: {"logits": logits}, "gives a dict in training mode"),
        (lambda self, logits: logits[:, :3], r"gives .* of shape \[2, 3\] in training mode"),
        (lambda self, logits: logits.detach(), "gives logits without a gradient"),
        (fail, r"fails in training mode .*auxiliary heads need 75 pixels"),
    ],
)
def test_what_fails_in_training_mode_alone_is_reported(in_training, said):
    model = Model(in_training)
    check_model(model, num_classes=4, channels=1, size=8)
    with pytest.raises(ModelError, match=f"student {said}"):
        tried(model)


@pytest.mark.parametrize("model", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4))])
def test_model_without_a_trainable_parameter_is_refused(model):
    with pytest.raises(ModelError, match="has no parameter to train"):
        tried(model.requires_grad_(False))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parameters_without_a_gradient_are_named(precision):
    assert tried(Model(), precision=precision) == ["aux.weight", "aux.bias"]


def test_frozen_parameters_are_not_unused_ones():
    model = Model()
    model.aux.requires_grad_(False)
    assert tried(model) == []


def test_parameters_behind_the_features_of_all_losses_are_unused():
    model = create_model("tiny_models:convolutional", num_classes=4, in_channels=1)
    terms = [FeatureTerm("hint", "stem", "stem")]
    student = with_features(model, terms, INPUTS, {"stem": (6, 4, 4)}, 0, with_logits=False)
    found = tried(student)
    assert "student.top.weight" in found
    assert not any(name.startswith(("student.stem", "adapters")) for name in found)


def test_trial_leaves_everything_as_it_was():
    model = create_model("tiny_models:batch_norm_and_dropout", num_classes=4, in_channels=1)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    assert tried(model) == []
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_auxiliary_heads_of_torchvision_are_left_out_of_the_outputs():
    model = create_model(
        "torchvision/googlenet", num_classes=4, in_channels=3, options={"init_weights": False}
    )
    found = tried(model, torch.randn(2, 3, 64, 64))
    assert found
    assert all(name.startswith("aux") for name in found)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["script", "trace", "freeze", "inside"])
def test_torchscript_programs_are_refused_by_name(kind):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    traced = torch.jit.trace(model, INPUTS)
    program = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: traced,
        "freeze": lambda: torch.jit.freeze(traced),
        "inside": lambda: nn.Sequential(torch.jit.freeze(traced), nn.Linear(4, 4)),
    }[kind]()
    with pytest.raises(ModelError, match="contains a TorchScript program"):
        check_model(program, num_classes=4, channels=1, size=8)
