import copy
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdscale.errors import ModelError, WeightsError
from kdscale.models.registry import check_model, create_model, known_models, num_parameters
from kdscale.models.weights import load_weights

torch.set_num_threads(1)


def create(name, num_classes=10, in_channels=3, **options):
    return create_model(name, num_classes=num_classes, in_channels=in_channels, options=options)


@pytest.mark.parametrize("name", known_models())
def test_every_known_model_gives_logits(name):
    grey = name.startswith("mnist")
    channels, size = (1, 28) if grey else (3, 32)
    model = create(name, num_classes=7, in_channels=channels)
    check_model(model, num_classes=7, channels=channels, size=size)
    assert model.training


def test_known_models_are_sorted_and_spelled_with_hyphens():
    names = known_models()
    assert names == sorted(names)
    assert "cifar10-deepnn" in names
    assert not any("_" in name for name in names)


def test_reference_model_takes_options():
    model = create("mnist-mlp", in_channels=1, hidden=16)
    assert num_parameters(model) == 784 * 16 + 16 + 16 * 10 + 10


def test_unknown_option_is_named_with_the_nearest():
    with pytest.raises(ModelError, match=r"no option 'hiden' \(did you mean hidden\?\)"):
        create("mnist-mlp", hiden=16)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layer_of_no_width_is_refused_by_name():
    model = create_model("mnist-mlp", num_classes=10, in_channels=1, options={"hidden": 0})
    with pytest.raises(ModelError, match=r"layer '1' of the student has no weights"):
        check_model(model, num_classes=10, channels=1, size=28)


def test_option_of_a_model_without_options_is_refused():
    with pytest.raises(ModelError, match=r"no option 'depth'; its options: none"):
        create("resnet20", depth=3)


def test_class_count_is_not_an_option():
    with pytest.raises(ModelError, match="num_classes is no option, it follows from the data set"):
        create_model("resnet20", num_classes=10, in_channels=3, options={"num_classes": 5})


def test_unknown_name_is_answered_with_the_nearest_and_the_forms():
    with pytest.raises(ModelError) as error:
        create("cifar10-deepn")
    message = str(error.value)
    assert "no model 'cifar10-deepn' (did you mean cifar10-deepnn" in message
    for form in ("torchvision/NAME", "timm/NAME", "transformers/HUB", "module.path:factory"):
        assert form in message


# --------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("resnet18", 10, 11_181_642),
        ("resnet18", 200, 11_279_112),
        ("resnet50", 200, 23_917_832),
    ],
)
def test_torchvision_model_has_the_published_parameter_count(name, num_classes, count):
    assert num_parameters(create(f"torchvision/{name}", num_classes)) == count


def test_torchvision_model_passes_options_to_its_builder():
    model = create("torchvision/resnet18", zero_init_residual=True)
    assert not model.layer1[0].bn2.weight.any()


def test_torchvision_unknown_option_is_named():
    with pytest.raises(ModelError, match=r"refused its arguments .*'depth'"):
        create("torchvision/resnet18", depth=3)


def test_torchvision_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"no classifier 'resnet19' \(did you mean resnet18"):
        create("torchvision/resnet19")


def test_torchvision_model_for_grey_pixels_is_refused():
    with pytest.raises(ModelError, match="takes 3 channels, 1 are wanted"):
        create("torchvision/resnet18", in_channels=1)


