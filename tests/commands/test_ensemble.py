"""Several caches, one student: the right mean, of caches that belong together, all named."""

import json

import pytest
import torch

from kdscale import experiment
from kdscale.cache.manifest import read_manifest
from kdscale.commands.build import build
from kdscale.commands.train import train
from kdscale.data.loader import DeviceImages
from kdscale.errors import ConfigError
from kdscale.experiment import Experiment, Locations
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.runs.run_spec import RunSpec
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.ensemble import MEANS, Ensemble, normalised

CPU = torch.device("cpu")


# ------------------------------------------------------------------ the mean


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("mean", MEANS)
def test_mean_is_the_weighted_one_in_float64(mean, temperature):
    made = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 50, 10, generator=made) * 8
    weights = normalised([1.0, 2.0, 5.0], 3)
    assert weights == [0.125, 0.25, 0.625]
    exact = logits.double() / temperature
    if mean == "probabilities":
        expected = sum(w * z.softmax(1) for w, z in zip(weights, exact, strict=True))
    else:
        expected = sum(w * z for w, z in zip(weights, exact, strict=True)).softmax(1)
    found = MEANS[mean](logits, torch.tensor(weights), temperature)
    assert found.dtype == torch.float32
    assert (found.double() / temperature).softmax(1).sub(expected).abs().max() < 1e-6


def test_mean_of_probabilities_stands_logits_of_any_size():
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    found = MEANS["probabilities"](logits, torch.tensor([0.25, 0.75]), 1.0)
    assert torch.isfinite(found).all()
    assert torch.allclose(found.softmax(1), torch.tensor([[0.25, 0.75, 0.0]]))


@pytest.mark.parametrize("mean", MEANS)
def test_mean_of_equal_teachers_is_their_answer(mean):
    logits = torch.randn(20, 10)
    found = MEANS[mean](torch.stack([logits, logits]), torch.tensor([0.3, 0.7]), 2.0)
    assert torch.allclose((found / 2).softmax(1), (logits / 2).softmax(1), atol=1e-6)


def test_weights_are_equal_when_none_are_given():
    assert normalised([], 4) == [0.25] * 4


# ------------------------------------------------------------------ caches


@pytest.fixture(scope="session")
def second_teacher(tmp_path_factory, load_table):
    """Weights of another teacher: random ones."""
    torch.manual_seed(5)
    model = create_model("tiny_models:linear", num_classes=4, in_channels=1)
    path = tmp_path_factory.mktemp("second") / "linear.safetensors"
    save_weights(path, model, metadata={})
    return str(path)


@pytest.fixture(scope="session")
def second(load_table, second_teacher):
    """The tiny recipe with that teacher, and changes."""

    def make(**changes):
        teacher = {"model": "tiny_models:linear", "options": {}, "weights": second_teacher}
        return load_table(teacher={**teacher, **changes.pop("teacher", {})}, **changes)

    return make


@pytest.fixture(scope="session")
def second_cache(second, shared_root, tiny_cache):
    """Its cache, of the same images and views as the tiny one, in another encoding."""
    path = shared_root / "second.zarr"
    return build(
        Experiment(
            second(cache={"encoding": "float16"}), Locations(cache_root=shared_root, cache=path)
        )
    )


def test_cached_ensemble_equals_an_online_one(
    second, second_teacher, load_table, tiny_cache, tiny_teacher, shared_root, tmp_path
):
    exact = build(
        Experiment(second(), Locations(cache_root=shared_root, cache=tmp_path / "exact.zarr"))
    )
    recipe = load_table()
    images = experiment.training_images(recipe, shared_root, labelled=True)
    views = experiment.shared_views(recipe)
    live = [
        LiveTeacher(experiment.frozen_teacher(one, images, weights, CPU), views)
        for one, weights in ((recipe, tiny_teacher), (second(), second_teacher))
    ]
    cached = [CachedTargets.open(path) for path in (tiny_cache, exact)]
    shown = DeviceImages(images, CPU)
    for mean in MEANS:
        online, stored = (Ensemble(all_, [0.25, 0.75], mean, 4.0) for all_ in (live, cached))
        for view in range(3):
            batch = shown.render_views(cached[0].pipeline, view, torch.arange(64, 96))
            found, expected = stored.targets(batch), online.targets(batch)
            assert torch.equal(found.logits_BC, expected.logits_BC)
    for one in cached:
        one.close()


def result_of(tmp_path, name="run"):
    return json.loads((tmp_path / name / "result.json").read_text())


