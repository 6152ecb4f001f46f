"""Exported models answer as the run's weights do, wherever they are run."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from kdscale.commands.export import compare
from kdscale.commands.traceable_clean import TraceableClean
from kdscale.data.image_dataset import load_images
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ExportError
from kdscale.experiment import Experiment, Locations
from kdscale.models import formats
from kdscale.models.deployable import Deployable, load_student
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
FORMATS = ["safetensors", "onnx", "pt2"]
GREY = Preprocess((0.4,), (0.25,), None)
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def run(tmp_path_factory, load_table, shared_root):
    """A finished student with batch-norm, whose run kept its best weights too."""
    from kdscale.commands.train import train
    from kdscale.runs.run_spec import RunSpec

    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = load_table(
        data={"validation": 0.25},
        student={"model": "tiny_models:batch_norm", "options": {}, "train": {"epochs": 1}},
    )
    train(
        Experiment(recipe, Locations(run=folder, cache_root=shared_root)),
        RunSpec("student", "none", 0),
    )
    return folder


@pytest.fixture
def pixels(dataset, shared_root):
    """The test images: uint8 [64, 1, 8, 8]."""
    return torch.tensor(load_images(str(dataset), split="test", root=shared_root).pixels)


@pytest.fixture
def exported(kdscale, run, tmp_path, shared_root):
    """Exports the run into `tmp_path/student.FORMAT`; the finished command."""

    def export(name, *more):
        out = ("--out", tmp_path / f"student.{name}", "--cache-root", shared_root)
        return kdscale("export", run, "--format", name, *out, *more)

    return export


loaded = partial(load_student, trust_code=True)


def answers_of(name, path, pixels):
    """As somebody without kdscale asks, where that is possible."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.tensor(session.run(["logits"], {"pixels": pixels.numpy()})[0])
    if name == "pt2":
        return torch.export.load(path).module()(pixels)
    return load_student(path, trust_code=True)(pixels)


