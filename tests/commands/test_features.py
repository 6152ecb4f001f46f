"""Features and embeddings from the build to what a loss is given."""

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from kdscale import experiment
from kdscale.cache import records
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.commands.build import build
from kdscale.commands.recheck import recheck
from kdscale.commands.repair_cache import repair
from kdscale.commands.train import train
from kdscale.data.loader import DeviceImages
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import CacheError, CacheMismatchError, ConfigError
from kdscale.experiment import Experiment, Locations
from kdscale.models.feature_extraction import FeatureSpec
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.cached import CachedTargets

CPU = torch.device("cpu")
FEATURES = ["stem", {"module": "body.1", "pool": 2}, {"module": "body", "pool": 1}, "neck"]
SHAPES = {"stem": (6, 4, 4), "body.1": (6, 2, 2), "body": (6,), "neck": (6,)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a teacher with maps inside, untrained."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    model = create_model("tiny_models:convolutional", num_classes=4, in_channels=1)
    save_weights(path, model, metadata={})
    return str(path)


@pytest.fixture(scope="module")
def recipe(load_table, weights):
    """A recipe of that teacher; `cache` and other sections changed."""

    def make(features=FEATURES, **changes):
        cache = {"encoding": "embedding", "features": features, **changes.pop("cache", {})}
        teacher = {
            "model": "tiny_models:convolutional", "weights": weights, "options": {}, "train": None,
            **changes.pop("teacher", {}),
        }  # fmt: skip
        return load_table(views={"count": 2}, cache=cache, teacher=teacher, **changes)

    return make


@pytest.fixture(scope="module")
def cache(recipe, tmp_path_factory, shared_root):
    """2 views in 4 shards each, with all features. Not to be damaged."""
    path = tmp_path_factory.mktemp("features") / "all.zarr"
    return build(Experiment(recipe(), Locations(cache_root=shared_root, cache=path)))


def parts_of(recipe, shared_root):
    images = experiment.training_images(recipe, shared_root, labelled=True)
    return images, experiment.frozen_teacher(recipe, images, None, CPU)


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_and_live_answers_are_alike_features_too(
    precision, recipe, cache, shared_root, tmp_path
):
    table = recipe(teacher={"precision": precision})
    if precision != "float32":
        cache = build(
            Experiment(table, Locations(cache_root=shared_root, cache=tmp_path / "low.zarr"))
        )
    images, teacher = parts_of(table, shared_root)
    taps = tuple(FeatureSpec(one.module, one.pool) for one in table.cache.features)
    live = LiveTeacher(replace(teacher, taps=taps), ViewSchedule(2, 0))
    cached = CachedTargets.open(cache, features=list(SHAPES))
    shown = DeviceImages(images, CPU)
    for view in range(2):
        batch = shown.render_views(
            cached.pipeline, view, torch.arange(32, 64)
        )  # a shard, as was asked
        said, stored = live.targets(batch), cached.targets(batch)
        assert {name: tuple(one.shape[1:]) for name, one in said.features.items()} == SHAPES
        for name, values in said.features.items():
            assert torch.equal(stored.features[name], values.half().float()), name
        close = {"float32": 1e-3, "bfloat16": 2e-2}[precision] * said.logits_BC.abs().max()
        assert torch.allclose(stored.logits_BC, said.logits_BC, rtol=0, atol=float(close))
    order = torch.tensor([90, 3, 3, 127])
    some = cached.read(1, order).features["stem"]
    assert torch.equal(some, cached.read(1, torch.arange(128)).features["stem"][order])
    said.features["stem"].requires_grad_()  # a tensor like any other: none of inference mode
    cached.close()


def test_teacher_runs_once_for_logits_and_features(recipe, shared_root, tmp_path, monkeypatch):
    asked = Counter()
    table = recipe()
    _, teacher = parts_of(table, shared_root)
    forward = type(teacher.model).forward

    def counted(self, pixels):
        asked[len(pixels)] += 1
        return forward(self, pixels)

    monkeypatch.setattr("tiny_models.Convolutional.forward", counted)
    build(Experiment(table, Locations(cache_root=shared_root, cache=tmp_path / "once.zarr")))
    plain = dict(asked)
    asked.clear()
    bare = recipe([], cache={"encoding": "float16"})
    build(Experiment(bare, Locations(cache_root=shared_root, cache=tmp_path / "bare.zarr")))
    assert plain[32] == asked[32]  # shards and probe; looking at a few images comes to it


def test_nothing_is_read_but_what_is_requested(cache, monkeypatch):
    read = Counter()
    original = records.read_object

    def counted(store, key, sound):
        read[key.partition("/")[0]] += 1
        return original(store, key, sound)

    monkeypatch.setattr(records, "read_object", counted)
    for features in ([], ["body.1"]):
        cached = CachedTargets.open(cache, features=features, num_views=1)
        cached.start_epoch(0)
        read.clear()
        assert list(cached.read(0, torch.arange(4)).features) == features
        cached.close()
        cached = CachedTargets.open(cache, features=features, num_views=1)
        read.clear()
        cached.start_epoch(0)
        cached.close()
        assert read == Counter({
            "embedding": 4, "digests": 4, **{f"features.{name}": 4 for name in features},
        })  # fmt: skip


def test_feature_that_a_cache_has_not_is_refused_by_name(cache):
    with pytest.raises(
        CacheMismatchError, match=r"of stem, body\.1, body, neck, not those of layer9: build"
    ):
        CachedTargets.open(cache, features=["stem", "layer9"])


def test_info_names_features_and_their_shapes(cache, kdscale):
    info = json.loads(kdscale("cache", "info", cache, "--json").stdout)
    assert info["features"][1] == {"module": "body.1", "pool": 2, "shape": [6, 2, 2]}
    assert (info["encoding"], info["embedding_size"], info["format_version"]) == ("embedding", 6, 3)
    assert "body.1" in kdscale("cache", "info", cache).stdout


def test_student_trains_from_an_embedding(recipe, cache, shared_root, tmp_path):
    job = RunSpec("student", "cache", 0)
    result = train(
        Experiment(recipe(), Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)),
        job,
    )
    assert result["cache"] == read_manifest(cache).id


