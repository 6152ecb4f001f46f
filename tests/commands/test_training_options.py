"""A ViT of timm with all options of a training at once: resumed exactly, both weights evaluated."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdscale.commands.train import train
from kdscale.errors import Interrupted
from kdscale.experiment import Experiment, Locations
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
STUDENT = {"model": "timm/vit_tiny_patch16_224", "options": {**VIT, "drop_path_rate": 0.3}}
ALL = {
    "epochs": 4,
    "global_batch_size": 16,
    "accumulation": 2,
    "optimizer": "timm/lamb",
    "weight_decay": 0.05,
    "decay_norm_and_bias": False,
    "layer_decay": 0.75,
    "label_smoothing": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "cooldown_epochs": 1.0,
    "min_learning_rate": 1e-4,
    "ema_decay": 0.9,
    "log_every": 1,
}
TIMES = ("train_seconds", "images_per_second", "reading", "checksum", "run_id")


@pytest.fixture
def recipe_of(load_table):
    def recipe(**settings):
        return load_table(
            data={"validation": 0.2}, student={**STUDENT, "train": {**ALL, **settings}}
        )

    return recipe


@pytest.fixture
def trained(shared_root, tiny_cache, tmp_path):
    def trained(recipe, name, **options):
        places = Locations(run=tmp_path / name, cache_root=shared_root, cache=tiny_cache)
        train(Experiment(recipe, places), RunSpec("student", "cache", 0), **options)
        return tmp_path / name

    return trained


def without_times(table):
    return {key: value for key, value in table.items() if key not in TIMES}


def assert_same(one, other):
    for name in ("weights", "ema", "best"):
        ours, theirs = (load_file(run / f"{name}.safetensors") for run in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    logs = [[without_times(line) for line in read_metrics(run)] for run in (one, other)]
    assert logs[0] == logs[1]
    results = [without_times(RunFolder(run).read_result()) for run in (one, other)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "float16"},
        {"optimizer": "timm/adan", "gradient_clip": 1.0},
        {"optimizer": "timm/muon", "restore_best": True},
        {"optimizer": "adamw", "optimizer_options": {"betas": [0.8, 0.9]}},
    ],
    ids=["lamb-float16", "adan-clipped", "muon-best", "adamw"],
)
def test_stopped_training_goes_on_as_if_it_had_not_been(
    recipe_of, trained, stopped_after_step, settings
):
    recipe = recipe_of(**settings)
    whole = trained(recipe, "whole")
    with stopped_after_step(3), pytest.raises(Interrupted):
        trained(recipe, "parts")
    assert_same(whole, trained(recipe, "parts", resume=True))


def test_result_and_evaluation_have_metrics_of_both_weights(
    recipe_of, trained, kdscale, shared_root
):
    run = trained(recipe_of(), "run")
    result = RunFolder(run).read_result()
    places = ("--cache-root", shared_root)
    assert kdscale("evaluate", run, "--seconds", 0, *places).exit_code == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert kdscale("evaluate", run, "--weights", "ema", "--seconds", 0, *places).exit_code == 0
    of_average = json.loads((run / "evaluation-ema.json").read_text())
    for name in ("top1_accuracy", "cross_entropy"):
        assert found[name] == pytest.approx(result[name], abs=1e-6)
        assert (
            found[f"ema_{name}"]
            == of_average[name]
            == pytest.approx(result[f"ema_{name}"], abs=1e-6)
        )
    assert result["ema_cross_entropy"] != result["cross_entropy"]
    assert of_average["weights"] == "ema"
    assert isinstance(result["chosen_average"], bool)
    lines = [line for line in read_metrics(run) if line.get("split") == "test"]
    assert all("ema_top1_accuracy" in line for line in lines)


def test_best_weights_are_the_better_ones_on_validation(recipe_of, trained):
    run = trained(recipe_of(), "run")
    lines = [line for line in read_metrics(run) if line.get("split") == "validation"]
    both = [max(line["top1_accuracy"], line["ema_top1_accuracy"]) for line in lines]
    assert RunFolder(run).read_result()["best_validation_accuracy"] == max(both)


def test_run_without_average_has_no_such_weights(recipe_of, trained, kdscale, load_table):
    settings = {key: value for key, value in ALL.items() if key != "ema_decay"}
    run = trained(load_table(student={**STUDENT, "train": {**settings, "epochs": 2}}), "run")
    assert not (run / "ema.safetensors").exists()
    assert not any(name.startswith("ema_") for name in RunFolder(run).read_result())
    done = kdscale("evaluate", run, "--weights", "ema", "--seconds", 0)
    assert (done.exit_code, "needs ema_decay in its recipe" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("model", "options", "drops"),
    [
        ("timm/vit_tiny_patch16_224", {**VIT, "drop_path_rate": 0.5}, "DropPath"),
        ("torchvision/convnext_tiny", {"stochastic_depth_prob": 0.5}, "StochasticDepth"),
    ],
)
def test_stochastic_depth_is_an_option_of_the_model(model, options, drops):
    from kdscale.models.registry import create_model

    with torch.device("meta"):
        created = create_model(model, num_classes=10, in_channels=3, options=options)
    assert any(type(part).__name__ == drops for part in created.modules())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.train.optimizer=timm/lam", "timm has no optimizer 'lam' (did you mean"),
        ("student.train.layer_decay=0.5", "layer_decay needs a model that names its layers"),
        ("student.train.optimizer_options.beta=1", "unexpected keyword argument 'beta'"),
    ],
)
def test_run_refuses_a_student_that_cannot_be_trained_before_its_teacher_is(
    kdscale, write_recipe, tmp_path, setting, message
):
    done = kdscale("run", write_recipe(), "--set", setting, "--run", "run")
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.glob("run/teacher/*.safetensors"))
