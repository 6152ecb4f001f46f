"""Teachers without a classifier: their features are cached, and students learn from these."""

import csv
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdscale.cache.manifest import read_manifest
from kdscale.cache.verify import verify
from kdscale.commands.bench import bench
from kdscale.commands.build import build
from kdscale.commands.evaluate import Evaluation
from kdscale.commands.export import export
from kdscale.commands.plan import plan
from kdscale.commands.predict import open_classifier
from kdscale.commands.push import push
from kdscale.commands.recheck import recheck
from kdscale.commands.run import run_recipe
from kdscale.commands.train import train
from kdscale.config import dump_recipe
from kdscale.errors import ConfigError, DataError, ModelError, RunError
from kdscale.experiment import Experiment, Locations
from kdscale.experiment.cache_spec import check_recipe
from kdscale.experiment.trained_models import Trust, trained_model_of
from kdscale.models.deployable import load_student
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.report.collect import collect
from kdscale.report.csv_export import render_csv
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.tables.evaluation_table import evaluation_tables
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


# ------------------------------------------------------------------ students without a classifier

EMBEDDING_STUDENT = {"model": "tiny_models:embedding", "options": {**HEADLESS, "width": 4}}
PROJECTED = {"kind": "cosine", "student": "output", "teacher": "output", "project": True}


@pytest.fixture(scope="module")
def unsupervised(recipe):
    """A recipe whose student has no classifier and learns from the cached embedding alone."""

    def make(**changes):
        loss = {"hard_weight": 0.0, "features": [PROJECTED], **changes.pop("loss", {})}
        student = {**EMBEDDING_STUDENT, **changes.pop("student", {})}
        return recipe(loss=loss, student=student, **changes)

    return make