# ------------------------------------------------------------------ which cache fits


def test_cache_with_more_features_fits_and_is_found(recipe, cache, shared_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(cache, root / "tiny.zarr")
    for fewer in ([], ["neck"], [{"module": "body.1", "pool": 2}, "stem"]):
        table = recipe(fewer)
        assert build(Experiment(table, Locations(cache_root=root))) == root / "tiny.zarr"
        run = tmp_path / f"run-{len(fewer)}"
        train(
            Experiment(table, Locations(run=run, cache_root=root, cache=root / "tiny.zarr")),
            RunSpec("student", "cache", 0),
        )


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (
            "top",
            r"cache\.features top: the cache has \(nothing\), the recipe asks for its output as",
        ),
        (
            "body",
            r"features body: the cache has its output pooled to 1 x 1, the recipe asks for its",
        ),
    ],
)
def test_cache_that_lacks_a_feature_is_refused_by_name(
    feature, said, recipe, cache, shared_root, tmp_path
):
    table = recipe(["stem", feature])
    with pytest.raises(CacheMismatchError, match=said):
        build(Experiment(table, Locations(cache_root=shared_root, cache=cache)))
    with pytest.raises(CacheMismatchError, match=said):
        train(
            Experiment(table, Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)),
            RunSpec("student", "cache", 0),
        )


def test_build_that_finds_no_cache_with_its_features_makes_another(recipe, tmp_path):
    first = build(Experiment(recipe(["stem"]), Locations(cache_root=tmp_path)))
    second = build(Experiment(recipe(["neck"]), Locations(cache_root=tmp_path)))
    third = build(Experiment(recipe(["body"]), Locations(cache_root=tmp_path)))
    assert len({first, second, third}) == 3
    assert read_manifest(first).id == read_manifest(third).id
    assert build(Experiment(recipe(["neck"]), Locations(cache_root=tmp_path))) == second
    assert read_manifest(third).features[0]["module"] == "body"


def test_build_goes_on_with_the_features_that_the_cache_was_begun_with(
    recipe, cache, shared_root, tmp_path
):
    path = tmp_path / "grown.zarr"
    shutil.copytree(cache, path)
    table = recipe(["neck"])
    views = table.views.model_copy(update={"count": 3})
    build(
        Experiment(
            table.model_copy(update={"views": views}), Locations(cache_root=shared_root, cache=path)
        )
    )
    manifest = read_manifest(path)
    assert [one["module"] for one in manifest.features] == list(SHAPES)
    assert CacheReader(path).read_view(2, ["stem"])["features.stem"].shape == (128, 6, 4, 4)
    assert verify(path).ok


# ------------------------------------------------------------------ sound, or mended


