"""Views as recipes and runs use them: what is asked of caches, teachers and students."""

import pytest
import torch

from kdscale import experiment
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.commands.build import build
from kdscale.data.loader import DeviceImages
from kdscale.data.views.operations.torchvision_op import TorchvisionOp
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import CacheMismatchError, ConfigError
from kdscale.experiment import Experiment, Locations
from kdscale.experiment.given_objects import GivenObjects
from kdscale.experiment.saved_runs import _teacher_settings
from kdscale.target_sources.cached import CachedTargets

CPU = torch.device("cpu")
FLIP = "random_horizontal_flip"
CROPPED = {"operations": [{"name": "center_crop", "size": 6}, FLIP], "count": 2}


def upside_down(image):
    return image.flip(1) if torch.rand(()) < 0.5 else image


@pytest.mark.parametrize("targets", ["none", "cache"])
def test_model_that_does_not_take_the_views_is_found_before_anything_is_built(
    kdscale, write_recipe, tiny_teacher, tmp_path, targets
):
    recipe = write_recipe(views=CROPPED, teacher={"weights": tiny_teacher})
    done = kdscale("train", recipe, "--targets", targets)
    assert done.exit_code == 1
    assert "does not take images of 1 channels and 6 x 6 pixels" in done.stderr
    assert not list(tmp_path.glob("cache/*.zarr"))


def test_views_that_all_look_alike_are_refused(kdscale, write_recipe):
    views = {"operations": [{"name": "center_crop", "size": 8}], "count": 3}
    done = kdscale("run", write_recipe(views=views))
    assert done.exit_code == 2
    assert "no operation draws anything, so all views are alike" in done.stderr


def test_one_teacher_serves_fixed_and_replayed_views_but_not_enumerated_ones(load_table):
    replayed = _teacher_settings(load_table())
    assert replayed == _teacher_settings(load_table(views={"mode": "fixed", "count": None}))
    assert replayed == _teacher_settings(load_table(views={"count": 7}))
    assert replayed != _teacher_settings(load_table(views={"count": "all"}))


def test_wrong_operation_of_a_teacher_is_named_with_its_field(kdscale, write_recipe):
    recipe = write_recipe(teacher={"train": {"operations": ["random_crp"]}})
    done = kdscale("run", recipe)
    assert done.exit_code == 2
    assert "teacher.train.operations: no operation 'random_crp'" in done.stderr


def test_all_views_are_built_and_used(kdscale, write_recipe, tiny_teacher, tmp_path):
    views = {"operations": [{"name": "random_crop", "padding": 1}, FLIP], "count": "all"}
    recipe = write_recipe(views=views, teacher={"weights": tiny_teacher})
    path = kdscale("cache", "build", recipe).stdout.strip()
    assert read_manifest(tmp_path / path).num_views == 18
    assert kdscale("train", recipe, "--targets", "cache").exit_code == 0
    drawn = kdscale("train", recipe, "--cache", path, "--targets", "cache",
                    "--set", "views.count=18", "--run", "other")  # fmt: skip
    assert drawn.exit_code == 1
    assert "views.enumerated: the cache has true, the recipe asks for (nothing)" in drawn.stderr


def test_targets_are_read_by_a_shifted_schedule(tiny_cache):
    targets, index = CachedTargets.open(tiny_cache, shift_every=32), torch.arange(128)
    targets.start_epoch(0)
    view = targets.schedule.view(0, index)
    assert len(view.unique()) > 1
    mixed = targets.read(view, index).logits_BC
    plain = CachedTargets.open(tiny_cache)
    for number in view.unique().tolist():
        one = plain.read(number, index).logits_BC
        assert mixed[view == number].equal(one[view == number])
    targets.close()
    plain.close()


def test_shifted_epoch_reads_every_chunk_once(tiny_cache, monkeypatch):
    targets = CachedTargets.open(tiny_cache, shift_every=32)  # a shard's samples
    read, original = [], CacheReader.read_shard
    monkeypatch.setattr(
        CacheReader, "read_shard", lambda self, *at: read.append(at) or original(self, *at)
    )
    targets.start_epoch(0)
    targets.close()  # the next epoch's are read meanwhile
    shards = list(range(targets.manifest.num_shards))
    assert sorted(shard for _, shard, _ in read[: len(shards)]) == shards


def test_callable_of_ones_own_fills_a_cache_and_reads_it(load_table, tiny_teacher, tmp_path):
    views = Pipeline((TorchvisionOp(upside_down, "upside-down-1"),), seed=4)
    recipe = load_table(views={"operations": [FLIP], "count": 2})
    path = build(
        Experiment(
            recipe,
            Locations(cache_root=tmp_path, teacher_weights=tiny_teacher),
            given=GivenObjects(views=views),
        )
    )
    with pytest.raises(ConfigError, match="transform of your own, 'upside-down-1'"):
        CachedTargets.open(path)
    other = Pipeline((TorchvisionOp(upside_down, "upside-down-2"),), seed=4)
    with pytest.raises(CacheMismatchError, match="upside-down-2"):
        CachedTargets.open(path, pipeline=other)
    targets = CachedTargets.open(path, pipeline=views)
    images = DeviceImages(experiment.training_images(recipe, tmp_path, labelled=True), CPU)
    batch = images.render_views(targets.pipeline, 1, torch.arange(128))
    targets.check(batch.samples.in_view(1), batch.pixels)
    targets.close()
