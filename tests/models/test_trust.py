"""What a file says is content: it runs no code, opens no file and asks no address of its choice."""

import json
import pickle  # noqa: TID251  (to write what must not be read)
import shutil
import socket
import sys
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import tomli_w
import torch
from torch import nn

from kdscale import load_student
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError, KdscaleError, ModelError, WeightsError
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights

COLOUR = Preprocess((0.5,) * 3, (0.5,) * 3, 32).describe()
RUNS = "import pathlib; pathlib.Path('ran').touch()\n"
"""A module, or a command of Python, that leaves a file behind."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with code that would leave `ran` behind; no network."""

    def refuse(*_):
        raise AssertionError("an address was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RUNS)
    yield tmp_path
    assert not (tmp_path / "ran").exists()
    assert "mine" not in sys.modules


def configuration(folder, **fields):
    """A folder as transformers has it, with code beside the configuration."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_labels": 4, **fields}))
    (folder / "code.py").write_text(RUNS)
    return f"transformers/{folder}"


def stranger(path, model, options, **changes):
    """A weights file that names a model."""
    said = {"model": model, "options": options, "num_classes": 4, "preprocess": COLOUR} | changes
    metadata = {key: json.dumps(value) for key, value in said.items()}
    safetensors.torch.save_file({"w": torch.zeros(4)}, path, metadata=metadata)
    return path


# --------------------------------------------------------------------------- weights files


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("os:system", {"command": "touch ran"}, "would run code that the file chooses"),
        ("subprocess:run", {"args": ["touch", "ran"]}, "would run code"),
        ("runpy:run_path", {"path_name": "mine.py"}, "would run code"),
        ("builtins:exec", {"source": RUNS}, "would run code"),
        ("mine:anything", {}, "would run code"),
        ("torch.hub:load", {"repo_or_dir": ".", "model": "m", "source": "local"}, "would run code"),
        ("timm/hf-hub:timm/resnet10t.in1k", {}, "may not choose"),
        ("timm/local-dir:.", {}, "may not choose"),
        ("timm/resnet10t", {"checkpoint_path": "w.pth"}, "option 'checkpoint_path'"),
        ("timm/resnet10t", {"pretrained_cfg": {"url": "x"}}, "option 'pretrained_cfg'"),
        ("timm/resnet10t", {"act_layer": "http://address/x"}, "option 'act_layer'"),
        ("torchvision/resnet18", {"weights_backbone": "DEFAULT"}, "option 'weights_backbone'"),
        ("transformers/google/vit-base-patch16-224", {}, "no configuration"),
    ],
)
def test_weights_file_that_names_code_a_file_or_an_address_is_refused(
    place, model, options, message
):
    with pytest.raises(ModelError, match=message):
        load_student(stranger(place / "w.safetensors", model, options))


CODE = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"model_type": "evil", "auto_map": CODE}, {}, "no configuration"),
        ({"model_type": "evil", "auto_map": CODE}, {"trust_remote_code": True}, "no configuration"),
        ({"model_type": "vit"}, {"trust_remote_code": True}, "'trust_remote_code' is no field"),
        ({"model_type": "vit"}, {"attn_implementation": "a/b"}, "option 'attn_implementation'"),
        ({"model_type": "vit", "attn_implementation": "kernels/evil"}, {}, "foreign kernels"),
        ({"model_type": "vit", "quantization_config": {"quant_method": "x"}}, {}, "quantization"),
        (
            {"model_type": "timm_wrapper", "architecture": "resnet10t", "num_classes": 4},
            {},
            "timm's wrapper",
        ),
    ],
)
def test_configuration_of_transformers_runs_and_fetches_nothing(place, fields, options, message):
    pytest.importorskip("transformers")
    model = configuration(place / "theirs", **fields)
    with pytest.raises(ModelError, match=message):
        load_student(stranger(place / "w.safetensors", model, options))


def test_architecture_of_transformers_is_made_of_its_configuration_alone(place):
    transformers = pytest.importorskip("transformers")
    small = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=32, patch_size=16, num_labels=4,
    )  # fmt: skip
    made = transformers.ViTForImageClassification(small)
    small.save_pretrained(place / "vit")  # without weights
    model = f"transformers/{place / 'vit'}"
    said = {"model": model, "options": {}, "num_classes": 4, "preprocess": COLOUR}
    save_weights(place / "w.safetensors", made, metadata=said)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = made.eval()(Preprocess.parse(COLOUR)(pixels)).logits
    found = load_student(place / "w.safetensors")(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [("torchvision/resnet18", {"weights": "DEFAULT"}), ("timm/resnet10t", {"pretrained": True})],
)
def test_initial_weights_that_the_files_own_replace_are_not_fetched(place, model):
    pytest.importorskip("timm")
    with pytest.raises(WeightsError, match="is not of this student"):  # made, and then filled
        load_student(stranger(place / "w.safetensors", *model))


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", 5), ("num_classes", "4"), ("num_classes", 10**15), ("num_classes", True),
     ("preprocess", []), ("preprocess", {"mean": 5, "std": 5, "size": None}), ("options", [1]),
     ("class_names", 5), ("class_names", [1, 2])],
)  # fmt: skip
def test_metadata_of_other_types_is_refused(place, field, value):
    said = {"model": "mnist-cnn", "num_classes": 4, "preprocess": COLOUR, field: value}
    path = place / "w.safetensors"
    save_weights(path, nn.Linear(2, 2), metadata=said)
    with pytest.raises(KdscaleError):
        load_student(path)


def test_weights_that_would_run_code_are_refused(place):
    class Evil:
        def __reduce__(self):
            return exec, (RUNS,)

    (place / "w.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"w": Evil()}, place / "w2.pt")
    for name in ("w.pt", "w2.pt"):
        with pytest.raises(WeightsError, match=r"would run code|does not state"):
            load_student(place / name)


def test_trusted_file_may_name_a_factory(tmp_path):
    model = create_model("tiny_models:mlp", num_classes=4, in_channels=1)
    said = {"model": "tiny_models:mlp", "num_classes": 4,
            "preprocess": Preprocess((0.5,), (0.5,), None).describe()}  # fmt: skip
    save_weights(tmp_path / "w.safetensors", model, metadata=said)
    with pytest.raises(ModelError, match="trust_code=True"):
        load_student(tmp_path / "w.safetensors")
    assert isinstance(load_student(tmp_path / "w.safetensors", trust_code=True), nn.Module)


# --------------------------------------------------------------------------- factories


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "a module of Python itself"),
        ("subprocess:run", "a module of Python itself"),
        ("runpy:run_path", "a module of Python itself"),
        ("builtins:exec", "a module of Python itself"),
        ("importlib.machinery:SourceFileLoader", "a module of Python itself"),
        ("..mine:anything", "not of the form"),
        ("mine:", "not of the form"),
        ("mine.py:anything()", "not of the form"),
        ("mine:__builtins__", "private name"),
        ("_mine:anything", "private name"),
        ("kdscale.atomic_write:create_folder", "returns nothing"),
        ("kdscale.models.weights:Path", "the class Path, no nn.Module"),
        ("kdscale.models.weights:json", "no function 'json'"),
        ("torch:sum", "a built-in function"),
        ("kdscale.config:Recipe", "the class Recipe, no nn.Module"),
    ],
)
def test_what_cannot_make_a_model_is_not_called(place, name, message):
    with pytest.raises(ModelError, match=message):
        create_model(name, num_classes=4, in_channels=1)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of factories, by a name that it has alone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def write(text, name="of_this_test"):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop("of_this_test", None)


@pytest.mark.parametrize(
    "text",
    [
        "from subprocess import run as make",
        "from os import system as make",
        "import functools, subprocess\nmake = functools.partial(subprocess.run, ['touch', 'ran'])",
        "def make(num_classes) -> str: open('ran', 'w')",
        "def make(num_classes) -> None: open('ran', 'w')",
        "def make(num_classes) -> tuple[int, int]: open('ran', 'w')",
        "class make:\n    def __init__(self, num_classes): open('ran', 'w')",
        "class Made:\n    def __call__(self, num_classes): open('ran', 'w')\nmake = Made()",
    ],
)
def test_what_clearly_makes_no_model_is_not_called(module, text, tmp_path):
    with pytest.raises(ModelError, match="so nothing was called"):
        create_model(f"{module(text)}:make", num_classes=4, in_channels=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "from torch import nn\ndef make(num_classes) -> nn.Module: return nn.Identity()",
        "from torch import nn\ndef make(num_classes) -> 'Unknown': return nn.Identity()",
        "from torch import nn\ndef make(num_classes) -> nn.Linear | None: return nn.Linear(2, 2)",
        "import functools\nfrom torch import nn\nmake = functools.partial(nn.Linear, 2, 2)",
        "import functools\nfrom torch import nn\n@functools.cache\ndef make(): return nn.ReLU()",
    ],
)
def test_what_may_make_a_model_is_called(module, text):
    made = create_model(f"{module(text)}:make", num_classes=4, in_channels=1)
    assert isinstance(made, nn.Module)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(): raise KeyError('depth')", r"KeyError: 'depth' \(.*of_this_test\.py:1\)"),
        ("def make(): 1 / 0", "ZeroDivisionError: division by zero"),
        ("def make(): raise SystemExit(3)", "SystemExit: 3"),
        ("def make(): make()", "RecursionError"),
        ("def make(): raise RuntimeError('x' * 70_000_000)", r"70,000,000 characters"),
        ("raise RuntimeError('half')", r"cannot be imported \(RuntimeError: half"),
        ("import sys; sys.exit(1)", r"cannot be imported \(SystemExit: 1"),
    ],
)
def test_whatever_a_factory_raises_is_reported_in_one_line(module, text, message):
    with pytest.raises(ModelError, match=message) as error:
        create_model(f"{module(text)}:make", num_classes=4, in_channels=1)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    "where", ["def make(): raise KeyboardInterrupt", "raise KeyboardInterrupt"]
)
def test_interrupt_in_a_factory_is_one(module, where):
    with pytest.raises(KeyboardInterrupt):
        create_model(f"{module(where)}:make", num_classes=4, in_channels=1)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet18", "torchvision/resnet18"),
        ("resnet-18", "torchvision/resnet18"),
        ("ResNet_18", "torchvision/resnet18"),
        ("torchvision.resnet18", "torchvision/resnet18"),
        ("timm.resnet18", "timm/resnet18"),
        ("wrn-16-1", "wrn-16-2"),
    ],
)
def test_name_of_a_library_model_is_answered_with_its_form(name, near):
    if near.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=rf"did you mean .*{near}"):
        create_model(name, num_classes=10, in_channels=3)


# --------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "v2.Lambda", "lambd": "os.system"},
        {"name": "v2.Lambda", "lambd": {"name": "v2.Identity"}},
        {"name": "v2.functional"},
        {"name": "v2.Transform"},
        {"name": "v2.__builtins__"},
        {"name": "v2.ToDtype", "dtype": "load"},
        {"name": "v2.RandomApply", "transforms": [{"name": "v2.Lambda", "lambd": "print"}]},
    ],
)
def test_operation_of_a_file_holds_no_function(entry):
    with pytest.raises(ConfigError):
        Pipeline.parse([entry])(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0, torch.arange(1))


# --------------------------------------------------------------------------- run folders


@pytest.fixture
def strangers_run(tiny_teacher, tmp_path):
    """A copy of a finished run, whose recipe names another model."""

    def make(model, options):
        run = Path(shutil.copytree(Path(tiny_teacher).parent, tmp_path / "theirs"))
        table = tomllib.loads((run / "recipe.toml").read_text())
        for role in ("teacher", "student"):
            table[role] |= {"model": model, "options": options}
        (run / "recipe.toml").write_text(tomli_w.dumps(table))
        return run

    return make


COMMANDS = [("evaluate",), ("export", "--format", "safetensors")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("os:system", {"command": "touch ran"}),
        ("runpy:run_path", {"path_name": "mine.py"}),
        ("mine:anything", {}),
        ("timm/hf-hub:evil/model", {}),
        ("timm/resnet10t", {"checkpoint_path": "w.pth"}),
    ],
)
@pytest.mark.usefixtures("place")
def test_strangers_run_runs_no_code(kdscale, strangers_run, command, model, options, shared_root):
    run = strangers_run(model, options)
    done = kdscale(*command, run, "--cache-root", shared_root, trust_code=False)
    assert done.exit_code == 1
    assert f"Error: {run / 'recipe.toml'} names the model" in done.stderr
    assert "--trust-code" in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.usefixtures("place")
def test_trusted_run_still_calls_only_what_makes_models(
    kdscale, strangers_run, command, shared_root
):
    run = strangers_run("os:system", {"command": "touch ran"})
    done = kdscale(*command, run, "--cache-root", shared_root, "--trust-code")
    assert done.exit_code == 1
    assert "a module of Python itself" in done.stderr


def test_run_of_ones_own_factory_is_evaluated_where_it_is_trusted(kdscale, tiny_teacher, tmp_path):
    run = shutil.copytree(Path(tiny_teacher).parent, tmp_path / "own")
    assert kdscale("evaluate", run, "--seconds", 0, trust_code=False).exit_code == 1
    assert kdscale("evaluate", run, "--seconds", 0, "--trust-code").exit_code == 0


def test_model_that_the_commands_own_recipe_names_needs_no_flag(kdscale, write_recipe):
    recipe = write_recipe(
        teacher={"train": {"epochs": 1}}, student={"train": {"epochs": 1}}, views={"count": 1}
    )
    done = kdscale("run", recipe)  # trains and evaluates tiny_models:mlp
    assert done.exit_code == 0, done.stderr
