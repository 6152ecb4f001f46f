"""The fixed mode, for comparison: the teacher sees clean images, the student augmented ones."""

import json

import numpy as np
import pytest
import torch

from kdscale import experiment
from kdscale.cache.reader import CacheReader
from kdscale.commands.build import build
from kdscale.data.loader import DeviceImages
from kdscale.errors import ViewMismatchError
from kdscale.experiment import Experiment, Locations
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.clean_image import CleanImageTargets
from kdscale.targets import DenseTargets, mixed_targets

CPU = torch.device("cpu")
FIXED = {"operations": ["random_horizontal_flip", "mixup"], "mode": "fixed", "count": None}


@pytest.fixture
def parts(load_table, tiny_teacher, tmp_path):
    recipe = load_table(views=FIXED)
    path = build(Experiment(recipe, Locations(cache_root=tmp_path, teacher_weights=tiny_teacher)))
    images = experiment.training_images(recipe, tmp_path, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    resident = DeviceImages(images, CPU)
    schedule = experiment.fresh_views(recipe, recipe.student.train, images.num_samples)
    source = CleanImageTargets(CachedTargets.open(path), resident, schedule)
    pipeline = experiment.pipeline(recipe, images.num_samples)
    yield source, resident, pipeline, teacher
    source.clean.close()


def test_teacher_runs_on_clean_images_alone(parts):
    source, resident, _, teacher = parts
    manifest = source.clean.manifest
    assert (manifest.views["operations"], manifest.num_views) == ([], 1)
    pixels, _ = resident.gather(torch.arange(128))
    stored = CacheReader(source.clean.reader.location).read_view(0)["logits"]
    np.testing.assert_allclose(stored, teacher.logits(pixels), atol=2e-2)


def test_student_gets_another_view_each_epoch(parts):
    source, resident, pipeline, _ = parts
    index = torch.arange(128)
    views = [source.schedule.view(epoch, index) for epoch in range(3)]
    assert sorted(views) == [0, 1, 2]
    shown = [resident.render_views(pipeline, view, index).pixels for view in views]
    assert not shown[0].equal(shown[1])


def test_targets_of_a_mixture_are_mixed_like_its_labels(parts):
    source, resident, pipeline, _ = parts
    batch = resident.render_views(pipeline, 1, torch.arange(128))
    source.start_epoch(0)
    clean = source.clean.read(0, torch.arange(128)).logits_BC.softmax(1)
    weight = batch.mix.weight_B.unsqueeze(1)
    wanted = weight * clean + (1 - weight) * clean[batch.mix.index_B]
    found = source.targets(batch).logits_BC
    torch.testing.assert_close(found.exp(), wanted)


def test_weight_0_and_1_leave_one_of_both():
    own, other = DenseTargets(torch.randn(2, 5)), DenseTargets(torch.randn(2, 5))
    mixed = mixed_targets(own, other, torch.tensor([1.0, 0.0])).logits_BC
    wanted = torch.stack((own.logits_BC[0], other.logits_BC[1])).log_softmax(1)
    torch.testing.assert_close(mixed, wanted)


def test_clean_images_are_checked(parts):
    source, resident, pipeline, _ = parts
    batch = resident.render_views(pipeline, 0, torch.arange(128))
    stored = resident._pixels
    stored._pixels = stored._pixels.clone()
    stored._pixels[7, 0, 0, 0] ^= 1
    with pytest.raises(ViewMismatchError, match=r"in view 0, 1 of 128 samples \(first: 7\)"):
        source.targets(batch)


def test_training_warns_what_it_is(kdscale, write_recipe, tiny_teacher, tmp_path):
    recipe = write_recipe(views=FIXED, teacher={"weights": tiny_teacher})
    done = kdscale("train", recipe, "--targets", "cache", "--run", "out")
    assert done.exit_code == 0
    assert "the targets are not those of what it sees" in done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["targets"] == "cache"


def test_online_and_counted_views_are_refused(kdscale, write_recipe, tiny_teacher, tmp_path):
    recipe = write_recipe(views=FIXED, teacher={"weights": tiny_teacher})
    online = kdscale("train", recipe, "--targets", "teacher")
    assert online.exit_code == 2
    assert "from a cache: train with --targets cache" in online.stderr
    assert not (tmp_path / "runs").exists()
    assert kdscale("run", recipe, "--online").exit_code == 2
    assert not (tmp_path / "runs").exists()
    counted = kdscale("train", recipe, "--set", "views.count=4")
    assert counted.exit_code != 0
    assert "leave out count and shift_every" in counted.stderr