def test_damaged_feature_and_head_are_found_and_rebuilt(recipe, cache, shared_root, tmp_path):
    path = tmp_path / "bad.zarr"
    shutil.copytree(cache, path)
    before = {one.relative_to(path): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    for key in ("features.stem/c/1/2/0/0/0", "head_weight/c/0/0", "features.body/zarr.json"):
        data = bytearray((path / key).read_bytes())
        data[len(data) // 2] ^= 1
        (path / key).write_bytes(data)
    bad = ("head_weight/c/0/0", "features.body/zarr.json", "view-00001/shard-00002")
    assert set(verify(path).corrupt_shards) == set(bad)
    with pytest.raises(CacheError, match="missing or damaged"):
        CachedTargets.open(path)
    # Whose features are fewer: the cache's are rebuilt all the same.
    repair(Experiment(recipe(["neck"]), Locations(cache_root=shared_root)), path)
    assert verify(path).ok
    after = {one.relative_to(path): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    assert before.keys() == after.keys()
    differing = {str(key) for key in before if before[key] != after[key]}
    assert differing <= {"zarr.json", "commits/c/1/2/0"}  # the time it took


def test_damaged_manifest_is_made_anew_from_a_recipe_with_the_same_features(
    recipe, cache, shared_root, tmp_path
):
    path = tmp_path / "headless.zarr"
    shutil.copytree(cache, path)
    text = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(text.replace(b'"complete": true', b'"complete": trux'))
    with pytest.raises(CacheError, match=r"its cache\.features are not the recipe's"):
        repair(Experiment(recipe(["neck"]), Locations(cache_root=shared_root)), path)
    repair(Experiment(recipe(), Locations(cache_root=shared_root)), path)
    assert read_manifest(path).features == read_manifest(cache).features
    assert verify(path).ok


def test_teacher_gives_the_same_features_in_a_second_run(recipe, cache, shared_root, tmp_path):
    again = recheck(
        Experiment(recipe(), Locations(cache_root=shared_root)), cache, num_pairs=40, seed=0
    )
    assert again.ok
    assert again.largest_difference < 1e-3


def test_other_features_are_found_by_asking_again(recipe, shared_root, tmp_path, monkeypatch):
    """Where bytes are as written, but the teacher's code gave something else."""
    table = recipe(["stem"], cache={"encoding": "float32"})
    path = build(
        Experiment(table, Locations(cache_root=shared_root, cache=tmp_path / "other.zarr"))
    )
    import tiny_models

    forward = tiny_models.Convolutional.forward

    def shifted(self, pixels):
        hook = self.stem.register_forward_hook(lambda _m, _i, output: output + 0.5, prepend=True)
        back = self.body.register_forward_pre_hook(lambda _m, args: args[0] - 0.5)
        try:
            return forward(self, pixels)
        finally:
            hook.remove(), back.remove()

    monkeypatch.setattr(tiny_models.Convolutional, "forward", shifted)
    again = recheck(Experiment(table, Locations(cache_root=shared_root)), path, num_pairs=8, seed=0)
    assert not again.ok
    assert len(again.to_json()["other_features"]) == 8
    assert not again.other_logits
    assert "other features: view-0000" in again.describe()


# ------------------------------------------------------------------ what is refused, and when


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": ["sten"]}, "no module 'sten': did you mean 'stem'"),
        ({"features": [{"module": "neck", "pool": 2}]}, "'neck' pooled to 2 x 2, but it gives"),
        ({"teacher": {"options": {"softmax": True}}}, "'last', a LogSoftmax, which is not linear"),
    ],
)
def test_teacher_that_will_not_do_is_refused_before_anything_is_built(
    changes, said, recipe, shared_root, tmp_path
):
    table = recipe(**changes)
    with pytest.raises(ConfigError, match=said):
        build(Experiment(table, Locations(cache_root=shared_root, cache=tmp_path / "none.zarr")))
    assert not (tmp_path / "none.zarr").exists()
    with pytest.raises(ConfigError, match=said):
        experiment.check_recipe(table, shared_root)


def test_large_shards_are_mentioned(recipe, shared_root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kdscale.building.stored_outputs._LARGE_SHARD", 1000)
    caplog.set_level(logging.WARNING)
    build(
        Experiment(
            recipe(["stem"]), Locations(cache_root=shared_root, cache=tmp_path / "large.zarr")
        )
    )
    assert "a shard of 32 samples takes" in caplog.text
