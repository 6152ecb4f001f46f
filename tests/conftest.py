"""Shared by all tests: no network, one thread, a small data set, a tiny teacher, a tiny cache."""

# ruff: noqa: E402  (the environment is set before what reads it is imported)

import atexit
import contextlib
import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

gc.disable()  # until all tests are collected: nothing that imports and collection make is garbage

# Bytecode is stored whatever the environment says: without it each worker rewrites all asserts
# again (5 s), and each command in a process of its own compiles kdscale.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# `datasets` and `huggingface_hub` read these when they are imported.
_HOME = tempfile.mkdtemp(prefix="kdscale-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(HF_HOME=_HOME, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ["TORCH_HOME"] = _HOME  # where torchvision looks for weights

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from hypothesis import settings
from PIL import Image

torch.set_num_threads(1)
settings.register_profile("kdscale", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("kdscale")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is sent here, and may have been ignored (nohup)

ASSETS = Path(__file__).parent / "assets"
sys.path.append(str(ASSETS))  # tiny_models, hub_stand_in
_PATHS = [str(ASSETS), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))  # an empty part is the folder


def pytest_configure(config):
    """Hide GPUs, unless the tests that need one are what is run.

    A test of a CPU must not find one by chance. CUDA reads the variable when it is first used.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Let the garbage collector begin with what the tests make: a million older objects stay."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SIDE = 8
CLASSES = ["centre", "north", "sides", "south"]  # none of them turned into another by a flip


# --------------------------------------------------------------------------- data


def _pictures(num_samples, seed):
    """Grey images whose class is where they are bright, under noise; with their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % len(CLASSES)
    pixels = random.integers(0, 150, (num_samples, SIDE, SIDE))
    bright = {
        "centre": np.s_[:, 2:6],
        "north": np.s_[:4],
        "sides": np.s_[:, [0, 1, 6, 7]],
        "south": np.s_[4:],
    }
    for image, label in zip(pixels, labels, strict=True):
        image[bright[CLASSES[label]]] += 60
    return pixels.astype(np.uint8), labels


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(path, pixels, labels, names):
    cells = [{"bytes": _png(one), "path": None} for one in pixels]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(cells, struct), "label": pa.array(labels)}
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


@pytest.fixture(scope="session")
def write_split():
    """Writes a split as parquet: `(path, uint8 pixels [N, H, W(, 3)], labels, class names)`."""
    return _write_parquet


@pytest.fixture(scope="session")
def make_dataset():
    """Writes a parquet data set: `(folder, num_train, num_test, seed, unlabelled)`."""

    def make(folder, num_train=128, num_test=64, *, seed=0, unlabelled=False):
        pixels, labels = _pictures(num_train, seed)
        labels = np.full(num_train, -1) if unlabelled else labels
        _write_parquet(folder / "train.parquet", pixels, labels, CLASSES)
        _write_parquet(folder / "test.parquet", *_pictures(num_test, seed + 1), CLASSES)
        return folder

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, make_dataset):
    """128 training and 64 test images of 4 classes, 8 x 8 grey."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


# --------------------------------------------------------------------------- recipes


def _merge(table, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict) and key != "options":
            _merge(table[key], value)
        elif value is None:
            table.pop(key, None)
        else:
            table[key] = value
    return table


@pytest.fixture(scope="session")
def recipe_table(dataset):
    """A recipe's table with changes merged in; None removes a key, options are replaced."""

    def make(**changes):
        table = {
            "name": "tiny",
            "data": {"source": str(dataset)},
            "views": {
                "operations": [{"name": "random_crop", "padding": 1}, "random_horizontal_flip"],
                "count": 3,
            },
            "cache": {"encoding": "float32", "shard_samples": 32},
            "teacher": {
                "model": "tiny_models:mlp",
                "options": {"hidden": 32},
                "input": {"mean": [0.4], "std": [0.25]},
                "batch_size": 32,
                "train": {"epochs": 6, "global_batch_size": 32, "learning_rate": 0.01},
            },
            "student": {
                "model": "tiny_models:mlp",
                "options": {"hidden": 8},
                "train": {
                    "epochs": 3,
                    "global_batch_size": 32,
                    "learning_rate": 0.01,
                    "log_every": 1,
                },
            },
        }
        return _merge(table, changes)

    return make


@pytest.fixture
def write_recipe(tmp_path, recipe_table):
    """Writes a tiny recipe, with changes, and returns its path."""

    def write(name="tiny", **changes):
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(recipe_table(name=name, **changes)))
        return path

    return write


@pytest.fixture(scope="session")
def load_table(recipe_table):
    """A tiny recipe, with changes, parsed."""
    from kdscale.config import parse_recipe

    return lambda **changes: parse_recipe(recipe_table(**changes), "tiny")


