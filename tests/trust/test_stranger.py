"""A stranger's files: what a weights file, a run, a cache or a sweep holds runs nothing.

Models named in files are created only where they are kdscale's own or a library's, databases opened
only where the user names them, and no cell of a table is a formula.
"""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import sandbox
import tomli_w

CACHED = ("--targets", "cache", "--cache", "root/tiny.zarr")

EVIL = {
    "os:system": {"command": "touch PWNED"},
    "subprocess:run": {"args": ["touch", "PWNED"]},
    "subprocess:Popen": {"args": ["touch", "PWNED"]},
    "subprocess:check_output": {"args": ["touch", "PWNED"]},
    "runpy:run_path": {"path_name": "evil.py"},
    "runpy:run_module": {"mod_name": "evil"},
    "builtins:exec": {"source": "open('PWNED', 'w')"},
    "builtins:eval": {"source": "open('PWNED', 'w')"},
    "builtins:open": {"file": "PWNED", "mode": "w"},
    "pathlib:Path.touch": {"self": "PWNED"},
    "shutil:copy": {"src": "evil.py", "dst": "PWNED"},
    "importlib:import_module": {"name": "evil"},
    "evil:make": {},
    "transformers/./repository": {"trust_remote_code": True},
}
"""Names that a file may give its model, with options, and what each would do: create PWNED."""

EVIL_MODULE = """
open("PWNED", "w").close()
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

def make(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(784 * in_channels, num_classes))

class Config(PretrainedConfig):
    model_type = "evil"

class Model(PreTrainedModel):
    config_class = Config
"""


OWN_MODULE = """
from torch import nn

def make(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(784 * in_channels, num_classes))
"""


def _lay_traps(folder):
    """A module, and a model's repository with code, in the current folder."""
    (folder / "evil.py").write_text(EVIL_MODULE)
    repository = folder / "repository"
    repository.mkdir(exist_ok=True)
    (repository / "evil.py").write_text(EVIL_MODULE)
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    config = {"model_type": "evil", "auto_map": auto_map}
    (repository / "config.json").write_text(json.dumps(config))


def _train_as(name, options):
    """Train a run whose files name this model: a stranger's kdscale, where it is a harmless one."""
    from kdscale.models import reference, registry

    def harmless(num_classes, in_channels, **_):
        return reference.mnist_mlp(num_classes, in_channels, hidden=4)

    registry.REFERENCE[name] = harmless
    registry.SOURCES.clear()
    given = "".join(f", {key} = {json.dumps(value)}" for key, value in options.items())
    sandbox.main(
        "train", "r.toml", "--run", "theirs", "--set", f"student.model={name}",
        "--set", f"student.options={{{given[2:]}}}", "--set", "student.train.epochs=1",
    )  # fmt: skip


@pytest.fixture(scope="module", params=EVIL)
def theirs(request, material, tmp_path_factory):
    """A folder with a stranger's run in `theirs`, whose files name the model of the parameter."""
    folder = Path(shutil.copytree(material, tmp_path_factory.mktemp("theirs") / "folder"))
    _lay_traps(folder)
    done = sandbox.run(lambda: _train_as(request.param, EVIL[request.param]), cwd=folder)
    assert (done.exit_code, done.fault) == (0, None), done.stderr
    assert not (folder / "PWNED").exists()
    return folder


def _assert_nothing_ran(folder, done):
    assert not (folder / "PWNED").exists(), done.stderr
    assert done.fault is None, done.fault


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "theirs", "--seconds", "0"),
        ("export", "theirs", "--format", "safetensors"),
        ("report", "theirs", "--markdown", "-"),
    ],
    ids=lambda command: command[0],
)
def test_model_named_by_a_run_folder_runs_nothing(theirs, command):
    done = sandbox.run_command(*command, cwd=theirs)
    _assert_nothing_ran(theirs, done)
    if command[0] != "report":  # which creates no model
        assert done.exit_code in (1, 2)
        assert "--trust-code" in done.stderr or "transformers" in done.stderr


def test_model_named_by_a_weights_file_runs_nothing(theirs):
    def load():
        import kdscale
        from kdscale.errors import KdscaleError

        try:
            kdscale.load_student("theirs/weights.safetensors")
        except KdscaleError as error:
            return str(error)
        return None

    done = sandbox.run(load, cwd=theirs)
    _assert_nothing_ran(theirs, done)
    assert done.value is not None, "the file was loaded"
    assert "trust_code" in done.value or "transformers" in done.value


@pytest.mark.parametrize("name", ["os:system", "builtins:exec", "subprocess:run", "builtins:open"])
def test_function_that_makes_no_model_is_not_called_even_from_a_given_recipe(box, name):
    folder = box()
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in EVIL[name].items())
    done = sandbox.run_command(
        "train", "r.toml", "--run", "new", "--set", f"student.model={name}",
        "--set", f"student.options={{{options}}}", cwd=folder,
    )  # fmt: skip
    _assert_nothing_ran(folder, done)
    assert done.exit_code in (1, 2)


def test_own_module_from_a_given_recipe_still_works(box):
    folder = box()
    (folder / "mine.py").write_text(OWN_MODULE)
    done = sandbox.run_command(
        "train", "r.toml", "--run", "new", "--set", "student.model=mine:make",
        "--set", "student.options={}", cwd=folder,
    )  # fmt: skip
    assert (done.exit_code, done.fault) == (0, None), done.stderr
    for command in (("evaluate", "new", "--seconds", "0"), ("export", "new", "--format", "pt2")):
        done = sandbox.run_command(*command, "--trust-code", cwd=folder)
        assert (done.exit_code, done.fault) == (0, None), done.stderr


# --------------------------------------------------------------------------- tables


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", " ="])
def test_no_cell_of_a_csv_begins_a_formula(box, start):
    folder = box()
    name = f"{start}HYPERLINK(1)"
    (folder / "student").rename(folder / name)
    done = sandbox.run_command("report", f"./{name}", "teacher", "--csv", "-", cwd=folder)
    assert (done.exit_code, done.fault) == (0, None), done.stderr
    assert "HYPERLINK" in done.stdout
    for row in csv.reader(io.StringIO(done.stdout)):
        for cell in row:
            assert cell[:1] not in tuple("=+-@\t\r") or _is_number(cell), cell


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


# --------------------------------------------------------------------------- addresses


@pytest.mark.thorough
def test_database_named_by_a_sweeps_folder_is_not_opened(box, tmp_path):
    folder, outside = box(), tmp_path / "outside.db"
    (folder / "sweep").mkdir()
    recipe = {"name": "tiny", "sweep": {"space": {"loss": {"temperature": [1.0, 4.0]}}}}
    (folder / "s.toml").write_text((folder / "r.toml").read_text() + tomli_w.dumps(
        {"sweep": recipe["sweep"]}))  # fmt: skip
    done = sandbox.run_command("sweep", "s.toml", "--run", "sweep", *CACHED[2:], cwd=folder)
    assert (done.exit_code, done.fault) == (0, None), done.stderr
    told = json.loads((folder / "sweep/sweep.json").read_text())
    told["storage"] = f"sqlite:///{outside}"
    told.pop("checksum", None)
    (folder / "sweep/sweep.json").write_text(json.dumps(told))
    for command in ("status", "best"):
        done = sandbox.run_command("sweep", command, "sweep", cwd=folder)
        assert (done.exit_code, done.fault) == (1, None), done.stderr
        assert "--storage" in done.stderr
        assert not outside.exists()
