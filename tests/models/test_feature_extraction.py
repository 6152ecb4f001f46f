"""Modules inside a teacher are heard in one forward pass, and its linear head is found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kdscale.errors import ConfigError
from kdscale.models.feature_extraction import FeatureSpec, extract_features, find_head
from kdscale.models.registry import create_model

PRECISIONS = ["float32", "bfloat16"]


def run(model, images, precision="float32"):
    """As a frozen teacher does it."""
    with torch.inference_mode(), torch.autocast(
        "cpu", torch.bfloat16, enabled=precision == "bfloat16"
    ):  # fmt: skip
        return model(images).float()


def heard(model, images, taps, precision="float32"):
    with extract_features(model, taps) as seen:
        run(model, images, precision)
    return seen.features


def hooks(model):
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


# ------------------------------------------------------------------ the head

MODELS = [
    ("mnist-cnn", 1, 28, "classifier.3", 128),
    ("mnist-mlp", 1, 28, "3", 512),
    ("keras-student", 3, 32, "classifier.3", 64),
    ("resnet8x4", 3, 32, "fc", 256),
    ("wrn-16-2", 3, 32, "fc", 128),
    ("torchvision/mobilenet_v3_small", 3, 64, "classifier.3", 1024),
    ("torchvision/shufflenet_v2_x0_5", 3, 64, "fc", 1024),
    ("timm/convnext_atto", 3, 64, "head.fc", 320),
    ("timm/test_vit", 3, 160, "head", 64),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "channels", "side", "module", "size"), MODELS)
def test_head_is_found_whatever_it_is_called(name, channels, side, module, size, precision):
    model = create_model(name, num_classes=7, in_channels=channels).eval()
    images = torch.randn(3, channels, side, side)
    before = hooks(model)
    found, head = find_head(model, lambda: run(model, images, precision))
    assert (found, tuple(head.weight_CD.shape), tuple(head.bias_C.shape)) == (
        module,
        (7, size),
        (7,),
    )
    assert hooks(model) == before
    with extract_features(model, head=found) as seen:
        logits = run(model, images, precision)
    assert seen.head_input_BD.dtype == torch.float32
    close = {"float32": 1e-5, "bfloat16": 0.05}[precision]
    assert torch.allclose(head(seen.head_input_BD), logits, atol=close * float(logits.abs().max()))


def test_head_of_a_transformers_model_is_found():
    from transformers import ViTConfig, ViTForImageClassification

    from kdscale.models.libraries import _logits_of

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=16, num_labels=5, **sizes)
    model = ViTForImageClassification(config).eval()
    model.register_forward_hook(_logits_of)  # as the registry makes it
    found, head = find_head(model, lambda: run(model, torch.randn(2, 3, 8, 8)))
    assert (found, tuple(head.weight_CD.shape)) == ("classifier", (5, 16))


class Ends(nn.Module):
    """A linear model, and what is done to its logits."""

    def __init__(self, after, bias=True):
        super().__init__()
        self.stem = nn.Linear(12, 6)
        self.top = nn.Linear(6, 5, bias=bias)
        self.after = after

    def forward(self, images):
        return self.after(self.top(self.stem(images.flatten(1)).relu()))


class Normed(nn.Linear):
    def forward(self, inputs):
        return F.linear(F.normalize(inputs), F.normalize(self.weight), self.bias)


def normed():
    model = Ends(nn.Identity())
    model.top = Normed(6, 5)
    return model


def twice():
    model = Ends(nn.Identity())
    model.stem = nn.Linear(12, 12)
    model.top = nn.Linear(12, 12)
    model.forward = lambda images: model.top(model.top(model.stem(images.flatten(1))))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Ends(nn.LogSoftmax(1)), "its last layer is 'after', a LogSoftmax, which is not linear"),
        (Ends(nn.ReLU()), "its last layer is 'after', a ReLU, which is not linear"),
        (
            Ends(lambda z: 2 * z),
            "its last linear layer is 'top', but what the model returns is not",
        ),
        (Ends(lambda z: z.mul_(2)), "'top' gives is not its input times its weight plus its bias"),
        (Ends(lambda z: z.clamp(max=0.01)), "its last linear layer is 'top', but what the model"),
        (normed(), "'top' gives is not its input times its weight plus its bias"),
        (twice(), "its last linear layer, 'top', is called more than once"),
        (nn.Sequential(nn.Conv2d(3, 5, 2), nn.Flatten()), "its last layer is '0', a Conv2d"),
    ],
)
def test_model_that_ends_otherwise_is_refused_and_its_last_layer_named(model, message):
    torch.manual_seed(0)
    images = torch.randn(16, 3, 2, 2)
    with pytest.raises(ConfigError, match=message) as error:
        find_head(model.eval(), lambda: run(model, images))
    assert "set cache.encoding = 'float16'" in str(error.value)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "model",
    [Ends(nn.Dropout()), Ends(nn.Identity(), bias=False), Ends(nn.Flatten()), Ends(torch.clone)],
)
def test_what_changes_nothing_after_the_head_is_passed_over(model):
    found, head = find_head(model.eval(), lambda: run(model, torch.randn(4, 3, 2, 2)))
    assert found == "top"
    assert torch.equal(head.weight_CD, model.top.weight)


def test_head_of_computed_weights_is_found():
    model = Ends(nn.Identity())
    parametrizations.weight_norm(model.top)
    found, head = find_head(model.eval(), lambda: run(model, torch.randn(4, 3, 2, 2)))
    assert found == "top"
    assert torch.equal(head.weight_CD, model.top.weight)


# ------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("resnet8x4", num_classes=5, in_channels=3).eval()


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def of_module(model, name, images, precision="float32"):
    """What a module gives, copied at once: the plain way."""
    outputs = []
    module = model.get_submodule(name)
    hook = module.register_forward_hook(
        lambda _m, _i, output: outputs.append(output.float().clone())
    )
    run(model, images, precision)
    hook.remove()
    return outputs[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_are_what_modules_give_in_any_precision_and_layout(network, precision, layout):
    images = IMAGES.contiguous(memory_format=layout)
    model = network.to(memory_format=layout)
    taps = [
        FeatureSpec("layer2"),
        FeatureSpec("layer3.0", 2),
        FeatureSpec("layer1", 1),
        FeatureSpec("fc"),
    ]
    found = heard(model, images, taps, precision)
    assert list(found) == ["layer1", "layer2", "layer3.0", "fc"]  # as they are called
    assert {name: tuple(one.shape[1:]) for name, one in found.items()} == {
        "layer1": (64,), "layer2": (128, 8, 8), "layer3.0": (256, 2, 2), "fc": (5,),
    }  # fmt: skip
    plain = {name: of_module(model, name, images, precision) for name in found}
    assert torch.equal(found["layer2"], plain["layer2"])
    assert torch.equal(found["fc"], plain["fc"])
    pooled = plain["layer3.0"].unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    assert torch.allclose(found["layer3.0"], pooled, atol=1e-6)
    assert torch.allclose(found["layer1"], plain["layer1"].mean((2, 3)), atol=1e-6)
    assert all(one.is_contiguous() and one.dtype == torch.float32 for one in found.values())


def test_listening_changes_no_logit_and_leaves_nothing_behind(network):
    alone = run(network, IMAGES)
    with extract_features(network, [FeatureSpec("layer1"), FeatureSpec("fc")], head="fc") as seen:
        assert torch.equal(run(network, IMAGES), alone)
    assert seen.head_input_BD.shape == (4, 256)
    assert hooks(network) == 0


def test_what_later_layers_do_in_place_is_not_heard():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2, 5))
    images = torch.randn(4, 3, 1, 1)
    plain = model[0](images)
    assert (plain < 0).any()
    assert torch.equal(heard(model, images, [FeatureSpec("0")])["0"], plain)


def test_tokens_are_heard():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(16, 7), nn.Flatten(), nn.Linear(21, 5))
    assert heard(model, torch.randn(2, 3, 4, 4), [FeatureSpec("1")])["1"].shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (FeatureSpec("layr3"), "has no module 'layr3': did you mean 'layer3'"),
        (
            FeatureSpec("layer3.0.conv9"),
            "has no module 'layer3.0.conv9': did you mean 'layer3.0.conv2'",
        ),
        (
            FeatureSpec("stage"),
            "has no module 'stage': .* 'conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'fc'",
        ),
        (
            FeatureSpec("fc", 2),
            "'fc' pooled to 2 x 2, but it gives a tensor of shape .B, 5.: pooling wants",
        ),
        (
            FeatureSpec("layer3", 5),
            "'layer3' pooled to 5 x 5, but it gives a tensor of shape .B, 256, 4, 4.",
        ),
    ],
)
def test_module_that_will_not_do_is_refused_and_what_would_is_named(network, tap, message):
    with pytest.raises(ConfigError, match=message):
        heard(network, IMAGES, [tap])
    assert hooks(network) == 0


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.shared, self.idle = Pair(), nn.Linear(12, 12), nn.Linear(1, 1)

    def forward(self, images):
        return self.pair(self.shared(self.shared(images.flatten(1))))[0]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 5)

    def forward(self, values):
        return self.inner(values), values


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pair", "'pair' of the teacher gives a tuple, wanted one tensor: .*'inner' are inside"),
        ("shared", "'shared' is called more than once in a forward pass"),
        ("idle", "'idle' takes no part in the teacher's forward pass"),
    ],
)
def test_module_without_one_output_is_refused(name, message):
    model = Odd()
    with pytest.raises(ConfigError, match=message):
        heard(model, torch.randn(2, 3, 2, 2), [FeatureSpec(name)])
    assert hooks(model) == 0
    assert heard(model, torch.randn(2, 3, 2, 2), [FeatureSpec("pair.inner")])[
        "pair.inner"
    ].shape == (2, 5)