@pytest.fixture
def trained_resnet18(tmp_path, monkeypatch):
    """Weights for 1000 classes where torchvision keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = create("torchvision/resnet18", num_classes=1000).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "resnet18-f37072fd.pth")
    return state


def test_torchvision_weights_fill_all_but_a_head_of_other_classes(trained_resnet18):
    model = create("torchvision/resnet18", num_classes=5, weights="DEFAULT")
    assert torch.equal(model.layer4[1].conv2.weight, trained_resnet18["layer4.1.conv2.weight"])
    assert model.fc.out_features == 5


def test_torchvision_weights_keep_a_head_of_the_same_classes(trained_resnet18):
    model = create("torchvision/resnet18", num_classes=1000, weights="IMAGENET1K_V1")
    assert torch.equal(model.fc.weight, trained_resnet18["fc.weight"])


def test_torchvision_unknown_weights_are_answered_with_the_known():
    with pytest.raises(ModelError, match="no weights 'IMAGENET', wanted one of IMAGENET1K_V1"):
        create("torchvision/resnet18", weights="IMAGENET")


# --------------------------------------------------------------------------- timm


def test_timm_model_has_the_requested_classes_and_channels():
    model = create("timm/resnet10t", num_classes=7, in_channels=1)
    check_model(model, num_classes=7, channels=1, size=32)


def test_timm_model_passes_options():
    model = create("timm/resnet10t", drop_rate=0.3)
    assert model.drop_rate == 0.3


def test_timm_unknown_option_is_named():
    with pytest.raises(ModelError, match=r"refused its arguments .*'no_such_option'"):
        create("timm/resnet10t", no_such_option=1)


def test_timm_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"timm has no model 'resnet10x' \(did you mean resnet10t"):
        create("timm/resnet10x")


def test_timm_weights_out_of_reach_are_reported(monkeypatch):
    def unreachable(**kwargs):
        raise RuntimeError("no pretrained weights exist\nand more")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(
        ModelError, match=r"cannot be created: no pretrained weights exist and more$"
    ):
        create("timm/resnet10t", pretrained=True)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_missing_library_is_answered_with_the_extra_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=rf'needs {library} .*pip install "kdscale\[models\]"'):
        create(f"{library}/resnet10t")


# --------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A tiny ViT classifier of 5 classes as save_pretrained writes it."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        num_labels=5,
    )
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_transformers_model_gives_the_logits_of_its_classifier(vit_folder):
    from transformers import ViTForImageClassification

    model = create(f"transformers/{vit_folder}", num_classes=5)
    check_model(model, num_classes=5, channels=3, size=32, what="teacher")
    plain = ViTForImageClassification.from_pretrained(vit_folder).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain(images).logits)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet20", {}, (2, 64)),
        ("torchvision/resnet18", {}, (2, 512)),
        ("timm/resnet10t", {}, (2, 512)),
        ("timm/resnet10t", {"global_pool": ""}, (2, 512, 1, 1)),
        ("timm/vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, (2, 192)),
    ],
)
def test_model_of_no_classes_gives_an_embedding_or_a_map(name, options, shape):
    model = create(name, num_classes=0, **options)
    check_model(model, num_classes=None, channels=3, size=32, what="teacher")
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == shape


def test_option_of_no_classes_wins_over_the_data_set():
    model = create_model("resnet20", num_classes=10, in_channels=3, options={"num_classes": 0})
    check_model(model, num_classes=None, channels=3, size=32)
    with pytest.raises(ModelError, match="num_classes is no option"):
        create_model("resnet20", num_classes=10, in_channels=3, options={"num_classes": 7})
    with pytest.raises(ModelError, match="cannot remove its classifier"):
        create("torchvision/squeezenet1_1", num_classes=0)


def test_transformers_model_of_no_classes_is_the_backbone(vit_folder):
    from transformers import AutoModel

    with pytest.raises(ModelError, match=r"no weights for (vit\.)?pooler.dense.*add_pooling_layer"):
        create(f"transformers/{vit_folder}", num_classes=0)
    model = create(f"transformers/{vit_folder}", num_classes=0, add_pooling_layer=False)
    plain = AutoModel.from_pretrained(vit_folder, add_pooling_layer=False).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain(images).last_hidden_state.mean(1))


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "ConvNext", "Swin"])
def test_weights_that_save_pretrained_wrote_are_taken_under_the_librarys_names(tmp_path, kind):
    import transformers

    sizes = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 16, "image_size": 32, "patch_size": 16},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                   "layer_type": "basic"},
        "ConvNext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
                 "num_heads": [1, 2], "window_size": 4},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes[kind], num_labels=5)
    trained = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    trained.save_pretrained(tmp_path)
    model = create(f"transformers/{tmp_path}", num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        load_weights(tmp_path / "model.safetensors", model)
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(model.eval()(images), trained(images).logits)


def test_transformers_weights_of_other_classes_or_names_are_refused(vit_folder, tmp_path):
    model = create(f"transformers/{vit_folder}", num_classes=5)
    state = load_file(vit_folder / "model.safetensors")
    save_file({**state, "more": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match="missing nothing; unexpected more"):
        load_weights(tmp_path / "more.safetensors", model)
    head = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in state.items()
            if name.startswith("classifier")}  # fmt: skip
    save_file(state | head, tmp_path / "head.safetensors")
    with pytest.raises(WeightsError, match="have a head for 10 classes, the data set has 5"):
        load_weights(tmp_path / "head.safetensors", model)


def test_transformers_model_keeps_its_names_and_trains_in_float32(vit_folder):
    from transformers import ViTForImageClassification

    model = create(f"transformers/{vit_folder}", num_classes=5)
    plain = ViTForImageClassification.from_pretrained(vit_folder)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_transformers_model_still_gives_logits_when_copied(vit_folder):
    model = copy.deepcopy(create(f"transformers/{vit_folder}", num_classes=5))
    check_model(model, num_classes=5, channels=3, size=32)


def test_transformers_head_of_other_classes_is_refused(vit_folder):
    with pytest.raises(ModelError, match="gives 5 classes, the data set has 10"):
        create(f"transformers/{vit_folder}", num_classes=10)


def test_transformers_new_head_must_be_requested(vit_folder):
    with pytest.raises(ModelError, match="cannot be loaded"):
        create(f"transformers/{vit_folder}", num_classes=10, num_labels=10)


def test_transformers_new_head_is_made_on_request(vit_folder):
    options = {"num_labels": 10, "ignore_mismatched_sizes": True}
    model = create(f"transformers/{vit_folder}", num_classes=10, **options)
    check_model(model, num_classes=10, channels=3, size=32)


def test_transformers_model_without_a_trained_head_is_refused(vit_folder, tmp_path):
    from transformers import ViTModel

    ViTModel.from_pretrained(vit_folder).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no weights for classifier\.bias"):
        create(f"transformers/{tmp_path}", num_classes=2, num_labels=2)


def test_transformers_model_of_other_channels_is_refused(vit_folder):
    with pytest.raises(ModelError, match="takes 3 channels, 1 are wanted"):
        create(f"transformers/{vit_folder}", num_classes=5, in_channels=1)


def test_transformers_unknown_option_is_named(vit_folder):
    with pytest.raises(ModelError, match=r"refused its arguments .*no_such_option"):
        create(f"transformers/{vit_folder}", num_classes=5, no_such_option=1)


def test_transformers_missing_folder_is_reported(tmp_path):
    with pytest.raises(ModelError, match="wanted a hub id, or a folder that save_pretrained wrote"):
        create(f"transformers/{tmp_path}/nowhere")


# --------------------------------------------------------------------------- factories

FACTORIES = """
from torch import nn

