"""Every encoding from the build to the student."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from kdscale import experiment
from kdscale.cache.manifest import read_manifest
from kdscale.commands.bench import bench
from kdscale.commands.build import build
from kdscale.commands.preview import preview_cache
from kdscale.commands.train import train
from kdscale.config import CacheSection
from kdscale.data.loader import DeviceImages
from kdscale.encodings import ENCODINGS
from kdscale.errors import CacheMismatchError, ConfigError
from kdscale.experiment import Experiment, Locations
from kdscale.experiment.encoding import check_temperature, choose_encoding, mention_encoding
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.buffer import stored_codec
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import DenseTargets, TopKTargets

CPU = torch.device("cpu")
TOP_K = {"encoding": "topk", "top_k": 2, "temperatures": [1.0, 2.0, 4.0]}  # of 4 classes


def settings(name):
    return TOP_K if name == "topk" else {"encoding": name}


@pytest.fixture
def built(load_table, tiny_teacher, tmp_path, shared_root):
    """Builds the tiny cache in an encoding, over the decoded images of other tests."""

    def make(name, **changes):
        recipe = load_table(cache={**settings(name), **changes}, views={"count": 2})
        path = tmp_path / f"{name}.zarr"
        return recipe, build(
            Experiment(
                recipe, Locations(cache_root=shared_root, cache=path, teacher_weights=tiny_teacher)
            )
        )

    return make


@pytest.mark.parametrize("name", [one for one, kind in ENCODINGS.items() if kind.has_logits])
def test_cached_targets_are_the_live_ones_as_stored(name, built, tiny_teacher, shared_root):
    recipe, path = built(name)
    images = experiment.training_images(recipe, shared_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    kept = experiment.stored_outputs_of(recipe, images, teacher)
    teacher = replace(teacher, head=kept.head, head_module=kept.head_module)
    live = LiveTeacher(teacher, experiment.shared_views(recipe))
    cached = CachedTargets.open(path)
    codec = stored_codec(cached.reader)
    shown, objective = DeviceImages(images, CPU), experiment.objective(recipe)
    student = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    for view in range(2):
        index = torch.arange(64, 96)  # a shard, so the teacher sees the batch that the build saw
        batch = shown.render_views(cached.pipeline, view, index)
        found, exact = cached.targets(batch), live.targets(batch)
        inputs = teacher.outputs(batch.pixels).embedding_BD
        expected = codec.decode(codec.encode(exact.logits_BC, inputs))
        assert type(found) is type(expected) is (TopKTargets if name == "topk" else DenseTargets)
        losses = [objective(student, t, batch.labels).total() for t in (found, expected, exact)]
        assert torch.equal(losses[0], losses[1])
        if name != "topk":  # whose loss leaves out what the student makes of the others
            limits = {"float32": 0, "float16": 1e-3, "int8": 1e-2, "int4": 0.2, "embedding": 1e-3}
            limit = limits[name]
            assert abs(losses[0] - losses[2]) <= limit
    cached.close()


@pytest.mark.parametrize("name", ["int4", "topk", "embedding"])
def test_student_trains_from_it_preview_draws_it_and_info_reports_it(
    name, built, tiny_teacher, shared_root, tmp_path, kdscale
):
    recipe, path = built(name)
    result = train(
        Experiment(recipe, Locations(run=tmp_path / "run", cache_root=shared_root, cache=path)),
        RunSpec("student", "cache", 0),
    )
    assert result["top1_accuracy"] > 0.4
    preview_cache(path, out=tmp_path / "sheet.png", samples=4, cache_root=shared_root)
    info = json.loads(kdscale("cache", "info", path, "--json").stdout)
    assert info["encoding"] == name
    assert info["format_version"] == 3
    assert 0.9 < info["fidelity"]["gradient_cosine"] <= 1
    assert 0 <= info["fidelity"]["calibration_error_stored"] < 0.3
    if name == "embedding":
        assert (info["embedding_size"], info["bytes_per_target"]) == (32, 64)
        assert 0 < info["fidelity"]["kl_t1"] < 1e-6
    if name == "topk":
        assert info["bytes_per_target"] == 2 * 3 + 3 * 4
        assert (info["top_k"], info["temperatures"]) == (2, [1.0, 2.0, 4.0])
        assert len(info["fidelity"]["tail_mass"]) == 3
        assert info["fidelity"]["tail_interpolation_error"] < 0.2


@pytest.mark.parametrize("cache", [TOP_K, {"encoding": "embedding", "features": ["2"]}])
def test_bench_measures_what_is_not_logits(cache, load_table, tiny_teacher, shared_root):
    found = bench(
        Experiment(
            load_table(cache=cache), Locations(cache_root=shared_root, teacher_weights=tiny_teacher)
        ),
        seconds=0.2,
    )
    assert found["cached_over_staged_time"] > 0


# ------------------------------------------------------------------ what is asked for


def chosen(num_classes, **changes):
    encoding, reason = choose_encoding(CacheSection(encoding="auto", **changes), num_classes)
    return encoding.name, reason


@pytest.mark.parametrize(
    ("num_classes", "name"), [(2, "float16"), (128, "float16"), (129, "int8"), (248, "int8"),
                              (249, "int4"), (496, "int4"), (497, "topk"), (21_841, "topk")],
)  # fmt: skip
def test_auto_takes_the_first_that_fits_the_budget(num_classes, name):
    assert chosen(num_classes)[0] == name


def test_auto_follows_the_budget_and_says_why():
    assert chosen(1000, budget_bytes=2000)[0] == "float16"
    assert chosen(1000, budget_bytes=1999)[0] == "int8"
    name, reason = chosen(1000, budget_bytes=112)
    assert name == "topk"
    assert "of 1000 classes, float16 takes 2000, int8 takes 1008, int4 takes 508" in reason
    assert "topk takes 112 bytes a target; cache.budget_bytes is 112" in reason
    with pytest.raises(ConfigError, match=r"budget_bytes is 111, .* set a larger budget"):
        chosen(1000, budget_bytes=111)


def test_auto_of_few_classes_never_asks_for_as_many_as_there_are():
    with pytest.raises(ConfigError, match=r"float16 takes 20, int8 takes 18, int4 takes 13 bytes"):
        chosen(10, budget_bytes=9)


def test_auto_is_resolved_in_the_manifest_and_the_log(built, load_table, tiny_teacher, caplog):
    with caplog.at_level(logging.INFO):
        _, path = built("auto")
    assert "cache.encoding = 'auto' is float16: of 4 classes" in caplog.text
    assert read_manifest(path).encoding == "float16"


def test_auto_mentions_an_embedding_that_would_be_better(load_table, tiny_teacher, shared_root,
                                                          tmp_path, caplog):  # fmt: skip
    """Not chosen: a recipe means the same whatever its teacher is, and before there is one."""
    recipe = load_table(cache={"encoding": "auto"}, views={"count": 1})
    small = recipe.cache.model_copy(update={"budget_bytes": 7})
    assert choose_encoding(recipe.cache, 4)[0].name == "float16"
    with pytest.raises(ConfigError, match="budget_bytes is 7"):
        choose_encoding(small, 4)
    caplog.set_level(logging.INFO)
    images = experiment.training_images(recipe, shared_root, labelled=True)
    teacher = experiment.frozen_teacher(recipe, images, tiny_teacher, CPU)
    pixels = experiment.few_views(recipe, images, CPU)
    asked = experiment.required_manifest(recipe, images, teacher.describe())
    mention_encoding(recipe, asked, teacher, pixels)
    assert "'embedding'" not in caplog.text  # 64 bytes, against 8
    mention_encoding(recipe, replace(asked, encoding="int4"), teacher, pixels)
    assert "cache.encoding = 'embedding' would take 64 bytes and store all classes" in caplog.text


def test_top_k_of_all_classes_is_refused(load_table, tiny_teacher, shared_root):
    recipe = load_table(cache={"encoding": "topk", "top_k": 4})
    with pytest.raises(ConfigError, match=r"cache\.top_k is 4, the data set has 4 classes"):
        build(Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=tiny_teacher)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 3}, "top_k: the cache has 2, the recipe asks for 3"),
        ({"temperatures": [1.0, 4.0]}, r"temperatures: the cache has \[1.0, 2.0, 4.0\]"),
        ({"encoding": "int8"}, "encoding: the cache has topk, the recipe asks for int8"),
    ],
)
def test_settings_of_top_k_are_identity(built, changes, said):
    built("topk")
    with pytest.raises(CacheMismatchError, match=said):
        built("topk", **changes)


# ------------------------------------------------------------------ temperatures and tails


def student_of(recipe, path, shared_root, run, **loss):
    table = recipe.model_copy(update={"loss": recipe.loss.model_copy(update=loss)})
    job = RunSpec("student", "cache", 0)
    return train(Experiment(table, Locations(run=run, cache_root=shared_root, cache=path)), job)


def test_temperature_beyond_the_grid_is_refused_before_the_first_step(built, shared_root, tmp_path):
    recipe, path = built("topk")
    with pytest.raises(ConfigError, match="temperature 5 is beyond the cache's grid, 1 to 4"):
        student_of(recipe, path, shared_root, tmp_path / "run", temperature=5.0)
    labels_alone = recipe.loss.model_copy(update={"temperature": 5.0, "soft_weight": 0.0})
    check_temperature(read_manifest(path).target_encoding, labels_alone)


def test_recipe_with_such_a_temperature_is_refused_before_anything_is_built(
    load_table, shared_root
):
    with pytest.raises(ConfigError, match="temperature 5 is beyond the cache's grid, 1 to 4"):
        experiment.check_recipe(load_table(cache=TOP_K, loss={"temperature": 5.0}), shared_root)


def test_large_tail_at_the_students_temperature_is_warned_of(built, shared_root, tmp_path, caplog):
    recipe, path = built("topk")
    student_of(recipe, path, shared_root, tmp_path / "cold", temperature=1.0)
    assert "outside the 2 classes" not in caplog.text
    student_of(recipe, path, shared_root, tmp_path / "hot", temperature=4.0)
    assert "at temperature 4, " in caplog.text
    assert "outside the 2 classes that the cache stores" in caplog.text


# ------------------------------------------------------------------ fixed mode


def test_fixed_mode_that_mixes_refuses_top_k_and_takes_it_otherwise(
    load_table, tiny_teacher, shared_root
):
    views = {"mode": "fixed", "count": None}
    mixed = {**views, "operations": ["mixup"]}
    with pytest.raises(ConfigError, match="which needs all classes"):
        build(
            Experiment(
                load_table(views=mixed, cache=TOP_K),
                Locations(cache_root=shared_root, teacher_weights=tiny_teacher),
            )
        )
    recipe = load_table(views=views, cache=TOP_K)
    assert read_manifest(
        build(Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=tiny_teacher)))
    ).encoding == "topk"  # fmt: skip