def test_student_learns_from_two_caches_and_its_result_names_both(
    kdscale, write_recipe, tiny_teacher, tiny_cache, second_cache, tmp_path
):
    settings = {"caches": [str(second_cache)], "weights": [3.0, 1.0]}
    recipe = write_recipe(teacher={"weights": tiny_teacher}, ensemble=settings)
    command = ("train", recipe, "--targets", "cache", "--cache", tiny_cache)
    done = kdscale(*command, "--run", "run")
    assert done.exit_code == 0, done.stderr
    found = result_of(tmp_path)
    manifests = [read_manifest(path) for path in (tiny_cache, second_cache)]
    assert found["cache"] == manifests[0].id
    assert [one["id"] for one in found["caches"]] == [one.id for one in manifests]
    assert [one["weight"] for one in found["caches"]] == [0.75, 0.25]
    assert found["caches"][1]["teacher"] == "tiny_models:linear"
    assert found["caches"][1]["path"] == str(second_cache)
    seconds = [one.build["seconds"] for one in manifests]
    assert found["build_seconds"] == pytest.approx(sum(seconds), abs=1e-3)
    named = write_recipe("named", teacher={"weights": tiny_teacher})
    arguments = ("--cache", second_cache, "--set", "ensemble.weights=[3,1]", "--run", "two")
    done = kdscale(*("train", named, *command[2:]), *arguments)
    assert done.exit_code == 0, done.stderr
    assert result_of(tmp_path, "two")["top1_accuracy"] == found["top1_accuracy"]
    assert result_of(tmp_path, "two")["caches"] == found["caches"]


def test_weights_and_mean_reach_the_loss(
    load_table, tiny_teacher, tiny_cache, second_cache, shared_root, tmp_path
):
    losses = []
    for number, settings in enumerate(
        ({"weights": [1.0, 1.0]}, {"weights": [1.0, 3.0]}, {"mean": "logits"}, {"caches": []})
    ):
        recipe = load_table(
            teacher={"weights": tiny_teacher},
            ensemble={"caches": [str(second_cache)], **settings},
            student={"train": {"epochs": 1}},
        )
        run = tmp_path / str(number)
        train(
            Experiment(recipe, Locations(run=run, cache_root=shared_root, cache=tiny_cache)),
            RunSpec("student", "cache", 0),
        )
        losses.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert len(set(losses)) == 4


def test_whole_recipe_runs_with_an_ensemble_found_below_the_root(
    kdscale, write_recipe, tiny_teacher, second_cache, shared_root, tmp_path
):
    recipe = write_recipe(
        teacher={"weights": tiny_teacher}, ensemble={"caches": ["second.zarr"]},
        student={"train": {"epochs": 1}},
    )  # fmt: skip
    for _ in range(2):  # the second time all is reused
        done = kdscale("run", recipe, "--cache-root", shared_root)
        assert done.exit_code == 0, done.stderr
    assert "cache-seed0 is finished: reused" in done.stderr
    assert len(result_of(tmp_path, "runs/tiny")["caches"]) == 2
    online = kdscale("run", recipe, "--cache-root", shared_root, "--run", "o", "--online")
    assert online.exit_code == 2
    assert "ensemble.caches names teachers whose logits are in caches" in online.stderr


def test_fixed_mode_takes_the_mean_of_clean_answers(
    second, load_table, tiny_teacher, shared_root, tmp_path
):
    fixed = {"mode": "fixed", "count": 1, "operations": ["random_horizontal_flip"]}
    other = build(
        Experiment(
            second(views=fixed), Locations(cache_root=shared_root, cache=tmp_path / "other.zarr")
        )
    )
    recipe = load_table(
        views=fixed, teacher={"weights": tiny_teacher}, ensemble={"caches": [str(other)]}
    )
    own = build(Experiment(recipe, Locations(cache_root=shared_root, cache=tmp_path / "own.zarr")))
    job = RunSpec("student", "cache", 0)
    result = train(
        Experiment(recipe, Locations(run=tmp_path / "run", cache_root=shared_root, cache=own)), job
    )
    assert len(result["caches"]) == 2


# ------------------------------------------------------------------ what does not go together


@pytest.fixture
def refused(kdscale, write_recipe, tiny_teacher, tiny_cache, shared_root):
    """What a training, and a whole run, say of a further cache; nothing is trained."""

    def ask(cache, code=1, **changes):
        changes["ensemble"] = {"caches": [str(cache)], **changes.get("ensemble", {})}
        recipe = write_recipe(**changes, teacher={"weights": tiny_teacher})
        own = ("train", recipe, "--targets", "cache", "--cache", tiny_cache)
        whole = ("run", recipe, "--cache-root", shared_root)
        said = []
        for command in (own, whole):
            done = kdscale(*command)
            assert (done.exit_code, done.stdout) == (code, ""), done.stderr
            said.append(done.stderr)
        assert said[0] == said[1]
        return said[0]

    return ask