def plain():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def sized(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, width), nn.Linear(width, num_classes))

def anything(**arguments):
    model = nn.Identity()
    model.arguments = arguments
    return model

class Net(nn.Linear):
    def __init__(self, num_classes, in_channels):
        super().__init__(in_channels, num_classes)

def number():
    return 3

constant = 5
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text(FACTORIES)
    yield tmp_path
    sys.modules.pop("my_models", None)


@pytest.mark.usefixtures("factories")
def test_factory_of_the_current_folder_is_called():
    check_model(create("my_models:plain"), num_classes=10, channels=3, size=8)


@pytest.mark.usefixtures("factories")
def test_model_that_takes_its_shape_from_the_first_forward_trains_after_the_check():
    model = create("my_models:plain")
    check_model(model, num_classes=10, channels=3, size=8)
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    assert model[1].weight.grad is not None


@pytest.mark.usefixtures("factories")
def test_factory_gets_the_arguments_its_signature_has_and_the_options():
    model = create("my_models:sized", num_classes=6, width=9)
    assert model[1].out_features == 9
    assert model[2].out_features == 6
    everything = create("my_models:anything", num_classes=6, in_channels=1, depth=2)
    assert everything.arguments == {"num_classes": 6, "in_channels": 1, "depth": 2}


@pytest.mark.usefixtures("factories")
def test_factory_can_be_a_class():
    assert create("my_models:Net", num_classes=4, in_channels=2).weight.shape == (4, 2)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("my_models:sizd", {}, r"no function 'sizd' \(did you mean sized"),
        ("my_models:constant", {}, "no function 'constant'"),
        ("my_models:sized", {"widht": 3}, r"no option 'widht' \(did you mean width"),
        ("my_models:sized", {"width": "wide"}, "refused its arguments .*width='wide'"),
        ("my_models:number", {}, "returned int, wanted a torch nn.Module"),
        ("no_such_module:plain", {}, "'no_such_module' cannot be imported .*importable here"),
        (":plain", {}, "':plain' is not of the form module.path:factory"),
    ],
)
def test_factory_that_cannot_be_used_is_reported(name, options, message):
    with pytest.raises(ModelError, match=message):
        create(name, **options)