def about(name, path):
    """What a file says of itself."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = session.get_modelmeta().custom_metadata_map
    elif name == "pt2":
        extra = {"kdscale.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["kdscale.json"])
    else:
        with safe_open(path, "pt") as file:
            told = file.metadata()
    return {key: value if key == "model" else _value(value) for key, value in told.items()}


def _value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize("name", FORMATS)
def test_exported_file_answers_as_the_run_and_says_what_it_is(
    exported, run, pixels, tmp_path, name, capfd
):
    done = exported(name, "--json")
    assert done.exit_code == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "data",
        "student tiny_models",
    ]
    assert capfd.readouterr() == ("", ""), "libraries say nothing of their own"
    told = json.loads(done.stdout)
    path = tmp_path / f"student.{name}"
    assert told["file"] == str(path)
    assert told["bytes"] == path.stat().st_size
    assert told["num_images"] == 64
    assert told["max_logit_difference"] < 1e-5
    assert told["top1_agreement"] == 1
    student = load_student(run / "weights.safetensors", trust_code=True)
    for size in (1, 5, 64):
        found = answers_of(name, path, pixels[:size])
        assert (found.dtype, found.shape) == (torch.float32, (size, 4))
        torch.testing.assert_close(found, student(pixels[:size]), atol=1e-5, rtol=1e-5)
    stated = about(name, path)
    assert stated["class_names"] == ["centre", "north", "sides", "south"]
    assert stated["preprocess"] == {"mean": [0.4], "std": [0.25], "size": None}
    assert stated["pixels"] == {"dtype": "uint8", "shape": ["batch", 1, 8, 8]}
    left = [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
    assert left == []


def test_student_answers_in_top1_what_its_result_says(run, pixels, dataset, shared_root):
    labels = load_images(str(dataset), split="test", root=shared_root).labels
    student = load_student(run / "weights.safetensors", trust_code=True)
    accuracy = float((student(pixels).argmax(1).numpy() == labels).mean())
    assert accuracy == json.loads((run / "result.json").read_text())["top1_accuracy"]
    assert student.class_names == ("centre", "north", "sides", "south")


def test_best_weights_are_exported_under_a_name_of_their_own(kdscale, run, shared_root):
    done = kdscale("export", run, "--format", "safetensors", "--weights", "best",
                   "--cache-root", shared_root)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert (run / "student-best.safetensors").is_file()


def test_file_that_is_there_is_not_overwritten_unasked(exported, tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_text("precious")
    done = exported("safetensors")
    assert done.exit_code == 1
    assert "--overwrite" in done.stderr
    assert path.read_text() == "precious"
    assert exported("safetensors", "--overwrite").exit_code == 0
    assert path.stat().st_size > 100


def test_file_with_other_logits_is_discarded(exported, tmp_path, monkeypatch):
    from dataclasses import replace

    kind = formats.FORMATS["safetensors"]
    wrong = replace(
        kind, read=lambda path: lambda pixels: load_student(path, trust_code=True)(pixels) + 0.01
    )
    monkeypatch.setitem(formats.FORMATS, "safetensors", wrong)
    done = exported("safetensors")
    assert done.exit_code == 1
    assert "gives other logits" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_with_logits_that_are_not_finite_is_discarded(exported, tmp_path, monkeypatch):
    from dataclasses import replace

    kind = formats.FORMATS["safetensors"]
    wrong = replace(
        kind,
        read=lambda path: lambda pixels: load_student(path, trust_code=True)(pixels) * torch.nan,
    )
    monkeypatch.setitem(formats.FORMATS, "safetensors", wrong)
    assert exported("safetensors").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_interrupted_export_leaves_nothing_behind(exported, tmp_path, monkeypatch):
    from dataclasses import replace

    def interrupted(program, example, about, path):
        path.write_text("half")
        raise KeyboardInterrupt

    kind = replace(formats.FORMATS["onnx"], write=interrupted)
    monkeypatch.setitem(formats.FORMATS, "onnx", kind)
    assert exported("onnx").exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk():
    """Files cannot grow beyond two kilobytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", FORMATS)
