"""A model that a file names takes no more memory than the file's weights explain."""

import json

import pytest
import torch

from kdscale import load_student
from kdscale.errors import ModelError
from kdscale.models.bounded_creation import BoundedCreation, TooLargeError, bytes_for
from kdscale.models.registry import create_model
from kdscale.models.student_files import sums_of
from kdscale.models.weights import save_weights

CHANNELS = {"mnist-mlp": 1}
TOO_MUCH = "take the file that kdscale wrote, or where you trust whoever wrote it, add --trust-code"


def stated(name, **options):
    values = [0.5] * CHANNELS.get(name, 3)
    preprocess = {"mean": values, "std": values, "size": None}
    return {"model": name, "num_classes": 4, "preprocess": preprocess, "options": options}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnist-mlp", {"hidden": 10**6}),
        ("mnist-mlp", {"hidden": 10**9}),
        ("torchvision/resnet50", {"width_per_group": 10**5}),
        ("timm/vit_tiny_patch16_224", {"depth": 10**7}),
        ("timm/vit_tiny_patch16_224", {"depth": 10**6, "embed_dim": 768}),
        ("timm/vit_tiny_patch16_224", {"embed_dim": 10**9}),
        ("timm/vit_tiny_patch16_224", {"img_size": 160_000}),
        ("timm/vit_tiny_patch16_224", {"mlp_ratio": 1e12}),
        ("timm/resnet18", {"layers": [2, 10**7, 2, 2]}),
    ],
    ids=str,
)
def test_model_without_end_is_refused_before_it_takes_memory(tmp_path, name, options):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    file = tmp_path / "student.safetensors"
    save_weights(file, torch.nn.Linear(2, 2), metadata=stated(name, **options))
    with pytest.raises(ModelError, match=TOO_MUCH) as refused:
        load_student(file)
    assert str(file) in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    "changed",
    [{"num_labels": 10**8}, {"num_hidden_layers": 10**7}, {"hidden_size": 10**6}],
    ids=str,
)
def test_configuration_without_end_is_refused(tmp_path, changed):
    pytest.importorskip("transformers")
    config = {"model_type": "vit", "image_size": 32, "hidden_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 8, **changed}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    metadata = stated("transformers/.") | {"files": sums_of(tmp_path)}
    save_weights(file, torch.nn.Linear(2, 2), metadata=metadata)
    with pytest.raises(ModelError, match=TOO_MUCH):
        load_student(tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "torchvision/resnet18", "timm/vit_tiny_patch16_224"])
def test_model_is_created_the_same_within_its_bounds(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    expected = create_model(name, num_classes=4, in_channels=3).state_dict()
    torch.manual_seed(0)
    with BoundedCreation(bytes_for(sum(one.nbytes for one in expected.values()))):
        found = create_model(name, num_classes=4, in_channels=3).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_tables_filled_number_by_number_count_less_than_layers(monkeypatch):
    """MaxViT-XL fills its tables of positions by 200,000 operations on few tensors."""
    monkeypatch.setattr("kdscale.models.bounded_creation._MOST_OPERATIONS", 1000)
    with BoundedCreation(bytes_for(0)):
        table = torch.zeros(8, 8)
        for number in range(80):
            table[number % 8, 0] = 1
    with pytest.raises(TooLargeError), BoundedCreation(bytes_for(0)):
        [torch.empty(1) for _ in range(80)]