@pytest.fixture(scope="module")
def student(unsupervised, cache, shared_root, tmp_path_factory):
    """A finished run of such a student. Not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "student"
    place = Locations(run=run, cache_root=shared_root, cache=cache)
    train(Experiment(unsupervised(), place), RunSpec("student", "cache", 0))
    return run


def test_student_without_a_classifier_is_evaluated_by_its_neighbours(
    student, shared_root, unsupervised
):
    result = RunFolder(student).read_result()
    assert result["classifier"] == "k-NN"
    assert result["top1_accuracy"] > 0.3  # chance is 0.25
    losses = [one["loss"] for one in read_metrics(student) if "loss" in one]
    assert losses[-1] < losses[0]
    trust = Trust(code=True)
    (found,) = Evaluation(shared_root, seconds=0.0, trust=trust).folders([student])
    assert found["top1_accuracy"] == found["knn_top1_accuracy"] == result["top1_accuracy"]
    assert 0.3 < found["probe_top1_accuracy"] <= 1
    assert (found["agreement"], found["agreement_note"]) == (None, "its teacher has no classifier")
    assert "k-NN %" in evaluation_tables([found])
    names = load_file(student / "weights.safetensors").keys()
    assert not any("adapter" in name for name in names)  # the projector is dropped


def test_moving_average_without_a_classifier_is_evaluated_by_its_neighbours(
    unsupervised, cache, shared_root, tmp_path
):
    table = unsupervised(student={"train": {"ema_decay": 0.9}})
    place = Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)
    train(Experiment(table, place), RunSpec("student", "cache", 0))
    result = RunFolder(tmp_path / "run").read_result()
    evaluation = Evaluation(shared_root, seconds=0.0, trust=Trust(code=True))
    (found,) = evaluation.folders([tmp_path / "run"])
    (of_average,) = evaluation.folders([tmp_path / "run"], weights="ema")
    for name in ("top1_accuracy", "knn_top1_accuracy", "probe_top1_accuracy"):
        assert found[f"ema_{name}"] == of_average[name]
    assert found["ema_top1_accuracy"] == result["ema_top1_accuracy"] > 0.3  # chance is 0.25
    assert "EMA top-1 %" in evaluation_tables([found])


def test_classifier_is_evaluated_by_its_embeddings_too(recipe, cache, shared_root, tmp_path):
    place = Locations(run=tmp_path / "run", cache_root=shared_root, cache=cache)
    train(Experiment(recipe(), place), RunSpec("student", "cache", 0))
    evaluation = Evaluation(shared_root, seconds=0.0, trust=Trust(code=True), embeddings=True)
    (found,) = evaluation.folders([tmp_path / "run"])
    assert "classifier" not in found
    assert found["knn_bank"] == "train"
    assert found["probe_top1_accuracy"] > 0.3


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_student_without_a_classifier_is_exported_and_predicts_no_class(
    student, shared_root, tmp_path, kind
):
    trained = trained_model_of(student, trust=Trust(code=True))
    out = tmp_path / f"student.{kind}"
    about = export(trained, kind, cache_root=shared_root, out=out)
    assert about["embedding"]["shape"] == ["batch", 4]
    assert "logits" not in about
    assert about["class_names"] == []
    for model in (out, student):
        with pytest.raises(ModelError, match="has no classifier"):
            open_classifier(model, trust_code=True)


def test_embeddings_of_onnx_are_those_of_the_student(student, shared_root, tmp_path):
    import onnxruntime

    trained = trained_model_of(student, trust=Trust(code=True))
    export(trained, "onnx", cache_root=shared_root, out=tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    assert [one.name for one in session.get_outputs()] == ["embedding"]
    pixels = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    expected = load_student(student, trust_code=True)(pixels)
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_sweep_compares_students_without_classifiers_by_their_neighbours(
    unsupervised, cache, kdscale, tmp_path
):
    table = unsupervised(
        data={"validation": 0.25},
        student={"train": {"epochs": 2}},
        sweep={"space": {"student": {"train": {"learning_rate": [0.01, 0.001]}}}},
    )
    (tmp_path / "sweep.toml").write_text(dump_recipe(table))
    done = kdscale("sweep", "sweep.toml", "--run", "s", "--cache", cache)
    assert done.exit_code == 0, done.stderr
    rows = csv.DictReader(io.StringIO(render_csv(collect([tmp_path / "s"], tmp_path))))
    trials = [row for row in rows if row["kind"] == "cache"]
    assert [float(row["student.train.learning_rate"]) for row in trials] == [0.01, 0.001]
    for row in trials:
        assert row["top1_accuracy"] == row["knn_top1_accuracy"]
        assert 0 < float(row["probe_top1_accuracy"]) <= 1
        assert 0 < float(row["best_validation_accuracy"]) <= 1


def test_student_without_a_classifier_is_pushed_with_its_card(student, hub):
    push(trained_model_of(student, trust=Trust(code=True)), "hf://me/embedding")
    card = hub.files("me/embedding")["README.md"].decode()
    assert "pipeline_tag: image-feature-extraction" in card
    assert "without a classifier: it gives embeddings" in card
    assert "| k-NN top-1 accuracy | 0." in card
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    pulled = load_student("hf://me/embedding", trust_code=True)
    assert pulled.class_names == ()
    assert torch.equal(pulled(pixels), load_student(student, trust_code=True)(pixels))


def test_unlabelled_images_are_trained_on_and_test_images_are_their_own_neighbours(
    unsupervised, make_dataset, tmp_path
):
    folder = make_dataset(tmp_path / "data", unlabelled=True)
    table = unsupervised(data={"source": str(folder)})
    place = Locations(run=tmp_path / "run", cache_root=tmp_path, cache=tmp_path / "u.zarr")
    check_recipe(table, tmp_path)
    build(Experiment(table, place))
    train(Experiment(table, place), RunSpec("student", "cache", 0))
    assert RunFolder(tmp_path / "run").read_result()["top1_accuracy"] > 0.3
    evaluation = Evaluation(tmp_path, seconds=0.0, trust=Trust(code=True))
    (found,) = evaluation.folders([tmp_path / "run"])
    assert found["knn_bank"] == "test, without the image itself"
    assert found["probe_top1_accuracy"] is None


# ------------------------------------------------------------------ images without any label


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 48 pictures, in folders of any depth, without classes and splits."""
    folder = tmp_path_factory.mktemp("photographs")
    values = np.random.default_rng(0).integers(0, 256, (48, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(values):
        place = folder / ("2024/may" if number % 3 else ".") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder


@pytest.fixture(scope="module")
def unlabelled(unsupervised, photographs):
    """A recipe of a student of these pictures alone."""

    def make(**data):
        data = {"source": str(photographs), "unlabelled": True, "test_split": "none", **data}
        return unsupervised(data=data)

    return make


@pytest.fixture(scope="module")
def student_of_photographs(unlabelled, tmp_path_factory):
    """A finished run of it. Not to be changed."""
    root = tmp_path_factory.mktemp("unlabelled")
    place = Locations(run=root / "run", cache_root=root, cache=root / "photographs.zarr")
    table = unlabelled()
    check_recipe(table, root)
    manifest = read_manifest(build(Experiment(table, place)))
    assert (manifest.num_classes, manifest.num_samples) == (0, 48)
    train(Experiment(table, place), RunSpec("student", "cache", 0))
    return root / "run"


def test_student_of_images_without_any_label_is_evaluated_on_a_labelled_data_set(
    student_of_photographs, dataset, make_dataset, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(student_of_photographs, run)
    result = RunFolder(run).read_result()
    assert result["epochs"] == 3
    assert not result.keys() & {"top1_accuracy", "best_top1_accuracy", "classifier"}
    evaluation = Evaluation(tmp_path, seconds=0.0, trust=Trust(code=True))
    with pytest.raises(ConfigError, match=r"without labelled images .* give some with --data"):
        evaluation.folders([run])
    (found,) = evaluation.folders([run], data=str(dataset))
    assert (found["knn_bank"], found["num_samples"], found["num_classes"]) == ("train", 64, 4)
    assert 0 < found["knn_top1_accuracy"] == found["top1_accuracy"] <= 1
    assert 0 < found["probe_top1_accuracy"] <= 1
    assert RunFolder(run).evaluation_file().is_file()
    other = make_dataset(tmp_path / "other", seed=5)
    evaluation.folders([run], data=str(other))  # does not replace the first
    assert len([*run.glob("evaluation-on-*.json")]) == 1
    (row,) = csv.DictReader(io.StringIO(render_csv(collect([run], tmp_path))))
    assert float(row["knn_top1_accuracy"]) == found["knn_top1_accuracy"]
    assert float(row["probe_top1_accuracy"]) == found["probe_top1_accuracy"]
    assert row["test_split"] == found["test_fingerprint"]


def test_student_of_images_without_any_label_is_exported_and_pushed(
    student_of_photographs, hub, tmp_path
):
    trained = trained_model_of(student_of_photographs, trust=Trust(code=True))
    out = tmp_path / "student.safetensors"
    about = export(trained, "safetensors", cache_root=tmp_path, out=out)
    assert about["pixels"]["shape"] == ["batch", 1, 8, 8]
    assert about["num_images"] == 48
    push(trained, "hf://me/photographs")
    card = hub.files("me/photographs")["README.md"].decode()
    assert "embeddings = student(pixels)" in card
    assert "kdscale predict" not in card


def test_whole_recipe_of_images_without_any_label_runs(unlabelled, tmp_path):
    place = Locations(run=tmp_path / "all", cache_root=tmp_path)
    planned = plan(Experiment(unlabelled(), place), seconds=0.1)
    assert planned["cached_student_seconds"] > 0
    assert planned["teacher_top1_accuracy"] is None
    result = run_recipe(Experiment(unlabelled(), place))
    assert [row["label"] for row in result["rows"]] == ["cache"]
    place = Locations(run=tmp_path / "all" / "cache-seed0", cache_root=tmp_path)
    with pytest.raises(RunError, match="holds a finished run, which is not overwritten"):
        train(Experiment(unlabelled(), place), RunSpec("student", "teacher", 0))


def test_missing_test_split_names_the_way_without_one(unlabelled, tmp_path):
    with pytest.raises(DataError, match=r"no split 'test'.*set data.test_split = 'none'"):
        check_recipe(unlabelled(test_split="test"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"student": {"options": {"width": 4}}}, "a student with a classifier"),
        ({"data": {"test_split": "none", "validation": 0.1}}, "data.validation"),
    ],
)
def test_recipe_without_a_test_split_that_needs_one_is_refused(unsupervised, changes, what):
    changes = {"data": {"test_split": "none"}, **changes}
    with pytest.raises(ConfigError, match=f"{what} needs labelled test images"):
        unsupervised(**changes)


def test_whole_recipe_of_models_without_classifiers_runs_and_is_reported(
    unsupervised, shared_root, tmp_path
):
    place = Locations(run=tmp_path / "all", cache_root=shared_root)
    result = run_recipe(Experiment(unsupervised(), place), online=True)
    assert [row["label"] for row in result["rows"]] == ["teacher", "cache", "online"]
    assert (tmp_path / "all" / "report.html").is_file()


def test_student_without_a_classifier_is_not_trained_on_labels(unsupervised, shared_root, tmp_path):
    place = Locations(run=tmp_path / "run", cache_root=shared_root)
    with pytest.raises(ConfigError, match="no logits to learn labels by"):
        train(Experiment(unsupervised(), place), RunSpec("student", "none", 0))


def test_plan_times_steps_on_features_and_bench_refuses_them(unsupervised, shared_root, tmp_path):
    experiment = Experiment(unsupervised(), Locations(cache_root=shared_root))
    found = plan(experiment, seconds=0.1)
    assert list(found["encodings"]) == ["none"]
    assert found["encodings"]["none"]["bytes_per_target"] == 0
    assert found["cached_student_seconds"] > 0
    assert found["supervised_student_seconds"] is None
    with pytest.raises(ConfigError, match=r"cache.encoding = 'none' stores no logits"):
        bench(experiment, seconds=0.1)
