"""What cannot work is told in one line, before anything is built or trained."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdscale.cache.manifest import read_manifest
from kdscale.config import TeacherSection, load_recipe
from kdscale.experiment.models import options_of_file
from kdscale.models.registry import create_model
from kdscale.models.weights import load_weights, read_metadata, save_weights

ORDER = ["centre", "north", "sides", "south"]  # of the tiny data set's classes


def one_line(done, said, code=1):
    assert done.exit_code == code, done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert said in error[0]


def stored(tmp_path, name, metadata=None, permute=None, tiny_teacher=None):
    """Weights of a tiny model: random ones, or those of the tiny teacher with other outputs."""
    torch.manual_seed(0)
    options = {"hidden": 32} if tiny_teacher else {}
    model = create_model(f"tiny_models:{name}", num_classes=4, in_channels=1, options=options)
    if tiny_teacher:
        load_weights(tiny_teacher, model)
        for parameter in model[4].parameters():
            parameter.data = parameter.data[permute]
    path = tmp_path / f"{name}.safetensors"
    save_weights(path, model, metadata=metadata or {})
    return str(path)


COMMANDS = {
    "build": ("cache", "build"),
    "plan": ("cache", "plan", "--seconds", "1"),
    "online": ("train", "--targets", "teacher"),
    "run": ("run",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_teacher_that_is_random_is_refused_by_every_command(
    kdscale, write_recipe, tmp_path, command
):
    weights = stored(tmp_path, "dropping")
    recipe = write_recipe(
        teacher={"model": "tiny_models:dropping", "options": {}, "weights": weights}
    )
    done = kdscale(*COMMANDS[command], recipe)
    one_line(done, "differ from one forward pass to the next")
    assert not (tmp_path / "cache" / "tiny.zarr").exists()


@pytest.mark.parametrize("command", ["build", "plan", "online"])
def test_order_of_classes_is_detected_from_the_predictions(
    kdscale, write_recipe, tmp_path, tiny_teacher, command
):
    weights = stored(tmp_path, "mlp", permute=[1, 0, 3, 2], tiny_teacher=tiny_teacher)
    done = kdscale(*COMMANDS[command], write_recipe(teacher={"weights": weights}))
    one_line(done, "the teacher's classes seem to have another order")
    metadata = read_metadata(tiny_teacher)
    assert metadata["class_names"] == ORDER  # where names are known, these decide


@pytest.mark.parametrize("classes", [["north", "centre", "sides", "south"], ORDER[::-1]])
def test_other_order_of_named_classes_is_refused_before_the_teacher_runs(
    kdscale, write_recipe, tmp_path, classes
):
    weights = stored(tmp_path, "linear", {"class_names": classes})
    teacher = {"model": "tiny_models:linear", "options": {}, "weights": weights}
    said = f"another order than the data set's: number 0 is {classes[0]!r} in "
    one_line(kdscale("cache", "build", write_recipe(teacher=teacher)), said)
    plain = stored(tmp_path, "linear")
    done = kdscale(
        "cache", "build", write_recipe(teacher=teacher | {"weights": plain, "classes": classes})
    )
    one_line(done, f"{said}teacher.classes, and 'centre' in the data set")


def test_named_classes_of_another_data_set_are_refused(kdscale, write_recipe, tiny_teacher):
    recipe = write_recipe(teacher={"weights": tiny_teacher, "classes": ["a", "b", "c", "d"]})
    one_line(kdscale("cache", "build", recipe), "trained for classes a, b, c, d (4)")


def test_named_classes_in_the_right_order_change_nothing(
    kdscale, write_recipe, tiny_teacher, tiny_cache
):
    recipe = write_recipe(teacher={"weights": tiny_teacher, "classes": ORDER})
    done = kdscale("cache", "build", recipe, "--cache", tiny_cache)
    assert (done.exit_code, "reused" in done.stderr) == (0, True)


def test_untrained_teacher_builds_with_a_loud_warning(kdscale, write_recipe, tmp_path):
    weights = stored(tmp_path, "constant_class", {})
    teacher = {"model": "tiny_models:constant_class", "options": {}, "weights": weights}
    done = kdscale("cache", "build", write_recipe(teacher=teacher))
    assert done.exit_code == 0
    assert "THE TEACHER IS NO BETTER THAN CHANCE" in done.stderr


def test_manifest_and_log_tell_the_accuracy_on_the_whole_split(
    kdscale, write_recipe, tmp_path, tiny_teacher, write_split, make_dataset
):
    """1,400 images sorted by class, of which the teacher knows one class: 25 % of them, not all."""
    source = make_dataset(tmp_path / "sorted")
    import pyarrow.parquet as pq

    table = pq.read_table(source / "train.parquet")
    by_class = np.argsort(table["label"].to_numpy(), kind="stable")
    rows = np.repeat(by_class, 11)
    pq.write_table(table.take(rows), source / "train.parquet")
    model = create_model("tiny_models:mlp", num_classes=4, in_channels=1, options={"hidden": 32})
    load_weights(tiny_teacher, model)
    model[4].bias.data[0] += 1e3
    save_weights(tmp_path / "biased.safetensors", model, metadata={})
    recipe = write_recipe(
        data={"source": str(source)}, teacher={"weights": str(tmp_path / "biased.safetensors")}
    )
    done = kdscale("cache", "build", recipe)
    manifest = read_manifest(tmp_path / "cache" / "tiny.zarr")
    assert manifest.teacher["top1_accuracy"] == pytest.approx(0.25, abs=0.001)
    assert manifest.fidelity["num_samples"] == 1000
    assert "teacher's top-1 on 1000 random training images: 25.0 %" in done.stderr


# --------------------------------------------------------------------------- training


def test_test_split_of_another_size_is_reported_before_training(
    kdscale, write_recipe, tmp_path, make_dataset, write_split
):
    source = make_dataset(tmp_path / "data")
    large = np.random.default_rng(0).integers(0, 255, (16, 12, 12)).astype(np.uint8)
    write_split(source / "test.parquet", large, np.arange(16) % 4, ORDER)
    recipe = write_recipe(data={"source": str(source)})
    done = kdscale("train", recipe)
    one_line(done, "split 'test' has images of 12 x 12 pixels")
    convolutional = {"model": "tiny_models:convolutional", "options": {}}
    recipe = write_recipe(data={"source": str(source)}, student=convolutional)
    done = kdscale("train", recipe, "--run", "run")
    assert done.exit_code == 0
    assert "those of split 'test' 12 x 12" in done.stderr
    other = make_dataset(tmp_path / "other")  # a pooled model would take 8 x 8 as well
    done = kdscale("evaluate", "run", "--data", other, "--trust-code")
    one_line(done, "the images are 8 x 8 pixels, and the model was tested on 12 x 12: resize them")


def test_test_split_of_other_channels_is_reported_before_training(
    kdscale, write_recipe, tmp_path, make_dataset, write_split
):
    source = make_dataset(tmp_path / "data")
    colour = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3)).astype(np.uint8)
    write_split(source / "test.parquet", colour, np.arange(16) % 4, ORDER)
    done = kdscale("train", write_recipe(data={"source": str(source)}))
    one_line(done, "channels, those of split 'train' are others: the images have 3 channels")


def test_mean_of_another_length_is_no_fault_of_a_split(
    kdscale, write_recipe, tmp_path, write_split
):
    colour = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3)).astype(np.uint8)
    for split, pixels in (("train", colour), ("test", 255 - colour)):
        write_split(tmp_path / f"data/{split}.parquet", pixels, np.arange(16) % 4, ORDER)
    two = {"model": "tiny_models:convolutional", "input": {"mean": [0.5] * 2, "std": [0.5] * 2}}
    source = str(tmp_path / "data")
    done = kdscale("train", write_recipe(data={"source": source}, student=two | {"options": {}}))
    one_line(done, "Error: the images have 3 channels, mean and std have 2")


def test_student_is_not_evaluated_on_images_that_it_does_not_take(
    kdscale, write_recipe, tmp_path, make_dataset, write_split
):
    assert kdscale("train", write_recipe(), "--run", "run").exit_code == 0
    other = make_dataset(tmp_path / "other")
    large = np.random.default_rng(0).integers(0, 255, (16, 12, 12)).astype(np.uint8)
    write_split(other / "test.parquet", large, np.arange(16) % 4, ORDER)
    one_line(kdscale("evaluate", "run", "--data", other), "does not take images of 1 channels and")


def test_single_class_is_reported_before_training(kdscale, write_recipe, tmp_path, write_split):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 8, 8)).astype(np.uint8)
    for split in ("train", "test"):
        write_split(tmp_path / "one" / f"{split}.parquet", pixels, np.zeros(16, int), ["a"])
    for command in (["train"], ["run"], ["cache", "build"]):
        done = kdscale(*command, write_recipe(data={"source": str(tmp_path / "one")}))
        one_line(done, "of one class, 'a': wanted at least two to tell apart")


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_what_fails_in_training_mode_is_reported_before_any_training(
    kdscale, write_recipe, tmp_path, part
):
    recipe = write_recipe(**{part: {"model": "tiny_models:pair_in_training", "options": {}}})
    one_line(kdscale("run", recipe), f"{part} gives a tuple in training mode")
    one_line(kdscale("train", recipe, "--model", part), "wanted logits alone")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_unused_parameters_are_mentioned_and_stay(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(student={"model": "tiny_models:unused", "options": {}})
    done = kdscale("train", recipe, "--run", "run")
    assert "2 parameter tensors get no gradient and stay as they are (unused" in done.stderr
    torch.manual_seed(0)
    fresh = create_model("tiny_models:unused", num_classes=4, in_channels=1).state_dict()
    trained = load_file(tmp_path / "run" / "weights.safetensors")
    assert torch.equal(trained["unused.1.weight"], fresh["unused.1.weight"])
    assert not torch.equal(trained["body.1.weight"], fresh["body.1.weight"])


# --------------------------------------------------------------------------- libraries' teachers


@pytest.fixture
def vit(tmp_path):
    """A tiny ViT as save_pretrained writes it, with an image processor and class names."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    def write(names=ORDER):
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=8, patch_size=4, num_channels=1, num_labels=4,
            id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        )  # fmt: skip
        folder = tmp_path / "vit"
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessor(
            image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}
        ).save_pretrained(folder)
        return {"model": f"transformers/{folder}", "options": {}, "train": None}

    return write


