"""The promise: a student trained from the cache is the student trained beside its teacher."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdscale import experiment
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.commands.build import build
from kdscale.commands.train import train
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.digest import digest
from kdscale.distributed import create_accelerator
from kdscale.experiment import Experiment, Locations
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.cached import CachedTargets
from kdscale.training.optim import OptimizerStep
from kdscale.training.trainer import ForwardPass, Trainer

CPU = torch.device("cpu")
CROP_AND_FLIP = {
    "operations": [{"name": "random_crop", "padding": 1}, "random_horizontal_flip"],
    "count": 3,
}
NO_VIEWS = {"operations": [], "count": 1}
MIXED = {
    "operations": ["random_horizontal_flip", "rand_augment", "mixup_or_cutmix"],
    "count": 3,
}
SHIFTED = {**MIXED, "shift_every": 32}  # of four shards, each shows a view of its own
ALL = {"operations": ["random_horizontal_flip"], "count": "all"}
VIEWS = {
    "one view": NO_VIEWS,
    "crop and flip": CROP_AND_FLIP,
    "mixed": MIXED,
    "shifted": SHIFTED,
    "all": ALL,
}


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def assert_same_weights(one, other):
    ours, theirs = (load_file(run / "weights.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def loader_of(recipe, images, source, seed=0):
    return BatchLoader(
        DeviceImages(images, CPU),
        torch.arange(images.num_samples),
        experiment.pipeline(recipe, images.num_samples),
        source.schedule,
        seed=seed,
        global_batch_size=recipe.student.train.global_batch_size,
    )


def loop_of(recipe, images, source, student, optimizer):
    loader = loader_of(recipe, images, source)
    schedule = experiment.schedule(recipe.student.train, loader.steps_per_epoch)
    return Trainer(
        ForwardPass(student.model, student.preprocess, CPU),
        loader,
        source,
        experiment.objective(recipe),
        OptimizerStep(optimizer, schedule, CPU),
        create_accelerator(),
    )


# --------------------------------------------------------------------------- the same step


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_cached_step_equals_online_step_at_30_student_states(
    load_table, tiny_teacher, shared_root, views, model
):
    recipe = load_table(
        views=views,
        student={"model": f"tiny_models:{model}", "options": {}, "train": {"epochs": 8}},
        loss={"hard_weight": 0.1, "soft_weight": 0.9},
    )
    path = build(
        Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=tiny_teacher))
    )
    images = experiment.training_images(recipe, shared_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    student = experiment.model_to_train(recipe, recipe.student, images, seed=0, what="student")
    parameters = list(student.model.parameters())
    optimizer = experiment.optimizer(recipe.student.train, student.model)
    targets = CachedTargets.open(path, shift_every=recipe.views.shift_every)
    cached = loop_of(recipe, images, targets, student, optimizer)
    online = loop_of(
        recipe,
        images,
        LiveTeacher(teacher, experiment.shared_views(recipe)),
        student,
        optimizer,
    )
    student.model.train()
    for step in range(30):
        found = []
        for loop in (cached, online):
            batch = loop.loader.batch(step)
            loop.source.start_epoch(step // loop.loader.steps_per_epoch)
            loss = loop.losses_of(batch).total()
            found.append((batch, loss, torch.autograd.grad(loss, parameters)))
        (batch, loss, gradient), (other, other_loss, other_gradient) = found
        assert torch.equal(batch.pixels, other.pixels)
        assert batch.index.equal(other.index)
        assert abs(loss - other_loss) <= 1e-5
        for ours, theirs in zip(gradient, other_gradient, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5
        cached.run(step + 1)
    cached.source.close()


def cache_of_live_answers(path, recipe, images, teacher, seed):
    """A cache of exactly what the live teacher answers to the batches of a run with `seed`."""
    asked = experiment.required_manifest(recipe, images, teacher.describe())
    manifest = create_or_resume(path, asked, images.labels)
    live = LiveTeacher(teacher, experiment.shared_views(recipe))
    loader = loader_of(recipe, images, live, seed)
    shape = (manifest.num_views, manifest.num_samples)
    logits, digests = np.zeros((*shape, images.num_classes), np.float32), np.zeros(shape, np.uint64)
    for step in range(loader.steps_per_epoch * manifest.num_views):
        batch = loader.batch(step)
        logits[batch.view, batch.index] = live.targets(batch).logits_BC.numpy()
        digests[batch.view, batch.index] = digest(batch.pixels).numpy() + 1
    writer = ShardWriter(path, manifest)
    for view in range(manifest.num_views):
        for shard in range(manifest.num_shards):
            part = slice(*manifest.shard_range(shard))
            values = {"logits": logits[view, part], "digests": digests[view, part]}
            writer.write(view, shard, values, 0.0)
    finish(path, manifest, {})
    return path


@pytest.mark.parametrize("batch_size", [32, 128], ids=["batches of 32", "the whole set"])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_free_running_traces_are_bit_identical_when_the_logits_are(
    load_table, tiny_teacher, shared_root, tmp_path, views, batch_size
):
    """A teacher's answer may depend on its batch in the last bit: here every batch comes once."""
    epochs = 2 if views["count"] == "all" else views["count"]
    settings = {"epochs": epochs, "global_batch_size": batch_size}
    recipe = load_table(views=views, student={"options": {"dropout": 0.2}, "train": settings})
    images = experiment.training_images(recipe, shared_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    cache = cache_of_live_answers(tmp_path / "live.zarr", recipe, images, teacher, seed=5)
    places = {"cache_root": shared_root, "teacher_weights": tiny_teacher}
    online, cached = tmp_path / "online", tmp_path / "cached"
    train(Experiment(recipe, Locations(run=online, **places)), RunSpec("student", "teacher", 5))
    train(
        Experiment(recipe, Locations(run=cached, cache=cache, **places)),
        RunSpec("student", "cache", 5),
    )
    assert len(losses(online)) == epochs * 128 // batch_size
    assert losses(online) == losses(cached)
    assert_same_weights(online, cached)


# --------------------------------------------------------------------------- the same conditions


@pytest.fixture
def shown(monkeypatch):
    """Every batch that a training is shown, as (samples, view, digests of the pixels)."""
    batches, original = [], BatchLoader.batch

    def recording(loader, step):
        batch = original(loader, step)
        batches.append((batch.index.tolist(), batch.view, digest(batch.pixels).tolist()))
        return batch

    monkeypatch.setattr(BatchLoader, "batch", recording)

    def take():
        taken = list(batches)
        batches.clear()
        return taken

    return take


@pytest.fixture
def created(monkeypatch):
    """Initial weights of every student that is created."""
    initial, original = [], Experiment.model_to_train

    def recording(*args, **kwargs):
        classifier = original(*args, **kwargs)
        initial.append({k: v.clone() for k, v in classifier.model.state_dict().items()})
        return classifier

    monkeypatch.setattr(Experiment, "model_to_train", recording)
    return initial


def test_all_target_sources_train_on_the_same_batches_views_and_initial_weights(
    load_table, tiny_teacher, tiny_cache, shared_root, tmp_path, shown, created
):
    recipe, seen = load_table(), {}
    for targets in ("none", "cache", "teacher"):
        train(
            Experiment(
                recipe,
                Locations(
                    run=tmp_path / targets,
                    cache_root=shared_root,
                    cache=tiny_cache,
                    teacher_weights=tiny_teacher,
                ),
            ),
            RunSpec("student", targets, 3),
        )
        seen[targets] = shown()
    assert seen["none"] == seen["cache"] == seen["teacher"]
    assert sorted(view for _, view, _ in seen["none"][::4]) == [0, 1, 2]  # each view once
    for epoch in range(3):
        samples = [index for batch in seen["none"][4 * epoch : 4 * epoch + 4] for index in batch[0]]
        assert sorted(samples) == list(range(128))
    for weights in created[1:]:
        assert all(torch.equal(weights[name], created[0][name]) for name in weights)


def test_student_does_not_depend_on_what_was_done_before_it_was_created(
    load_table, tiny_teacher, tiny_cache, shared_root, tmp_path
):
    """Dropout included: whatever numbers a build draws, the student does not see it."""
    recipe = load_table(student={"options": {"dropout": 0.3}})
    job = RunSpec("student", "cache", 0)
    places = {"cache_root": shared_root, "cache": tiny_cache, "teacher_weights": tiny_teacher}
    train(Experiment(recipe, Locations(run=tmp_path / "first", **places)), job)
    torch.randn(1000)
    build(
        Experiment(recipe, Locations(cache_root=tmp_path / "other", teacher_weights=tiny_teacher))
    )
    train(Experiment(recipe, Locations(run=tmp_path / "second", **places)), job)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert_same_weights(tmp_path / "first", tmp_path / "second")


def test_another_seed_changes_weights_and_order_but_neither_views_nor_targets(
    load_table, tiny_teacher, tiny_cache, shared_root, tmp_path, shown, created
):
    seen = []
    for seed in (0, 1):
        train(
            Experiment(
                load_table(),
                Locations(
                    run=tmp_path / str(seed),
                    cache_root=shared_root,
                    cache=tiny_cache,
                    teacher_weights=tiny_teacher,
                ),
            ),
            RunSpec("student", "cache", seed),
        )
        seen.append(shown())
    assert [view for _, view, _ in seen[0]] == [view for _, view, _ in seen[1]]
    assert [index for index, *_ in seen[0]] != [index for index, *_ in seen[1]]
    assert not torch.equal(created[0]["1.weight"], created[1]["1.weight"])
    pixels = [
        {(view, i): d for index, view, digests in one for i, d in zip(index, digests, strict=True)}
        for one in seen
    ]
    assert pixels[0] == pixels[1]


# --------------------------------------------------------------------------- the whole recipe


def test_run_makes_teacher_cache_students_and_table(kdscale, write_recipe, tmp_path):
    recipe = write_recipe()
    done = kdscale("run", recipe, "--seeds", 2, "--online", "--run", "out")
    assert done.exit_code == 0
    for label in ("teacher", "student alone", "student, online teacher", "student, cached teacher"):
        assert f"| {label} " in done.stdout
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    students = [f"{kind}-seed{seed}" for kind in ("alone", "cache", "online") for seed in (0, 1)]
    assert folders == sorted([*students, "teacher"])
    result = RunFolder(tmp_path / "out").read_result()
    first = RunFolder(tmp_path / "out" / "cache-seed0").read_result()
    assert {key: result[key] for key in first} == first
    assert {"top1_accuracy", "best_top1_accuracy", "train_seconds", "num_parameters", "targets",
            "seed"} <= first.keys()  # fmt: skip
    assert [(row["label"], len(row["results"])) for row in result["rows"]] == [
        ("teacher", 1),
        ("alone", 2),
        ("cache", 2),
        ("online", 2),
    ]
    assert (tmp_path / "out" / "report.md").read_text().strip() in done.stdout
    assert (tmp_path / "out" / "recipe.toml").is_file()
    assert list(read_metrics(tmp_path / "out"))
    assert len(list((tmp_path / "cache").glob("*.zarr"))) == 1


@pytest.mark.thorough
def test_run_again_reuses_everything_and_adds_what_is_missing(kdscale, write_recipe, tmp_path):
    recipe = write_recipe()
    first = kdscale("run", recipe)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("weights.safetensors")}
    again = kdscale("run", recipe, "--seeds", 2)
    assert again.exit_code == first.exit_code == 0
    assert "runs/tiny/teacher is finished: reused" in again.stderr
    assert "fits and is complete: reused" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (tmp_path / "runs" / "tiny" / "cache-seed1" / "result.json").is_file()


def test_run_with_other_settings_does_not_touch_what_is_there(kdscale, write_recipe):
    assert kdscale("run", write_recipe()).exit_code == 0
    other = kdscale("run", write_recipe(loss={"temperature": 2.0}))
    assert other.exit_code == 1
    assert "loss.temperature: it has 4.0, now 2.0" in other.stderr


def test_run_takes_a_teacher_that_the_recipe_names(kdscale, write_recipe, tiny_teacher, tmp_path):
    done = kdscale("run", write_recipe(teacher={"weights": tiny_teacher, "train": None}))
    assert done.exit_code == 0
    assert not (tmp_path / "runs" / "tiny" / "teacher").exists()
    assert "| teacher " in done.stdout


def test_labels_in_the_cache_are_those_of_the_data(tiny_cache, load_table, shared_root):
    images = experiment.training_images(load_table(), shared_root, labelled=True)
    assert np.array_equal(CacheReader(tiny_cache).labels(), images.labels)
