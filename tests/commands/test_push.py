"""Students on the Hub: pushed, pulled and loaded, by kdscale and by the libraries of their models.

The Hub's own client talks to a server of the tests.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from kdscale import load_student
from kdscale.errors import ConfigError, ModelError, StorageError, WeightsError
from kdscale.models.deployable import Deployable
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model
from kdscale.models.student_folder import write_student_folder
from kdscale.models.weights import save_weights

URL, NAME = "hf://me/student", "me/student"


@pytest.fixture(scope="module")
def train_student(load_table, shared_root):
    """Trains a student for a step, without a teacher, on images of 16 x 16 pixels or of `side`."""
    from kdscale.commands.train import train
    from kdscale.experiment import Experiment, Locations
    from kdscale.runs.run_spec import RunSpec

    def trained(folder, side=16, **student):
        given = {"options": {}, "input": {"mean": [0.4], "std": [0.25]}, **student}
        recipe = load_table(
            student={**given, "train": {"epochs": 1, "global_batch_size": 64}},
            data={"clean": [{"name": "resize", "size": side + 2},
                            {"name": "center_crop", "size": side}]},
            views={"operations": [{"name": "resize", "size": [side, side]}], "count": 1},
        )  # fmt: skip
        locations = Locations(run=folder, cache_root=shared_root)
        train(Experiment(recipe, locations), RunSpec("student", "none", 0))
        return folder

    return trained


@pytest.fixture(scope="module")
def run(train_student, tmp_path_factory):
    """A finished run of one of kdscale's own models."""
    return train_student(tmp_path_factory.mktemp("push") / "run", model="resnet8x4")


@pytest.fixture
def noise():
    return torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)