@pytest.fixture
def stopped_after_step(monkeypatch):
    """Stops a training after a step, as a scheduler does."""
    from kdscale.training.trainer import Trainer

    @contextlib.contextmanager
    def stopped(step):
        update = Trainer._update

        def update_and_stop(loop):
            update(loop)
            if loop.state.step == step:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_update", update_and_stop)
            yield

    return stopped


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory):
    """A cache root for what many tests decode and predict alike. Not to be damaged."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def save_random_model():
    """Writes weights of a model of `tiny_models` for the tiny data, drawn from seed 0."""
    from kdscale.models.registry import create_model
    from kdscale.models.weights import save_weights

    def save(name, path):
        torch.manual_seed(0)
        model = create_model(f"tiny_models:{name}", num_classes=4, in_channels=1)
        save_weights(path, model, metadata={})
        return path

    return save


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, load_table, shared_root):
    """Weights of a teacher that is nearly always right."""
    from kdscale.commands.train import train
    from kdscale.experiment import Experiment, Locations
    from kdscale.runs.run_spec import RunSpec

    run = tmp_path_factory.mktemp("teacher") / "run"
    result = train(
        Experiment(load_table(), Locations(run=run, cache_root=shared_root)),
        RunSpec("teacher", "none", 0),
    )
    assert result["top1_accuracy"] > 0.8
    return str(run / "weights.safetensors")


@pytest.fixture(scope="session")
def tiny_cache(load_table, tiny_teacher, shared_root):
    """A finished float32 cache of 3 views in 4 shards each. Copy it before damaging it."""
    from kdscale.commands.build import build
    from kdscale.experiment import Experiment, Locations

    return build(
        Experiment(load_table(), Locations(cache_root=shared_root, teacher_weights=tiny_teacher))
    )


@pytest.fixture
def cache_copy(tiny_cache, tmp_path):
    """A copy of the tiny cache, to be damaged."""
    return Path(shutil.copytree(tiny_cache, tmp_path / "copy.zarr"))


# --------------------------------------------------------------------------- commands


def _trusting(args):
    """Arguments of a command; the models of these tests are code of their user's own."""
    words = [str(arg) for arg in args]
    names_models = words[:1] in (["evaluate"], ["export"]) and "--trust-code" not in words
    return [*words, "--trust-code"] if names_models else words


@contextlib.contextmanager
def _own_logging():
    """The command line points kdscale's logger at a stream that ends with the call."""
    logger = logging.getLogger("kdscale")
    before = logger.handlers, logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in of the Hub, to which `huggingface_hub` is logged in; nothing is cached yet."""
    import hub_stand_in
    from huggingface_hub import constants

    server = hub_stand_in.HubStandIn()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)  # Xet is newer
    monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)
    yield server
    server.close()


@pytest.fixture
def kdscale(tmp_path, monkeypatch):
    """Runs a command in this process, in `tmp_path`; anything unexpected is raised."""
    from click.testing import CliRunner

    from kdscale.cli import cli

    monkeypatch.chdir(tmp_path)

    def run(*args, trust_code=True):
        with _own_logging():
            words = _trusting(args) if trust_code else [str(arg) for arg in args]
            return CliRunner(catch_exceptions=False).invoke(cli, words)

    return run


@pytest.fixture(scope="module")
def _made_once(tmp_path_factory):
    return tmp_path_factory.mktemp("made-once")


@pytest.fixture
def make_once(_made_once, tmp_path):
    """Fills `tmp_path`, `(name, make)`: by `make` the first time in a module, then by a copy.

    For what commands make that start in `tmp_path`, as `kdscale` does, and name no other folder.
    """

    def fill(name, make):
        stored = _made_once / name
        if stored.exists():
            shutil.copytree(stored, tmp_path, symlinks=True, dirs_exist_ok=True)
            return
        make()
        shutil.copytree(tmp_path, stored, symlinks=True)

    return fill


@pytest.fixture
def kdscale_process(tmp_path):
    """Runs a command as a user's shell does; returns the finished process."""

    def run(*args, timeout=120, **extra):
        return subprocess.run(
            [sys.executable, "-m", "kdscale", *_trusting(args)],
            cwd=tmp_path,
            env=os.environ | extra,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


_CHARTS = {}


@pytest.fixture
def reuse_charts(monkeypatch):
    """Draws a chart of a report only where a key of it, `(key_of)`, is new in this process."""
    from kdscale.report import page
    from kdscale.report.figures.chart import svg_of

    def reuse(key_of):
        def drawn(chart, *width):
            key = (chart.name, *width, key_of(chart))
            if key not in _CHARTS:
                _CHARTS[key] = svg_of(chart, *width)
            return _CHARTS[key]

        monkeypatch.setitem(page._template().environment.filters, "svg", drawn)

    return reuse


class ForkedCommands:
    """A server that forks a process for each command: a real one to kill, without the imports."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, str(ASSETS / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._is_waited_for = True

    def start(self, *args, cwd, output="output.txt", **env):
        """Start a command; returns its process id. One that no test waited for is killed."""
        if not self._is_waited_for:  # a test that failed: the next ones must not wait forever
            self.kill()
            self.wait()
        self.output = Path(cwd) / output
        request = {"args": _trusting(args), "cwd": str(cwd), "output": str(self.output),
                   "env": env}  # fmt: skip
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())
        self._is_waited_for = False
        return self.pid

    def wait(self):
        """The exit status of the command that was started; negative: the signal."""
        status = int(self._server.stdout.readline())
        self._is_waited_for = True
        return status

    def run(self, *args, cwd):
        """Start a command and wait for it: (exit status, everything it printed)."""
        self.start(*args, cwd=cwd)
        status = self.wait()
        return status, self.output.read_text()

    def kill(self, number=signal.SIGKILL):
        """Send the command a signal; it may have ended just before."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self):
        if not self._is_waited_for:
            self.kill()
        self._server.stdin.close()
        self._server.wait(120)  # for as long as a loaded machine may take
        self._server.stdout.close()


@pytest.fixture(scope="session")
def commands():
    """Commands in processes of their own."""
    server = ForkedCommands()
    yield server
    server.close()
