"""Weights to begin from: all but a head for other classes, from a file or from torchvision."""

import hashlib
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from kdscale.errors import DownloadError, ModelError, WeightsError
from kdscale.models.pretrained import adopt, read_pretrained
from kdscale.models.registry import create_model
from kdscale.models.torchvision_weights import implied_options
from kdscale.models.weights import tensors_sha256

NAME = "torchvision/shufflenet_v2_x0_5"  # of 0.4 million parameters but for its head
FILE = "shufflenetv2_x0.5-f707e7126e.pth"


def create(num_classes, name=NAME):
    return create_model(name, num_classes=num_classes, in_channels=3)


def adopted(tensors, num_classes=5, **more):
    """A new model that has adopted tensors."""
    model = create(num_classes)
    adopt(model, tensors, source="weights.safetensors", **more)
    return model.state_dict()


@pytest.fixture(scope="module")
def trained():
    """The tensors of a model of 1000 classes."""
    state = create(1000).state_dict()
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """Where torch keeps what it downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def serve(monkeypatch, url):
    """Let torchvision's weights be at a URL of ours."""
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    monkeypatch.setattr(Weights.IMAGENET1K_V1.value, "url", url)


def test_resnet18_of_1000_classes_gives_all_but_its_head_to_one_of_10(tmp_path):
    teacher = create(1000, "torchvision/resnet18").state_dict()
    save_file(teacher, tmp_path / "resnet18.safetensors")
    student = create(10, "torchvision/resnet18")
    before = student.fc.weight.clone()
    tensors = read_pretrained(str(tmp_path / "resnet18.safetensors"), "torchvision/resnet18")
    new = adopt(student, tensors, source="resnet18.safetensors")
    assert new == ["fc.weight", "fc.bias"]
    assert torch.equal(student.fc.weight, before)
    state = student.state_dict()
    assert all(torch.equal(state[name], teacher[name]) for name in teacher if name not in new)


def test_head_for_the_same_classes_is_taken_too(trained):
    found = adopted(trained, num_classes=1000)
    assert all(torch.equal(found[name], trained[name]) for name in trained)


def test_file_may_end_before_the_head(trained):
    found = adopted({name: t for name, t in trained.items() if not name.startswith("fc.")})
    assert torch.equal(found["conv5.0.weight"], trained["conv5.0.weight"])


def test_prefixes_are_renamed(trained):
    theirs = {f"backbone.{name}": tensor for name, tensor in trained.items()}
    found = adopted(theirs, rename={"backbone.": ""})
    assert torch.equal(found["conv1.0.weight"], trained["conv1.0.weight"])


def test_counters_of_batch_norm_may_be_missing(trained):
    found = adopted({n: t for n, t in trained.items() if not n.endswith("num_batches_tracked")})
    assert torch.equal(found["conv1.1.running_mean"], trained["conv1.1.running_mean"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.0.weight": None}, r"missing or of another shape conv1\.0\.weight; unexpected no"),
        ({"conv1.0.weight": torch.zeros(24, 1, 3, 3)}, r"another shape conv1\.0\.weight, fc\.we"),
        ({"conv9.weight": torch.zeros(1)}, r"unexpected conv9\.weight"),
        ({"conv1.0.weight": torch.full((24, 3, 3, 3), torch.nan)}, r"NaN or infinity in conv1\.0"),
    ],
)
def test_tensors_of_another_model_are_refused_and_the_model_left_as_it_is(trained, change, message):
    theirs = {name: t for name, t in (trained | change).items() if t is not None}
    model = create(5)
    before = tensors_sha256(model)
    with pytest.raises(WeightsError, match=message):
        adopt(model, theirs, source="weights.safetensors")
    assert tensors_sha256(model) == before


def test_weights_of_torchvision_are_found_where_torch_keeps_them(trained, torch_home):
    torch_home.mkdir(parents=True)
    torch.save(trained, torch_home / FILE)
    found = read_pretrained("torchvision:IMAGENET1K_V1", NAME)
    assert all(torch.equal(found[name], trained[name]) for name in trained)


def test_weights_of_torchvision_are_downloaded_once(trained, torch_home, tmp_path, monkeypatch):
    torch.save(trained, tmp_path / "served.pth")
    digest = hashlib.sha256((tmp_path / "served.pth").read_bytes()).hexdigest()
    served = (tmp_path / "served.pth").rename(tmp_path / f"net-{digest[:8]}.pth")
    serve(monkeypatch, served.as_uri())
    read_pretrained("torchvision:DEFAULT", NAME)
    served.unlink()
    found = read_pretrained("torchvision:DEFAULT", NAME)
    assert torch.equal(found["fc.weight"], trained["fc.weight"])
    assert [path.name for path in torch_home.iterdir()] == [served.name]