def test_full_disk_is_reported_with_the_file_and_leaves_nothing_behind(
    exported, tmp_path, full_disk, name
):
    done = exported(name)
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
    assert f"student.{name}" in done.stderr
    assert "another --format" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_example_is_python_whatever_the_name_of_the_file(
    kdscale, run, pixels, shared_root, tmp_path
):
    out = tmp_path / 'a "good" {0} name.safetensors'
    done = kdscale("export", run, "--format", "safetensors", "--out", out, "--cache-root",
                   shared_root, "--json")  # fmt: skip
    known = {"pixels": pixels}
    exec(json.loads(done.stdout)["example"], known)  # noqa: S102
    assert known["logits"].shape == (64, 4)


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_onnx_without_its_libraries_says_what_to_install(exported, monkeypatch, missing, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    done = exported("onnx")
    assert done.exit_code == 1
    assert 'pip install "kdscale[export]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_command_knows_every_format():
    from kdscale.cli.students import export

    (option,) = [one for one in export.params if one.name == "format_name"]
    assert list(option.type.choices) == list(formats.FORMATS) == FORMATS


def test_name_of_another_format_is_refused(kdscale, run):
    done = kdscale("export", run, "--format", "pt2", "--out", "student.onnx")
    assert done.exit_code == 1
    assert "end in .pt2" in done.stderr


def test_what_is_no_single_finished_run_is_refused(kdscale, tmp_path):
    assert "no run at nowhere" in kdscale("export", "nowhere", "--format", "pt2").stderr
    (tmp_path / "all").mkdir()
    whole = {"top1_accuracy": 0.5, "role": "student", "targets": "cache", "seed": 0, "rows": []}
    (tmp_path / "all" / "result.json").write_text(json.dumps(whole))
    assert "all/cache-seed0" in kdscale("export", "all", "--format", "pt2").stderr


def test_student_trained_in_bfloat16_is_exported_in_float32(kdscale, write_recipe, tmp_path):
    kdscale("train", write_recipe(), "--run", "run", "--set", "student.train.precision=bfloat16")
    done = kdscale("export", "run", "--format", "pt2")
    assert done.exit_code == 0, done.stderr
    assert "trained in bfloat16, exported in float32" in done.stderr.splitlines()
    program = torch.export.load(tmp_path / "run" / "student.pt2")
    assert {one.dtype for one in program.state_dict.values()} == {torch.float32}


def test_adapters_of_training_are_not_exported(kdscale, write_recipe, tmp_path):
    features = [{"kind": "hint", "student": "1", "teacher": "1"}]
    recipe = write_recipe(
        teacher={"train": {"epochs": 1}},
        student={"train": {"epochs": 1}},
        cache={"features": ["1"]},
        loss={"feature_weight": 0.5, "features": features},
    )
    assert kdscale("train", recipe, "--model", "teacher").exit_code == 0
    done = kdscale("train", recipe, "--targets", "cache", "--run", "run")
    assert done.exit_code == 0, done.stderr
    assert kdscale("export", "run", "--format", "safetensors").exit_code == 0
    with safe_open(tmp_path / "run" / "student.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {f"{layer}.{what}" for layer in (1, 4) for what in ("weight", "bias")}


def test_teacher_is_exported_like_a_student(kdscale, tiny_teacher, shared_root, tmp_path):
    done = kdscale("export", Path(tiny_teacher).parent, "--format", "pt2", "--out", "t.pt2",
                   "--cache-root", shared_root)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "t.pt2").is_file()


# ------------------------------------------------------------------ models and images


def exchanged(name, program, shape, folder):
    """Largest relative difference of a file's answers to the program's."""
    kind, path = formats.FORMATS[name], folder / f"student.{name}"
    pixels = torch.randint(256, (9, *shape), dtype=torch.uint8)
    kind.write(program, pixels[:2], {"model": "test"}, path)
    check = compare(kind.read(path), pixels.split([1, 8]), program(pixels))
    return check["max_logit_difference"] / check["tolerance"]


@pytest.mark.parametrize("name", ["onnx", "pt2"])
@pytest.mark.parametrize("size", [7, 21], ids=["smaller", "larger"])
def test_images_of_another_size_are_resized_inside_the_file(name, size, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5)
    )
    program = Deployable(model, Preprocess(*COLOUR, size), ())
    assert exchanged(name, program, (3, 12, 16), tmp_path) < 1


def test_deployable_sees_what_preprocessing_gives(tmp_path):
    preprocess = Preprocess(*COLOUR, 20)
    pixels = torch.randint(256, (4, 1, 12, 16), dtype=torch.uint8)  # grey, shown as colour
    seen = Deployable(nn.Identity(), preprocess, ())(pixels)
    assert torch.equal(seen, preprocess(pixels))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=16, patch_size=8, num_labels=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit") / "saved"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


SLOW = pytest.mark.slow  # what others of these take the same paths as


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "onnx"),
        ("transformers", "onnx"),
        ("transformers", "pt2"),
        pytest.param("torchvision", "pt2", marks=SLOW),
        pytest.param("timm", "onnx", marks=SLOW),
        pytest.param("timm", "pt2", marks=SLOW),
    ],
)
def test_models_of_other_libraries_are_exported(name, library, vit_folder, tmp_path):
    model, size = {
        "torchvision": ("torchvision/resnet18", 32),
        "timm": ("timm/test_resnet", 32),
        "transformers": (f"transformers/{vit_folder}", 16),
    }[library]
    torch.manual_seed(0)
    made = create_model(model, num_classes=5, in_channels=3)
    program = Deployable(made, Preprocess(*COLOUR, size), ())
    assert exchanged(name, program, (3, 16, 16), tmp_path) < 1


