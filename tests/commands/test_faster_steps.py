"""float16 and compiled training: the same losses within rounding, names, and an exact resume."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale.commands.train import train
from kdscale.errors import ConfigError, Interrupted
from kdscale.experiment import Experiment, Locations
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from tests.commands.test_two_flows import assert_same_weights, losses

CACHED = RunSpec("student", "cache", 0)
STUDENT = {"model": "tiny_models:batch_norm", "options": None}


@pytest.fixture
def trained(load_table, tiny_cache, tiny_teacher, shared_root, tmp_path, stopped_after_step):
    """Trains with settings of [student.train], whole, and once more stopped and resumed."""

    def run(name, **settings):
        recipe = load_table(student={**STUDENT, "train": {"epochs": 3, **settings}})

        def go(folder, **options):
            locations = Locations(run=folder, cache_root=shared_root, cache=tiny_cache)
            return train(Experiment(recipe, locations), CACHED, **options)

        result = go(tmp_path / name)
        with stopped_after_step(5), pytest.raises(Interrupted):
            go(tmp_path / f"{name}-parts")
        go(tmp_path / f"{name}-parts", resume=True)
        return tmp_path / name, tmp_path / f"{name}-parts", result

    return run


@pytest.mark.thorough
def test_float16_trains_like_float32_and_resumes_exactly(trained):
    plain, _, result = trained("float32", gradient_clip=1.0)
    half, parts, scaled = trained("float16", gradient_clip=1.0, precision="float16")
    assert losses(parts) == losses(half)
    assert_same_weights(parts, half)
    for one, other in zip(losses(plain), losses(half), strict=True):
        assert one == pytest.approx(other, abs=0.02)
    assert "loss_scale" not in result
    assert scaled["loss_scale"] == 65536.0
    assert scaled["skipped_steps"] == 0
    assert all(record["gradient_norm"] > 0 for record in read_metrics(half) if "loss" in record)


def test_float16_resumes_exactly_after_steps_without_finite_gradients(trained, monkeypatch):
    """A scale far too large for the first steps: some are skipped before and after the stop."""
    create = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda device: create(device, init_scale=2.0**24, growth_interval=2),
    )
    half, parts, result = trained("float16", precision="float16")
    assert losses(parts) == losses(half)
    assert_same_weights(parts, half)
    scales = [record["loss_scale"] for record in read_metrics(half) if "loss" in record]
    assert scales == [r["loss_scale"] for r in read_metrics(parts) if "loss" in r]
    assert result["skipped_steps"] > 1
    assert len(set(scales)) > 2


@pytest.mark.slow
def test_compiled_training_keeps_names_and_losses_and_resumes_exactly(trained):
    plain, _, _ = trained("eager")
    compiled, parts, result = trained("compiled", compile=True)
    assert losses(parts) == losses(compiled)
    assert_same_weights(parts, compiled)
    ours, theirs = (load_file(run / "weights.safetensors") for run in (compiled, plain))
    assert ours.keys() == theirs.keys()
    for one, other in zip(losses(plain), losses(compiled), strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert result["compile_seconds"] > result["train_seconds"] > 0
    logged = [record for record in read_metrics(compiled) if "loss" in record]
    assert logged[-1]["compile_seconds"] == result["compile_seconds"]
    newest = sorted((compiled / "checkpoints").glob("step-*"))[-1]
    assert load_file(newest / "model.safetensors").keys() == theirs.keys()


@pytest.mark.slow
def test_compiled_float16_and_a_compiled_live_teacher_train(
    load_table, tiny_teacher, shared_root, tmp_path
):
    recipe = load_table(
        student={**STUDENT, "train": {"compile": True, "precision": "float16", "accumulation": 2}},
        teacher={"compile": True},
    )
    plain = load_table(student=STUDENT)
    found = {}
    for name, one in (("compiled", recipe), ("plain", plain)):
        places = Locations(
            run=tmp_path / name, cache_root=shared_root, teacher_weights=tiny_teacher
        )
        found[name] = train(Experiment(one, places), RunSpec("student", "teacher", 0))
    assert found["compiled"]["cross_entropy"] == pytest.approx(
        found["plain"]["cross_entropy"], abs=0.1
    )


@pytest.mark.slow
def test_machine_without_a_compiler_is_reported_in_one_line(write_recipe, tmp_path):
    recipe = write_recipe(student={**STUDENT, "train": {"compile": True}})
    environment = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-m", "kdscale", "train", recipe, "--run", tmp_path / "run"]
    done = run_with(environment, [*command, "--cache-root", tmp_path])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "student.train.compile: torch cannot compile the model here (InvalidCxx" in done.stderr
    assert "or set student.train.compile = false" in done.stderr


def run_with(environment, command):
    path = os.pathsep.join(
        [str(Path(__file__).parents[1] / "assets"), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "stored", [{"encoding": "embedding"}, {"features": [{"module": "1"}]}], ids=str
)
def test_teacher_is_not_compiled_where_the_cache_stores_its_inside(load_table, stored):
    with pytest.raises(ConfigError, match=r"teacher.compile is true, and cache\.(enc|feat)"):
        load_table(teacher={"compile": True}, cache=stored)


def test_compile_takes_true_false_or_a_mode(load_table):
    for value in (True, False, "reduce-overhead"):
        assert load_table(student={"train": {"compile": value}}).student.train.compile == value
    with pytest.raises(ConfigError, match=r"student\.train\.compile"):
        load_table(student={"train": {"compile": "fast"}})
