"""A tiny data set, teacher, student, unfinished run and cache: made once, copied for each case.

All models are kdscale's own, so no recipe or weights file here names code of a user.
"""

import contextlib
import logging
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))  # for `sandbox` and the like

import sandbox

SIDE = 28  # of mnist-mlp
CLASSES = ["ant", "bee", "cat"]


def _pixels(num_samples, seed):
    """Noise, brighter in the rows of its class; uint8 [N, SIDE, SIDE], with labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % len(CLASSES)
    pixels = random.integers(0, 200, (num_samples, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        image[label::3] += 50
    return pixels.astype(np.uint8), labels


def _model(hidden, **train):
    settings = {
        "epochs": 2,
        "global_batch_size": 8,
        "learning_rate": 0.003,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return {"model": "mnist-mlp", "options": {"hidden": hidden}, "train": settings | train}


@pytest.fixture(scope="session")
def material(tmp_path_factory, write_split):
    """A folder with a recipe r.toml and everything that its commands make from it.

    `root` (decoded images, predictions, the cache tiny.zarr), `teacher` and `student` (finished
    runs, evaluated), `unfinished` (a run stopped in its second epoch).
    """
    folder = tmp_path_factory.mktemp("material")
    data = tmp_path_factory.mktemp("data") / "tiny"
    write_split(data / "train.parquet", *_pixels(24, 0), CLASSES)
    write_split(data / "test.parquet", *_pixels(12, 1), CLASSES)
    recipe = {
        "name": "tiny",
        "data": {"source": str(data), "validation": 0.25},
        "views": {"operations": [{"name": "random_crop", "padding": 1}], "count": 2},
        "cache": {"encoding": "float16", "shard_samples": 8},
        "teacher": {**_model(8, epochs=6), "input": {"mean": [0.4], "std": [0.25]}},
        "student": {**_model(4), "input": {"mean": [0.4], "std": [0.25]}},
    }
    (folder / "r.toml").write_text(tomli_w.dumps(recipe))
    cached = ("--targets", "cache", "--cache", "root/tiny.zarr")
    for args in (
        ("train", "r.toml", "--model", "teacher", "--run", "teacher"),
        ("cache", "build", "r.toml", "--cache", "root/tiny.zarr",
         "--set", "teacher.weights=teacher/weights.safetensors"),
        ("train", "r.toml", *cached, "--run", "student"),
        ("evaluate", "teacher", "student", "--seconds", "0"),
        ("evaluate", "student", "--weights", "best", "--seconds", "0"),
        ("report", "student", "--html", "-"),
        ("cache", "verify", "root/tiny.zarr"),
    ):  # fmt: skip
        _make(folder, *args)
    _stop_training(folder, *cached, "--run", "unfinished")
    return folder


@pytest.fixture(scope="session")
def other_runs(material, tmp_path_factory):
    """The runs of `material` again, of the same shapes: with another seed, or in another way.

    `seed` and `unfinished` differ in their seed alone, `recipe` in its recipe and its data.
    """
    folder = Path(shutil.copytree(material, tmp_path_factory.mktemp("other") / "runs"))
    cached = ("--targets", "cache", "--cache", "root/tiny.zarr")
    _make(folder, "train", "r.toml", *cached, "--run", "seed", "--seed", "1")
    _make(folder, "train", "r.toml", "--set", "loss.temperature=2.0", "--run", "recipe")
    _make(folder, "evaluate", "seed", "--seconds", "0")
    shutil.rmtree(folder / "unfinished")
    _stop_training(folder, *cached, "--run", "unfinished", "--seed", "1")
    return folder


def _make(folder, *args):
    """Run a command in this process, so that its imports are there for every child."""
    from kdscale.cli import cli

    logger = logging.getLogger("kdscale")
    before = logger.handlers, logger.level, logger.propagate
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSCALE_CACHE_ROOT", "root")
        done = CliRunner(catch_exceptions=False).invoke(cli, args)
    logger.handlers, logger.level, logger.propagate = before
    assert done.exit_code == 0, done.output


def _stop_training(folder, *args):
    """Train until the fourth step, as a scheduler has it; in a process of its own."""
    from kdscale.training.trainer import Trainer

    update = Trainer._update

    def update_and_stop(loop):
        update(loop)
        if loop.state.step == 4:
            signal.raise_signal(signal.SIGTERM)

    def train():
        Trainer._update = update_and_stop
        sandbox.main("train", "r.toml", *args)

    begun = sandbox.run(train, cwd=folder)
    assert begun.exit_code == 75, begun


@pytest.fixture
def box(material, tmp_path):
    """A copy of the material, to be damaged: `box(name)`."""

    def copy(name="box"):
        return Path(shutil.copytree(material, tmp_path / name))

    return copy
