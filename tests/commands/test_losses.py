"""Each loss in training: cached equals online, resumed equals uninterrupted, misfits refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdscale import experiment
from kdscale.commands.train import train
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.distributed import create_accelerator
from kdscale.errors import ConfigError, Interrupted
from kdscale.experiment import Experiment, Locations
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.cached import CachedTargets
from kdscale.training.optim import OptimizerStep
from kdscale.training.trainer import ForwardPass, Trainer

CPU = torch.device("cpu")
LOSSES = {
    "kd": {"kind": "kd"},
    "mse": {"kind": "mse"},
    "dkd": {"kind": "dkd"},
    "nkd": {"kind": "nkd"},
    "dist": {"kind": "dist"},
    "wttm": {"kind": "wttm"},
    "standardized kd": {"kind": "kd", "standardize": True},
    "standardized dkd": {"kind": "dkd", "standardize": True, "options": {"target_weight": 2.0}},
}


def loop_of(recipe, images, source, student, optimizer):
    loader = BatchLoader(
        DeviceImages(images, CPU),
        torch.arange(images.num_samples),
        experiment.pipeline(recipe, images.num_samples),
        source.schedule,
        seed=0,
        global_batch_size=recipe.student.train.global_batch_size,
    )
    schedule = experiment.schedule(recipe.student.train, loader.steps_per_epoch)
    loss = experiment.objective(recipe)
    forward = ForwardPass(student.model, student.preprocess, CPU)
    arguments = (forward, loader, source, loss, OptimizerStep(optimizer, schedule, CPU))
    return Trainer(*arguments, create_accelerator(), accumulation=recipe.student.train.accumulation)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_cached_step_equals_online_step_at_12_student_states(
    load_table, tiny_teacher, tiny_cache, shared_root, loss
):
    """In three epochs, so that a warm-up's weights are several."""
    recipe = load_table(loss={**loss, "hard_weight": 0.1, "soft_weight": 0.9})
    images = experiment.training_images(recipe, shared_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    student = experiment.model_to_train(recipe, recipe.student, images, seed=0, what="student")
    parameters = list(student.model.parameters())
    optimizer = experiment.optimizer(recipe.student.train, student.model)
    with_cache = CachedTargets.open(tiny_cache)
    live = LiveTeacher(teacher, experiment.shared_views(recipe))
    cached, online = (
        loop_of(recipe, images, source, student, optimizer) for source in (with_cache, live)
    )
    student.model.train()
    for step in range(12):
        found = []
        for loop in (cached, online):
            loop.state.step = step
            loop.source.start_epoch(step // loop.loader.steps_per_epoch)
            value = loop.losses_of(loop.loader.batch(step)).total()
            found.append((value, torch.autograd.grad(value, parameters)))
        (value, gradient), (other, other_gradient) = found
        assert abs(value - other) <= 1e-5
        for ours, theirs in zip(gradient, other_gradient, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5
        cached.run(step + 1)
    with_cache.close()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_student_learns_from_the_teacher_alone(
    load_table, tiny_teacher, tiny_cache, shared_root, loss
):
    recipe = load_table(
        student={"train": {"epochs": 12}}, loss={**loss, "hard_weight": 0.0, "soft_weight": 1.0}
    )
    images = experiment.training_images(recipe, shared_root, labelled=True)
    student = experiment.model_to_train(recipe, recipe.student, images, seed=0, what="student")
    optimizer = experiment.optimizer(recipe.student.train, student.model)
    targets = CachedTargets.open(tiny_cache)
    loop = loop_of(recipe, images, targets, student, optimizer)
    loop.run(12 * loop.loader.steps_per_epoch)
    agreed = []
    for step in range(loop.loader.steps_per_epoch):
        batch = loop.loader.batch(step)
        answers = targets.targets(batch).logits_BC.argmax(1)
        agreed.append(student.model(student.preprocess(batch.pixels)).argmax(1) == answers)
    targets.close()
    assert torch.cat(agreed).float().mean() > 0.8  # chance: about a quarter


# --------------------------------------------------------------------------- warm-up


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def test_warm_up_goes_on_where_a_run_was_stopped(
    load_table, tiny_cache, tiny_teacher, shared_root, tmp_path, stopped_after_step
):
    recipe = load_table(loss={"kind": "dkd", "warmup_epochs": 4})
    job, places = RunSpec("student", "cache", 0), {"cache_root": shared_root, "cache": tiny_cache}
    train(Experiment(recipe, Locations(run=tmp_path / "whole", **places)), job)
    with stopped_after_step(5), pytest.raises(Interrupted):
        train(Experiment(recipe, Locations(run=tmp_path / "parts", **places)), job)
    train(Experiment(recipe, Locations(run=tmp_path / "parts", **places)), job, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / run / "weights.safetensors") for run in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_training_shorter_than_its_warm_up_says_so(
    load_table, tiny_cache, shared_root, tmp_path, caplog
):
    recipe = load_table(loss={"kind": "dkd"}, student={"train": {"epochs": 1}})
    places = {"cache_root": shared_root, "cache": tiny_cache}
    train(
        Experiment(recipe, Locations(run=tmp_path / "run", **places)),
        RunSpec("student", "cache", 0),
    )
    assert "loss.warmup_epochs is 20, the student is trained for 1" in caplog.text


# --------------------------------------------------------------------------- what cannot work


MIXED = {"operations": ["random_horizontal_flip", "mixup"], "count": 3}
TOP_K = {"encoding": "topk", "top_k": 2, "temperatures": [1.0, 2.0, 4.0]}
MISFITS = [
    ({"views": MIXED, "loss": {"kind": "dkd"}}, r"'dkd' .* views.operations mixes have two labels"),
    ({"cache": TOP_K, "loss": {"kind": "dist"}}, r"'dist' needs the logits of all 4 classes"),
    ({"cache": TOP_K, "loss": {"standardize": True}}, "loss.standardize = true needs the logits"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_loss_that_cannot_be_is_refused_before_anything_is_built(
    load_table, shared_root, changes, message
):
    with pytest.raises(ConfigError, match=message):
        experiment.check_recipe(load_table(**changes), shared_root)


def test_loss_that_cannot_be_leaves_no_run_behind(
    kdscale, write_recipe, make_dataset, tiny_teacher, tmp_path
):
    """Unlabelled images, of which `hard_weight = 0` alone would be enough for other losses."""
    make_dataset(tmp_path / "bare", unlabelled=True)
    recipe = write_recipe(
        data={"source": str(tmp_path / "bare")},
        teacher={"weights": tiny_teacher, "train": None},
        loss={"kind": "nkd", "hard_weight": 0.0, "soft_weight": 1.0},
    )
    for command in (("run", recipe), ("train", recipe, "--targets", "teacher")):
        done = kdscale(*command)
        assert done.exit_code == 1
        assert "loss.kind = 'nkd' sets the label's class apart" in done.stderr
        assert "has no labels" in done.stderr
        assert not list(tmp_path.glob("runs/**/weights.safetensors"))
    assert kdscale("train", recipe, "--targets", "teacher", "--set", "loss.kind=mse").exit_code == 0


def test_runs_recipe_holds_what_the_loss_was_published_with(
    kdscale, write_recipe, tiny_cache, tmp_path
):
    settings = ("--set", "loss.kind=nkd", "--set", "student.train.epochs=1")
    done = kdscale("train", write_recipe(), "--targets", "cache", "--cache", tiny_cache,
                   "--run", "run", *settings)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    assert "temperature = 1.0\n" in recipe
    assert "[loss.options]\nnon_target_weight = 1.5\n" in recipe
    assert json.loads((tmp_path / "run" / "result.json").read_text())["targets"] == "cache"