def test_cache_of_other_views_is_refused_naming_them(second, shared_root, tmp_path, refused):
    other = second(views={"seed": 4, "count": 2})
    path = build(
        Experiment(other, Locations(cache_root=shared_root, cache=tmp_path / "other.zarr"))
    )
    said = refused(path)
    assert f"Error: {path} holds other targets than the recipe asks for:\n" in said
    assert "  views.seed: the cache has 4, the recipe asks for 0\n" in said
    assert "  views.count: the cache has 2, the recipe asks for 3\n" in said
    assert "teacher" not in said
    assert "encoding" not in said


def test_cache_of_other_images_is_refused_naming_them(
    second, make_dataset, shared_root, tmp_path, refused
):
    data = make_dataset(tmp_path / "more", num_train=130)
    other = second(data={"source": str(data)})
    said = refused(
        build(Experiment(other, Locations(cache_root=shared_root, cache=tmp_path / "other.zarr")))
    )
    assert "dataset.num_samples: the cache has 130, the recipe asks for 128" in said
    assert "\n  2 images dropped (first: 128 of the cache)\n" in said


def test_cache_of_another_class_order_is_refused(second, shared_root, tmp_path, refused):
    other = second(data={"classes": ["south", "north", "sides", "centre"]})
    said = refused(
        build(Experiment(other, Locations(cache_root=shared_root, cache=tmp_path / "other.zarr")))
    )
    assert "class order changed" in said


def test_top_k_is_refused_by_name(second, shared_root, tmp_path, refused, tiny_cache):
    top_k = {"encoding": "topk", "top_k": 2, "temperatures": [1.0, 4.0]}
    path = build(
        Experiment(
            second(cache=top_k), Locations(cache_root=shared_root, cache=tmp_path / "topk.zarr")
        )
    )
    said = refused(path, code=2)
    assert f"{path} stores the largest 2 of 4 logits (cache.encoding = 'topk')" in said
    assert "the mean of several teachers needs them all" in said


def test_own_top_k_is_refused_before_anything_is_built(load_table, second_cache, shared_root):
    recipe = load_table(
        cache={"encoding": "topk", "top_k": 2, "temperatures": [1.0, 4.0]},
        ensemble={"caches": [str(second_cache)]},
    )
    with pytest.raises(ConfigError, match="the recipe's own cache stores the largest 2"):
        experiment.check_recipe(recipe, shared_root)


def test_the_same_answers_twice_are_refused(
    kdscale, write_recipe, tiny_teacher, tiny_cache, cache_copy
):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    caches = ("--cache", tiny_cache, "--cache", cache_copy)
    done = kdscale("train", recipe, "--targets", "cache", *caches)
    assert done.exit_code == 2
    assert f"{cache_copy} stores the same targets as {tiny_cache}" in done.stderr


def test_cache_that_is_not_there_is_named(refused):
    assert "Error: no cache at gone.zarr: build one" in refused("gone.zarr")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": [1.0]}, "weights has 1 value for 2 teachers: give one for each"),
        (
            {"weights": [1.0, 0.0]},
            "ensemble.weights.1 is 0.0: input should be greater than or equal to 0.000001",
        ),
        ({"mean": "median"}, "ensemble.mean is 'median'"),
    ],
)
def test_wrong_settings_are_refused(kdscale, write_recipe, settings, said):
    recipe = write_recipe(ensemble={"caches": ["a.zarr"], **settings})
    done = kdscale("train", recipe, "--targets", "cache")
    assert done.exit_code == 2
    assert said in done.stderr


def test_mean_of_probabilities_is_refused_where_logits_are_compared(load_table):
    """It leaves a constant of each sample open, which softmax does not see and mse does."""
    settings = {"loss": {"kind": "mse"}, "ensemble": {"caches": ["a.zarr"]}}
    with pytest.raises(ConfigError, match=r"set ensemble\.mean = 'logits', or loss\.stand"):
        load_table(**settings)
    load_table(loss={"kind": "mse", "standardize": True}, ensemble=settings["ensemble"])
    load_table(loss={"kind": "mse"}, ensemble={"caches": ["a.zarr"], "mean": "logits"})


def test_run_goes_on_with_the_caches_it_began_with_alone(
    kdscale, write_recipe, tiny_teacher, tiny_cache, second_cache, tmp_path
):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    command = ("train", recipe, "--targets", "cache", "--cache", tiny_cache, "--run", "run")
    assert kdscale(*command, "--cache", second_cache).exit_code == 0
    for file in ("result.json", "weights.safetensors"):
        (tmp_path / "run" / file).unlink()
    done = kdscale(*command, "--resume")
    assert done.exit_code == 1
    assert "ensemble.caches: it has " in done.stderr
    assert kdscale(*command, "--cache", second_cache, "--resume").exit_code == 0
