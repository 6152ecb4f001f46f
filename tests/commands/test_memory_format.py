"""Students laid out channels last: the same training, but for the order of sums."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdscale.commands.train import train
from kdscale.config import load_recipe
from kdscale.errors import Interrupted
from kdscale.experiment import Experiment, Locations
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec

CONVOLUTIONAL = {"model": "tiny_models:batch_norm_and_dropout", "options": {}}


@pytest.fixture
def recipe_of(load_table):
    def recipe(memory_format, **settings):
        settings = {"epochs": 2, "memory_format": memory_format, "log_every": 1, **settings}
        return load_table(student={**CONVOLUTIONAL, "train": settings})

    return recipe


@pytest.fixture
def trained(shared_root, tiny_cache, tmp_path):
    def trained(recipe, name, **options):
        run = tmp_path / name
        places = {"cache_root": shared_root, "cache": tiny_cache}
        train(
            Experiment(recipe, Locations(run=run, **places)),
            RunSpec("student", "cache", 0),
            **options,
        )
        return run

    return trained


def losses(run):
    return torch.tensor([line["loss"] for line in read_metrics(run) if "loss" in line])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopped_training_goes_on_as_if_it_had_not_been(
    recipe_of, trained, stopped_after_step, optimizer
):
    recipe = recipe_of("channels_last", optimizer=optimizer)
    whole = trained(recipe, "whole")
    with stopped_after_step(3), pytest.raises(Interrupted):
        trained(recipe, "parts")
    parts = trained(recipe, "parts", resume=True)
    assert torch.equal(losses(whole), losses(parts))
    one, other = (load_file(run / "weights.safetensors") for run in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_losses_are_those_of_contiguous_training(recipe_of, trained):
    one, other = (trained(recipe_of(name), name) for name in ("contiguous", "channels_last"))
    assert len(losses(one)) > 4
    torch.testing.assert_close(losses(one), losses(other), rtol=0, atol=1e-5)


def test_evaluation_and_its_times_are_of_the_format_it_was_trained_in(
    recipe_of, trained, kdscale, shared_root
):
    run = trained(recipe_of("channels_last"), "run")
    done = kdscale("evaluate", run, "--seconds", "0.01", "--cache-root", shared_root)
    assert done.exit_code == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text())["memory_format"] == "channels_last"
    assert load_recipe(str(run / "recipe.toml")).student.train.memory_format == "channels_last"


def test_model_that_takes_only_contiguous_maps_is_reported(kdscale, write_recipe, tiny_teacher):
    settings = {"memory_format": "channels_last"}
    recipe = write_recipe(
        student={"model": "tiny_models:viewing", "options": {}, "train": settings},
        teacher={"weights": tiny_teacher},
    )
    done = kdscale("train", recipe, "--targets", "none", "--run", "run")
    assert done.exit_code == 1
    assert "student does not take memory_format 'channels_last' (view size is" in done.stderr
    assert "set its memory_format to 'contiguous', or have it call reshape" in done.stderr