def test_factory_module_with_a_syntax_error_is_reported(factories):
    (factories / "my_models.py").write_text("def broken(:\n")
    with pytest.raises(ModelError, match=r"cannot be imported .*my_models\.py, line 1"):
        create("my_models:broken")


# --------------------------------------------------------------------------- check_model


class Gives(nn.Module):
    """Gives what `output(pixels)` returns."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, pixels):
        return self.output(pixels)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: torch.zeros(2, 100), "teacher gives 100 classes, the data set has 10: "),
        (lambda x: (x, x), r"teacher gives a tuple, wanted logits of shape \[B, 10\]"),
        (lambda x: x, r"tensor of shape \[2, 3, 8, 8\], wanted logits"),
        (lambda x: torch.zeros(2, 10, dtype=torch.int64), r"a torch.int64 tensor"),
        (lambda x: torch.zeros(1, 10), "teacher gives 1 row of logits for 2 images"),
    ],
)
def test_check_model_refuses_what_is_no_logits_of_the_data_set(output, message):
    with pytest.raises(ModelError, match=message):
        check_model(Gives(output), num_classes=10, channels=3, size=8, what="teacher")


def test_check_model_refuses_a_model_of_another_image_size():
    model = create("cifar10-lightnn")
    with pytest.raises(ModelError, match="student does not take images of 3 channels and 64 x 64"):
        check_model(model, num_classes=10, channels=3, size=64)


def test_check_model_lets_a_device_out_of_memory_pass():
    def exhausted(pixels):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        check_model(Gives(exhausted), num_classes=10, channels=3, size=8)


def test_check_model_leaves_modes_buffers_and_the_generator_alone():
    model = create("resnet20")
    model.layer1.eval()  # a frozen stage stays frozen
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    noisy = nn.Sequential(model, Gives(lambda logits: logits + torch.rand(1)))
    check_model(noisy, num_classes=10, channels=3, size=32)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_check_model_restores_modes_when_the_forward_fails():
    model = create("cifar10-lightnn")
    with pytest.raises(ModelError):
        check_model(model, num_classes=10, channels=1, size=32)
    assert all(module.training for module in model.modules())


def test_num_parameters_counts_what_is_trained_and_shared_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model.append(nn.Linear(2, 2).requires_grad_(False))
    assert num_parameters(model) == 9