def test_download_of_other_content_is_refused_and_not_stored(torch_home, tmp_path, monkeypatch):
    (tmp_path / "net-01234567.pth").write_bytes(b"something else")
    serve(monkeypatch, (tmp_path / "net-01234567.pth").as_uri())
    with pytest.raises(DownloadError, match=r"cannot be downloaded \(invalid hash"):
        read_pretrained("torchvision:IMAGENET1K_V1", NAME)
    assert not list(torch_home.iterdir())


def test_weights_out_of_reach_say_where_to_put_the_file(torch_home, tmp_path, monkeypatch):
    serve(monkeypatch, (tmp_path / "nothing.pth").as_uri())
    with pytest.raises(DownloadError, match=rf"nothing\.pth cannot be .*put the .*{torch_home}"):
        read_pretrained("torchvision:IMAGENET1K_V1", NAME)


def test_damaged_download_is_named(torch_home):
    torch_home.mkdir(parents=True)
    (torch_home / FILE).write_bytes(b"PK damaged")
    with pytest.raises(WeightsError, match=rf"{FILE} \(10 bytes\) is damaged"):
        read_pretrained("torchvision:IMAGENET1K_V1", NAME)


def test_integers_are_refused(trained):
    theirs = trained | {"conv1.0.weight": (trained["conv1.0.weight"] * 100).to(torch.int8)}
    with pytest.raises(WeightsError, match=r"integer values \(int8\) in conv1\.0\.weight"):
        adopted(theirs)


def test_unknown_weights_are_answered_with_the_known():
    with pytest.raises(ModelError, match="no weights 'IMAGENET', wanted one of IMAGENET1K_V1"):
        read_pretrained("torchvision:IMAGENET", NAME)


# --------------------------------------------------------------------------- torchvision's builders

FEW = ["googlenet", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1"]
"""Of few parameters; one that normalises its input again, one that asks for a version."""


def smallest_of_each_family():
    """The model of fewest parameters of each file of torchvision's classifiers."""
    sizes = {}
    for name in models.list_models(module=models):
        weights = models.get_model_weights(name).DEFAULT
        family = models.get_model_builder(name).__module__
        sizes.setdefault(family, []).append((weights.meta["num_params"], name))
    return [min(family)[1] for family in sizes.values()]


@pytest.fixture
def store_weights(torch_home):
    """Writes random weights of a model of torchvision to where it looks for its own."""

    def store(name, change=lambda state: state):
        weights = models.get_model_weights(name).DEFAULT
        more = {"image_size": weights.meta["min_size"][0]} if name.startswith("vit_") else {}
        more |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch_home.mkdir(parents=True)
        model = models.get_model(name, weights=None, **more)
        torch.save(change(model.state_dict()), torch_home / weights.url.rpartition("/")[2])
        return weights

    return store


def old_names(state):
    """The names of torchvision's own file of a DenseNet, which no module can have any more."""
    return type(state)(
        (re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])", r"\1.\2", name), tensor)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")  # nor had they these
    )


def answers_as_torchvision_does(name, weights):
    theirs = models.get_model(name, weights=weights).eval()
    options = {"weights": weights.name}
    ours = create_model(
        f"torchvision/{name}", num_classes=1000, in_channels=3, options=options
    ).eval()
    size = max(weights.meta["min_size"][0], 224 if not name.startswith("inception") else 299)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        implied = implied_options(f"torchvision/{name}", options)
        again = create_model(
            f"torchvision/{name}", num_classes=1000, in_channels=3, options=implied
        ).eval()
        again.load_state_dict(ours.state_dict())
        assert torch.equal(again(images), ours(images))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", FEW)
def test_model_with_weights_answers_as_torchvisions_own_does(store_weights, name):
    answers_as_torchvision_does(name, store_weights(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", smallest_of_each_family())
def test_every_family_with_weights_answers_as_torchvisions_own_does(store_weights, name):
    answers_as_torchvision_does(name, store_weights(name))
    other = create_model(
        f"torchvision/{name}", num_classes=3, in_channels=3, options={"weights": "DEFAULT"}
    )
    assert other.state_dict().keys()


@pytest.mark.slow
def test_old_names_of_torchvisions_files_are_its_own_matter(store_weights):
    answers_as_torchvision_does("densenet121", store_weights("densenet121", old_names))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_new_head_keeps_what_the_weights_expect_of_the_input(store_weights):
    store_weights("googlenet")
    model = create_model(
        "torchvision/googlenet", num_classes=3, in_channels=3, options={"weights": "DEFAULT"}
    )
    assert model.transform_input


def test_file_of_another_model_in_torchs_folder_is_refused(store_weights, torch_home):
    weights = store_weights("squeezenet1_1")
    path = torch_home / weights.url.rpartition("/")[2]
    path.rename(torch_home / FILE)
    with pytest.raises(WeightsError, match=rf"{FILE} does not hold DEFAULT of {NAME}"):
        create_model(NAME, num_classes=1000, in_channels=3, options={"weights": "DEFAULT"})
