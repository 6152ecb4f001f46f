"""What libraries say of their weights: the order of classes, and the preprocessing."""

import json

import pytest
from torch import nn

from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model
from kdscale.models.statements import differs, statement_of

IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


def test_torchvision_states_the_transforms_and_categories_of_its_weights():
    stated = statement_of("torchvision/resnet18", nn.Identity(), {"weights": "IMAGENET1K_V1"})
    assert stated.source == "torchvision's IMAGENET1K_V1"
    assert stated.preprocess == IMAGENET
    assert stated.classes[:2] == ("tench", "goldfish")
    assert len(stated.classes) == 1000


def test_timm_states_the_preprocessing_of_its_weights():
    model = create_model("timm/resnet10t", num_classes=5, in_channels=3)
    stated = statement_of("timm/resnet10t", model, {"pretrained": True})
    assert stated.preprocess.mean == IMAGENET.mean
    assert stated.preprocess.size is not None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision/resnet18", {}),
        ("timm/resnet10t", {"pretrained": False}),
        ("resnet20", {"weights": "DEFAULT"}),
        ("tiny_models:linear", {"pretrained": True}),
    ],
)
def test_nothing_is_stated_of_random_weights(name, options):
    assert statement_of(name, nn.Identity(), options) is None


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}},
         Preprocess((0.1,) * 3, (0.2,) * 3, 32)),
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 40},
          "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
         Preprocess((0.1,) * 3, (0.2,) * 3, 32)),
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": 32, "do_normalize": False},
         Preprocess((0.0,) * 3, (1.0,) * 3, 32)),
        ({"image_mean": [0.1] * 3, "do_rescale": False}, None),
        ({"image_mean": "?"}, None),
        (None, None),
    ],
)  # fmt: skip
def test_transformers_states_what_its_image_processor_does(tmp_path, settings, wanted):

    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = nn.Module()
    model.config = type("Config", (), {"id2label": {"1": "b", "0": "a"}})
    stated = statement_of(f"transformers/{tmp_path}", model, {})
    assert stated.preprocess == wanted
    assert stated.classes == ("a", "b")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Preprocess((0.485, 0.456, 0.407), (0.229, 0.224, 0.225), None), False),
        (Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256), True),
        (Preprocess((0.5, 0.5, 0.5), (0.229, 0.224, 0.225), 224), True),
        (Preprocess((0.5,), (0.25,), 224), True),
    ],
)
def test_rounded_digits_are_no_difference(other, expected):
    assert differs(IMAGENET, other) is expected