def test_model_with_initial_weights_is_rebuilt_without_fetching_them(tmp_path, monkeypatch):
    from torchvision import models

    from kdscale.models.weights import save_weights

    def fetch(*_, **__):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", fetch)
    made = create_model("torchvision/squeezenet1_1", num_classes=5, in_channels=3)
    told = {"model": "torchvision/squeezenet1_1", "options": {"weights": "DEFAULT"},
            "num_classes": 5, "preprocess": Preprocess(*COLOUR, 32).describe()}  # fmt: skip
    save_weights(tmp_path / "w.safetensors", made, metadata=told)
    pixels = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    assert load_student(tmp_path / "w.safetensors")(pixels).shape == (2, 5)


class Undecided(nn.Module):
    def forward(self, values):
        return values[:, 0, 0] if values.sum() > 0 else values[:, 0, 1]


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_model_that_cannot_be_traced_is_refused_in_one_line(name, tmp_path):
    program = Deployable(Undecided(), GREY, ())
    with pytest.raises(ExportError, match="safetensors holds every model") as error:  # noqa: SIM117
        with formats.explained(name):
            exchanged(name, program, (1, 8, 8), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels.float() / 255,
        lambda pixels: pixels[0],
        lambda pixels: pixels.repeat(1, 3, 1, 1),
        lambda pixels: pixels.numpy(),
        lambda pixels: pixels.repeat(1, 1, 2, 2),
    ],
    ids=["floats", "one image", "channels", "numpy", "size"],
)
def test_student_refuses_what_it_would_take_for_other_pixels(run, pixels, change):
    from kdscale.errors import ModelError

    student = load_student(run / "weights.safetensors", trust_code=True)
    with pytest.raises(
        ModelError, match=r"wanted torch\.uint8|channels|the images are 16 x 16 pixels"
    ):
        student(change(pixels))


def test_weights_that_do_not_say_their_model_are_refused(tmp_path):
    from kdscale.errors import WeightsError
    from kdscale.models.weights import save_weights

    save_weights(tmp_path / "w.safetensors", nn.Linear(2, 2), metadata={})
    with pytest.raises(WeightsError, match="model, num_classes, preprocess"):
        load_student(tmp_path / "w.safetensors")


# ------------------------------------------------------------------ images of any size


@pytest.mark.parametrize(
    "operations",
    [
        [{"name": "resize", "size": 18}, {"name": "center_crop", "size": 16}],
        [{"name": "resize", "size": [16, 20]}],
        [{"name": "center_crop", "size": [7, 41]}],
        [{"name": "resize", "size": 40, "antialias": False}, {"name": "center_crop", "size": 43}],
        [{"name": "resize", "size": [9, 9], "interpolation": "nearest"}],
        [{"name": "center_crop", "size": [10, 12]}, {"name": "resize", "size": 8}],
    ],
)
def test_clean_images_of_a_graph_are_those_of_the_views(operations):
    clean = TraceableClean(operations)
    expected = Pipeline.parse(operations)
    generator = torch.Generator().manual_seed(0)
    for height, width in [(25, 40), (16, 16), (17, 33), (64, 20), (5, 7), (1, 9), (300, 211)]:
        shape = (2, 3, height, width)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        assert torch.equal(clean(pixels), expected(pixels, 0, torch.arange(2))), shape


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([], "add a center_crop"),
        ([{"name": "resize", "size": 18}], "add a center_crop"),
        (["grayscale"], "wanted resize and center_crop alone"),
    ],
)
def test_clean_operations_without_a_form_in_a_graph_are_named(operations, reason):
    with pytest.raises(ExportError, match=reason):
        TraceableClean(operations)


