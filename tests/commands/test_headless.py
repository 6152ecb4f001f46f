"""Teachers without a classifier: their features are cached, and students learn from these."""

import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.cache.verify import verify
from kdscale.commands.build import build
from kdscale.commands.recheck import recheck
from kdscale.commands.train import train
from kdscale.errors import ConfigError, ModelError
from kdscale.experiment import Experiment, Locations
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import FeatureTargets

HEADLESS = {"num_classes": 0}
COSINE = {"kind": "cosine", "student": "neck", "teacher": "output"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a teacher that gives an embedding of 6 values, untrained."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    model = create_model("tiny_models:embedding", num_classes=0, in_channels=1)
    save_weights(path, model, metadata={})
    return str(path)


@pytest.fixture(scope="module")
def recipe(load_table, weights):
    """A recipe of that teacher, whose student learns from labels and its embedding."""

    def make(teacher=None, cache=None, loss=None, **changes):
        return load_table(
            views={"count": 2},
            teacher={
                "model": "tiny_models:embedding", "weights": weights, "options": HEADLESS,
                "train": None, **(teacher or {}),
            },
            cache={"encoding": "none", "features": ["output"], **(cache or {})},
            loss={
                "hard_weight": 1.0, "soft_weight": 0.0, "feature_weight": 1.0,
                "features": [COSINE], **(loss or {}),
            },
            **{"student": {"model": "tiny_models:convolutional", "options": {}}, **changes},
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def cache(recipe, tmp_path_factory, shared_root):
    """2 views in 4 shards each. Not to be damaged."""
    path = tmp_path_factory.mktemp("headless") / "headless.zarr"
    return build(Experiment(recipe(), Locations(cache_root=shared_root, cache=path)))


def test_cache_of_a_teacher_without_a_classifier_holds_features_alone(recipe, cache, shared_root):
    manifest = read_manifest(cache)
    assert (manifest.encoding, manifest.format_version, manifest.bytes_per_target) == ("none", 4, 0)
    assert [(one["module"], one["shape"]) for one in manifest.features] == [("output", [6])]
    assert not (cache / "logits").exists()
    assert manifest.teacher["top1_accuracy"] is None
    assert verify(cache).ok
    experiment = Experiment(recipe(), Locations(cache_root=shared_root))
    assert recheck(experiment, cache, num_pairs=40, seed=0).ok
    cached = CachedTargets.open(cache, features=["output"])
    found, index = cached.read(0, torch.arange(8)), torch.arange(8)
    assert isinstance(found, FeatureTargets)
    pixels = experiment.train_images.render_views(cached.pipeline, 0, index).pixels
    expected = experiment.teacher.outputs(pixels).output
    assert torch.allclose(found.features["output"], expected, atol=1e-3)
    cached.close()


@pytest.mark.parametrize(("options", "shape"), [({"maps": True}, [6, 4, 4]), ({}, [6])])
def test_teacher_may_give_maps_or_an_embedding(recipe, tmp_path, shared_root, options, shape):
    torch.manual_seed(0)
    model = create_model("tiny_models:embedding", num_classes=0, in_channels=1, options=options)
    save_weights(tmp_path / "maps.safetensors", model, metadata={})
    table = recipe(
        teacher={
            "weights": str(tmp_path / "maps.safetensors"), "options": {**HEADLESS, **options},
        },
    )  # fmt: skip
    place = Locations(cache_root=shared_root, cache=tmp_path / "maps.zarr")
    assert read_manifest(build(Experiment(table, place))).features[0]["shape"] == shape


def test_features_of_a_classifier_are_cached_without_its_logits(recipe, tmp_path, shared_root):
    """`teacher.options` keep the classifier, which is checked as ever."""
    torch.manual_seed(0)
    model = create_model("tiny_models:convolutional", num_classes=4, in_channels=1)
    save_weights(tmp_path / "whole.safetensors", model, metadata={})
    table = recipe(
        teacher={
            "model": "tiny_models:convolutional", "options": {},
            "weights": str(tmp_path / "whole.safetensors"),
        },
        cache={"features": ["neck"]},
        loss={"features": [{**COSINE, "teacher": "neck"}]},
    )  # fmt: skip
    place = Locations(cache_root=shared_root, cache=tmp_path / "neck.zarr")
    manifest = read_manifest(build(Experiment(table, place)))
    assert (manifest.encoding, manifest.num_classes) == ("none", 4)
    assert manifest.teacher["top1_accuracy"] is not None


def test_student_learns_from_labels_and_the_cached_embedding(recipe, cache, shared_root, tmp_path):
    place = Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)
    train(Experiment(recipe(), place), RunSpec("student", "cache", 0))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("feature_loss" in line and "soft_loss" not in line for line in lines)


def test_cache_without_logits_is_refused_by_a_loss_that_needs_them(
    recipe, cache, shared_root, tmp_path
):
    place = Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)
    with pytest.raises(ConfigError, match=r"loss.soft_weight = 0.5 needs the teacher's logits"):
        train(Experiment(recipe(loss={"soft_weight": 0.5}), place), RunSpec("student", "cache", 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": {"encoding": "float16"}}, "the teacher gives no logits"),
        ({"cache": {"features": []}, "loss": {"feature_weight": 0, "features": []}},
         "nothing would be stored"),
        ({"teacher": {"train": {"epochs": 1}}}, "trains a classifier"),
        ({"student": {"model": "tiny_models:embedding", "options": HEADLESS}},
         "the student gives no logits"),
    ],
)  # fmt: skip
def test_recipe_that_needs_logits_of_a_model_without_a_classifier_is_refused(
    recipe, changes, message
):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_teacher_that_gives_no_one_tensor_is_refused(recipe, shared_root, tmp_path):
    table = recipe(teacher={"model": "tiny_models:pair_of_embeddings", "weights": None,
                            "options": {**HEADLESS, "pretrained": True}})  # fmt: skip
    with pytest.raises(ModelError, match="gives a tuple for 2 images, wanted an embedding"):
        build(Experiment(table, Locations(cache_root=shared_root, cache=tmp_path / "no.zarr")))