@pytest.mark.thorough
def test_teacher_of_transformers_needs_no_weights_file(kdscale, write_recipe, vit, tmp_path):
    """The library's own weights, or the file that it wrote: the same teacher, the same cache."""
    done = kdscale("cache", "build", write_recipe(teacher=vit()))
    assert done.exit_code == 0, done.stderr
    assert "config.json of " in done.stderr
    assert '"mean": [0.5], "std": [0.5], "size": 8' in done.stderr
    assert '"mean": [0.4], "std": [0.25], "size": null' in done.stderr
    file = str(tmp_path / "vit" / "model.safetensors")
    done = kdscale("cache", "build", write_recipe(teacher=vit() | {"weights": file}))
    shutil.rmtree(tmp_path / "cache" / "images", ignore_errors=True)
    assert done.exit_code == 0, done.stderr
    student = kdscale("run", write_recipe(teacher=vit()))
    assert student.exit_code == 0, student.stderr


def test_classes_of_transformers_in_another_order_are_refused(kdscale, write_recipe, vit):
    recipe = write_recipe(teacher=vit(["Centre", "SIDES", "north", "south"]))
    one_line(kdscale("cache", "build", recipe), "number 1 is 'SIDES' in config.json of")
    assert load_recipe(str(recipe)).teacher.is_trained


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, True),  # a file of elsewhere: as torchvision's weights have it
        ({"options": {"weights": "DEFAULT", "transform_input": True}}, True),
        ({"options": {"weights": "DEFAULT"}}, None),  # trained before the rule, without it
    ],
)
def test_trained_googlenet_is_created_as_it_was_trained_and_without_a_download(stated, expected):
    section = TeacherSection(model="torchvision/googlenet", options={"weights": "DEFAULT"})
    stated = {"model": "torchvision/googlenet"} | stated if stated else {}
    options = options_of_file(section, stated)
    assert options.get("transform_input") is expected
    assert "weights" not in options