def test_export_with_preprocessing_of_a_data_set_of_several_sizes(kdscale, write_recipe, tmp_path):
    """The file is compared with the run on whole photographs, as they are decoded."""
    random = np.random.default_rng(0)
    for split, sizes in (("train", [(20, 30), (40, 25)] * 4), ("test", [(31, 22), (18, 50)])):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number, size in enumerate(sizes):
                pixels = random.integers(0, 256, size).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    clean = [{"name": "resize", "size": 10}, {"name": "center_crop", "size": 8}]
    recipe = write_recipe(
        data={"source": str(tmp_path / "pets"), "clean": clean},
        views={"operations": [{"name": "random_resized_crop", "size": 8}], "count": 1},
    )
    done = kdscale("train", recipe, "--run", "run")
    assert done.exit_code == 0, done.stderr
    done = kdscale("export", "run", "--format", "pt2", "--with-preprocessing", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_images"] == 4
    assert found["max_logit_difference"] < 1e-5


def classes(image):
    """Classes of a prediction with their probabilities, for comparisons."""
    found = image["predictions"]
    return [(one["class"], pytest.approx(one["probability"], abs=1e-5)) for one in found]


@pytest.mark.parametrize("name", ["onnx", pytest.param("pt2", marks=pytest.mark.thorough)])
def test_export_with_preprocessing_takes_photographs_of_any_size(
    kdscale, write_recipe, tmp_path, name
):
    operations = [{"name": "resize", "size": 10}, {"name": "center_crop", "size": 8}]
    recipe = write_recipe(
        data={"clean": operations},
        views={"operations": [{"name": "resize", "size": [8, 8]}], "count": 1},
    )
    assert kdscale("train", recipe, "--run", "run").exit_code == 0
    file = f"student.{name}"
    done = kdscale("export", "run", "--format", name, "--with-preprocessing", "--out", file,
                   "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["max_logit_difference"] < 1e-5
    stated = about(name, tmp_path / file)
    assert stated["clean"] == operations
    assert stated["clean_in_graph"] is True
    assert stated["pixels"]["shape"] == ["batch", 1, "height", "width"]
    student, clean = loaded(tmp_path / "run"), Pipeline.parse(operations)
    for height, width in [(8, 8), (40, 25), (9, 70)]:
        photo = torch.randint(256, (2, 1, height, width), dtype=torch.uint8)
        found = answers_of(name, tmp_path / file, photo)
        expected = student(clean(photo, 0, torch.arange(2)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        Image.fromarray(photo[0, 0].numpy()).save(tmp_path / f"{width}.png")
    of_run, of_file = (
        json.loads(kdscale("predict", place, "25.png", "70.png", "--json", "--trust-code").stdout)
        for place in ("run", file)
    )
    assert [classes(one) for one in of_file["images"]] == [classes(one) for one in of_run["images"]]


def test_weights_have_no_graph_for_preprocessing(exported):
    done = exported("safetensors", "--with-preprocessing")
    assert done.exit_code == 2
    assert "safetensors has no graph" in done.stderr


# ------------------------------------------------------------------ the page


def test_snippets_of_the_page_work_as_they_stand(exported, run, pixels, tmp_path, monkeypatch):
    for name in FORMATS:
        assert exported(name).exit_code == 0
    monkeypatch.chdir(tmp_path)
    expected = load_student(run / "weights.safetensors", trust_code=True)(pixels).numpy()
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)
    asked, named = 0, 0
    for shown in snippets:  # of a model of kdscale's; these tests' own is code
        snippet = shown.replace('.safetensors")', '.safetensors", trust_code=True)')
        values = {"pixels": pixels.numpy() if "onnxruntime" in snippet else pixels}
        exec(snippet, values)  # noqa: S102
        if "logits" in values:
            np.testing.assert_allclose(np.asarray(values["logits"]), expected, atol=1e-5)
            asked += 1
        else:
            assert list(values["names"]) == ["centre", "north", "sides", "south"]
            named += 1
    assert (asked, named) == (3, 3)