def pushed(kdscale, run, *more):
    done = kdscale("push", run, URL, "--json", *more)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_pushed_student_is_loaded_from_hub_folder_and_run_alike(kdscale, run, hub, tmp_path, noise):
    assert pushed(kdscale, run)["files"] == ["README.md", "model.safetensors"]
    assert hub.repository(NAME).private
    done = kdscale("pull", URL, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "resnet8x4"
    expected = load_student(run / "weights.safetensors")
    for place in (URL, tmp_path / "student", str(run)):
        student = load_student(place)
        assert torch.equal(student(noise), expected(noise))
        assert student.class_names == expected.class_names
    hub.requests.clear()
    (tmp_path / "student" / "README.md").unlink()
    assert kdscale("pull", URL).exit_code == 0, "the same command completes a folder"
    assert (tmp_path / "student" / "README.md").is_file()
    assert hub.downloads() == []


def test_student_is_found_without_a_network_once_it_was_loaded(
    kdscale, run, hub, noise, monkeypatch
):
    pushed(kdscale, run)
    expected = load_student(URL)(noise)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(load_student(URL)(noise), expected)


def test_predict_is_the_same_from_run_folder_and_hub(kdscale, run, hub, tmp_path, photo):
    pushed(kdscale, run)
    assert kdscale("pull", URL, "there").exit_code == 0
    found = [kdscale("predict", place, photo, "--json") for place in (run, "there", URL)]
    assert [one.exit_code for one in found] == [0, 0, 0], found[-1].stderr
    assert found[0].stdout == found[1].stdout == found[2].stdout


@pytest.fixture
def photo(tmp_path):
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((40, 25)).save(path)
    return path


@pytest.mark.launch
def test_address_of_the_hub_is_that_of_its_environment_variable(
    kdscale_process, run, hub, photo, tmp_path
):
    def command(*words, endpoint=hub.url):
        return kdscale_process(
            *words, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1",
            HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip

    for words in (("push", run, URL), ("pull", URL), ("predict", URL, photo)):
        done = command(*words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "student" / "model.safetensors").is_file()
    lost = command("pull", "hf://me/other", endpoint="http://127.0.0.1:9")
    assert lost.returncode == 1
    assert "check the name, the network and the token" in lost.stderr.splitlines()[-1]
    assert "Traceback" not in lost.stderr


# ------------------------------------------------------------------ other libraries


def test_student_of_timm_is_created_by_timm(kdscale, train_student, hub, tmp_path, noise):
    timm = pytest.importorskip("timm")
    run = train_student(tmp_path / "run", model="timm/test_resnet")
    assert pushed(kdscale, run)["files"] == ["README.md", "config.json", "model.safetensors"]
    assert kdscale("pull", URL, "there").exit_code == 0
    student = load_student(URL)
    model = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True).eval()
    assert torch.equal(model(student.preprocess(noise)), student(noise))
    settings = model.pretrained_cfg
    assert tuple(settings["mean"]) == (0.4,)
    assert tuple(settings["input_size"]) == (1, 16, 16)
    assert (settings["crop_mode"], settings["crop_pct"]) == ("center", 16 / 18)
    assert tuple(settings["label_names"]) == student.class_names
    assert str(tmp_path) not in (tmp_path / "there" / "config.json").read_text()


@pytest.fixture
def vit_folder(tmp_path):
    """A random ViT with a head for 4 classes, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=16, patch_size=8, num_labels=4, num_channels=1,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def transformers_run(train_student, vit_folder, tmp_path):
    return train_student(tmp_path / "run", model=f"transformers/{vit_folder}")


def test_student_of_transformers_is_loaded_by_transformers(
    kdscale, transformers_run, hub, tmp_path, noise
):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    pushed(kdscale, transformers_run)
    assert kdscale("pull", URL, "there").exit_code == 0
    shutil.rmtree(tmp_path / "vit")
    student = load_student(URL)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "there").eval()
    with torch.no_grad():
        assert torch.equal(model(student.preprocess(noise)).logits, student(noise))
    assert tuple(model.config.id2label.values()) == student.class_names
    processor = AutoImageProcessor.from_pretrained(tmp_path / "there")
    assert list(processor.image_mean) == [0.4]
    for path in (tmp_path / "there").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert torch.equal(load_student(tmp_path / "there")(noise), student(noise))


def test_exchanged_configuration_is_refused(kdscale, transformers_run, hub, tmp_path):
    pushed(kdscale, transformers_run)
    files = hub.files(NAME)
    files["config.json"] = files["config.json"].replace(b'"image_size": 16', b'"image_size": 24')
    with pytest.raises(WeightsError, match=r"config\.json is missing or is not of"):
        load_student(URL)
    done = kdscale("pull", URL, "there")
    assert (done.exit_code, "config.json" in done.stderr) == (1, True)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("library", ["timm", "transformers", "kdscale"])
def test_student_without_a_classifier_comes_back_as_its_library_has_it(
    library, vit_folder, tmp_path, noise
):
    name, options = {
        "timm": ("timm/test_resnet", {}),
        "transformers": (f"transformers/{vit_folder}", {"ignore_mismatched_sizes": True}),
        "kdscale": ("resnet8x4", {}),
    }[library]
    torch.manual_seed(0)
    options = {**options, "num_classes": 0}
    model = create_model(name, num_classes=4, in_channels=1, options=options)
    student = Deployable(model, Preprocess((0.4,), (0.25,), None), (), (16, 16))
    about = {"model": name, "options": options, "num_classes": 4, "class_names": list("abcd"),
             "clean": [], "preprocess": student.preprocess.describe()}  # fmt: skip
    write_student_folder(tmp_path / "there", student, about)
    read_back, expected = load_student(tmp_path / "there"), student(noise)
    assert read_back.class_names == ()
    assert expected.shape[1] > 4
    assert torch.equal(read_back(noise), expected)
    if library == "timm":
        timm = pytest.importorskip("timm")
        own = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True).eval()
        assert torch.equal(own(student.preprocess(noise)), expected)
    if library == "transformers":
        from transformers import AutoModel

        own = AutoModel.from_pretrained(tmp_path / "there").eval()
        assert torch.equal(own(student.preprocess(noise)).pooler_output, expected)


# ------------------------------------------------------------------ the card


def test_card_states_origin_and_results_and_no_path_of_this_machine(kdscale, run, hub, tmp_path):
    pushed(kdscale, run, "--license", "apache-2.0")
    card = hub.files(NAME)["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    stated = yaml.safe_load(header)
    assert stated["license"] == "apache-2.0"
    assert stated["library_name"] == "kdscale"
    (result,) = stated["model-index"][0]["results"]
    accuracy = json.loads((run / "result.json").read_text())["top1_accuracy"]
    assert result["metrics"][0]["value"] == pytest.approx(accuracy, abs=1e-4)
    facts = (f"| top-1 accuracy | {accuracy:.4f} |", "| teacher | none |", "`resnet8x4`",
             'load_student("hf://me/student")', "[student.train]", "## Trackers")  # fmt: skip
    for one in facts:
        assert one in text
    assert str(tmp_path) not in card
    assert str(Path.home()) not in card.replace("hf://", "")
    assert str(tmp_path).encode() not in hub.files(NAME)["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("/home/me/data", "…/data"),
        ("~/my data/", "…/my data"),
        ("../teacher.safetensors", "…/teacher.safetensors"),
        ("C:\\Users\\me\\x.toml", "…/x.toml"),
        ("transformers//home/me/vit", "transformers/…/vit"),
        ("from /home/me/x, on 2 GPUs", "from …/x, on 2 GPUs"),
        ("timm/local-dir:/home/me/vit", "timm/local-dir:…/vit"),
        ("file:///home/me/vit", "file://…/vit"),
        ("{/home/me/a,/home/me/b}", "{…/a,…/b}"),
        ("of ~me/x", "of …/x"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("ylecun/mnist", "ylecun/mnist"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("https://host/page", "https://host/page"),
        ("1/2", "1/2"),
    ],
)
def test_paths_are_reduced_to_their_last_part(text, stated):
    from kdscale.local_paths import without_paths

    assert without_paths({"a": [text]}) == {"a": [stated]}


# ------------------------------------------------------------------ what is refused


def test_another_student_and_its_card_are_replaced_only_with_overwrite(kdscale, run, hub, tmp_path):
    pushed(kdscale, run)
    files = hub.files(NAME)
    files["README.md"] = b"mine"
    pushed(kdscale, run)
    assert files["README.md"] == b"mine", "the card of an owner stays"
    save_weights(tmp_path / "other.safetensors", torch.nn.Linear(2, 2), metadata={})
    files["model.safetensors"] = other = (tmp_path / "other.safetensors").read_bytes()
    done = kdscale("push", run, URL)
    assert done.exit_code == 1
    assert f"{URL} holds another model.safetensors" in done.stderr
    assert files["model.safetensors"] == other
    pushed(kdscale, run, "--overwrite")
    assert files["model.safetensors"] != other
    assert files["README.md"].startswith(b"---\n")


def test_damaged_download_is_refused(kdscale, run, hub):
    pushed(kdscale, run)
    data = bytearray(hub.files(NAME)["model.safetensors"])
    data[-1] ^= 1
    hub.files(NAME)["model.safetensors"] = bytes(data)
    with pytest.raises(WeightsError, match="its tensors do not match their checksum"):
        load_student(URL)
    done = kdscale("pull", URL, "there")
    assert (done.exit_code, "do not match their checksum" in done.stderr) == (1, True)


def test_code_that_a_student_names_needs_trust(kdscale, hub, train_student, tmp_path, noise):
    run = train_student(tmp_path / "run", side=8, model="tiny_models:batch_norm")
    refused = kdscale("push", run, URL)
    assert (refused.exit_code, "--trust-code" in refused.stderr) == (1, True)
    pushed(kdscale, run, "--trust-code")
    assert "trust_code=True" in hub.files(NAME)["README.md"].decode()
    assert kdscale("pull", URL, "there").exit_code == 0
    with pytest.raises(ModelError, match="trust_code=True"):
        load_student(URL)
    assert load_student(URL, trust_code=True)(noise[..., :8, :8]).shape == (3, 4)


def test_option_that_is_a_path_is_not_uploaded(kdscale, hub, train_student, tmp_path):
    halt = {"halt": str(tmp_path / "halt")}
    run = train_student(tmp_path / "run", side=8, model="tiny_models:halting_mlp", options=halt)
    done = kdscale("push", run, URL, "--trust-code")
    assert (done.exit_code, "option 'halt' has a path" in done.stderr) == (1, True), done.stderr
    assert hub.repositories == {}


def test_unknown_repository_wrong_file_and_missing_token_are_one_line(
    kdscale, run, hub, monkeypatch, tmp_path, photo
):
    def failed(*command, code=1):
        done = kdscale(*command)
        assert done.exit_code == code
        last = done.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        return last

    assert "hf://me/nothing is not there" in failed("pull", "hf://me/nothing")
    assert "hf://me/nothing is not there" in failed("predict", "hf://me/nothing", photo)
    pushed(kdscale, run)
    weights = hub.files(NAME).pop("model.safetensors")
    assert "has no model.safetensors" in failed("pull", URL, "there")
    hub.files(NAME)["model.safetensors"] = b"<!doctype html>"
    assert "is a web page" in failed("pull", URL, "there")
    assert "holds another model.safetensors" in failed("push", run, URL)
    hub.files(NAME)["model.safetensors"] = weights
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_text("mine")
    assert "is another file than the one to download" in failed("pull", URL, "there")
    assert "is no repository: hf://USER/NAME" in failed("push", run, "hf://datasets/me/x", code=2)
    assert "hf://USER/NAME is wanted" in failed("pull", "me/student", code=2)
    assert "names a revision" in failed("push", run, f"{URL}@v1", code=2)
    monkeypatch.delenv("HF_TOKEN")
    assert "the token" in failed("push", run, "hf://me/other")
    with pytest.raises(ConfigError, match="is no repository"):
        load_student("hf://me")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="check the name, the network and the token") as caught:
        load_student("hf://me/never-loaded")
    assert "\n" not in str(caught.value)


def test_folder_without_a_student_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor weights"):
        load_student(tmp_path)
