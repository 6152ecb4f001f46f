"""Parameter counts are the published ones; the models were built and counted."""

import pytest
import torch
from torch import nn

from kdscale.models import cifar_resnet, reference
from kdscale.models.registry import num_parameters

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (reference.mnist_cnn, 421_642),
        (reference.mnist_mlp, 407_050),
        (reference.cifar10_deepnn, 1_186_986),
        (reference.cifar10_lightnn, 267_738),
        (reference.features_light_cnn, 2_193_226),
        (reference.keras_teacher, 2_199_114),
        (reference.keras_student, 328_938),
    ],
)
def test_reference_model_has_the_published_parameter_count(model, count):
    assert num_parameters(model()) == count


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (cifar_resnet.resnet8x4, 1_233_540),
        (cifar_resnet.resnet32x4, 7_433_860),
        (cifar_resnet.resnet20, 278_324),
        (cifar_resnet.resnet56, 861_620),
        (cifar_resnet.wrn_16_2, 703_284),
        (cifar_resnet.wrn_40_2, 2_255_156),
    ],
)
def test_cifar_resnet_has_the_published_parameter_count_at_100_classes(model, count):
    assert num_parameters(model(100)) == count


def test_mnist_mlp_takes_the_hidden_width():
    assert num_parameters(reference.mnist_mlp(hidden=100)) == 784 * 100 + 100 + 100 * 10 + 10


def test_deepnn_has_its_layers_where_the_tutorial_has_them():
    model = reference.cifar10_deepnn()
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert convolutions == ["features.0", "features.2", "features.5", "features.7"]
    assert linears == ["classifier.0", "classifier.3"]


def test_tutorial_models_give_the_maps_that_the_hint_and_cosine_variants_compare():
    pixels = torch.zeros(2, 3, 32, 32)
    teacher, student = reference.cifar10_deepnn(), reference.cifar10_lightnn()
    assert teacher.features(pixels).shape == (2, 32, 8, 8)
    assert student.features(pixels).shape == (2, 16, 8, 8)


def test_keras_models_use_keras_defaults():
    norms = [
        m
        for model in (reference.keras_teacher(), reference.keras_student())
        for m in model.modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    assert len(norms) == 7 + 5
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


def test_keras_teacher_normalises_after_the_relu():
    kinds = [type(m).__name__ for m in reference.keras_teacher().features[:3]]
    assert kinds == ["Conv2d", "ReLU", "BatchNorm2d"]


def test_cifar_resnet_stages_have_the_published_maps():
    model = cifar_resnet.resnet8x4(100)
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]


def test_wide_resnet_starts_its_shortcut_from_the_activated_maps_where_the_shape_changes():
    block = cifar_resnet.PreActivationBlock(4, 8, 2).eval()
    maps = torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    activated = torch.relu(block.bn1(maps))
    torch.testing.assert_close(block(maps), block.shortcut(activated))


def test_wide_resnet_passes_the_raw_maps_where_the_shape_stays():
    block = cifar_resnet.PreActivationBlock(4, 4, 1).eval()
    maps = torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(maps), maps)


def test_mnist_cnn_learns_a_separable_toy_problem():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    pixels = torch.zeros(40, 1, 28, 28)
    pixels[labels == 1, :, :14] = 1.0
    model = reference.mnist_cnn(num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    assert (model.eval()(pixels).argmax(1) == labels).all()
