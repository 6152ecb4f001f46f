"""`distill`: one call trains a student from a cache, exactly as `kdscale train` does."""

import shutil

import pytest
import tiny_models
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn

import kdscale
from kdscale.commands.train import train
from kdscale.errors import ConfigError, DataError, ModelError, RunError
from kdscale.experiment import Experiment, Locations
from kdscale.runs.run_spec import RunSpec

TRAIN = {"epochs": 3, "global_batch_size": 32, "learning_rate": 0.01, "log_every": 1}


def new_student(seed=0):
    torch.manual_seed(seed)
    return tiny_models.mlp(4, 1, hidden=8)


@pytest.fixture
def splits(dataset, shared_root):
    """Training and test split of the tiny data set."""
    return [
        kdscale.load_images(str(dataset), split=split, root=shared_root)
        for split in ("train", "test")
    ]


@pytest.fixture
def call(splits, tiny_cache):
    """Trains the tiny student, with changes."""

    def distill(student, **changes):
        cached = kdscale.CachedDataset(tiny_cache, splits[0])
        return kdscale.distill(student, cached, splits[1], **{"train": TRAIN, **changes})

    return distill


def equal(student, file):
    stored = load_file(file)
    return all(tensor.equal(stored[name]) for name, tensor in student.state_dict().items())


def test_student_and_metrics_are_those_of_kdscale_train(
    call, tiny_cache, load_table, tmp_path, shared_root
):
    locations = Locations(cache_root=shared_root, cache=tiny_cache, run=tmp_path / "command")
    expected = train(Experiment(load_table(), locations), RunSpec("student", "cache", 0))
    student, metrics = call(new_student(), run=tmp_path / "python")
    assert equal(student, tmp_path / "command" / "weights.safetensors")
    assert metrics["top1_accuracy"] == expected["top1_accuracy"] > 0.5
    assert metrics["cache"] == expected["cache"]
    assert not student.training


def test_without_a_folder_nothing_is_stored(call, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    student = new_student()
    before = student[1].weight.detach().clone()
    trained, metrics = call(student)
    assert trained is student
    assert not student[1].weight.equal(before)
    assert metrics["steps"] == 12
    assert list(tmp_path.iterdir()) == []


def test_call_that_was_stopped_resumes_exactly(call, stopped_after_step, tmp_path):
    expected, _ = call(new_student())
    with (
        stopped_after_step(5),
        pytest.raises(KeyboardInterrupt, match=r"same call resumes in .*run"),
    ):
        call(new_student(), run=tmp_path / "run")
    student, metrics = call(new_student(), run=tmp_path / "run")
    assert metrics["steps"] == 12
    assert all(map(torch.equal, student.parameters(), expected.parameters()))


def test_finished_run_is_returned(call, tmp_path, caplog):
    first, metrics = call(new_student(), run=tmp_path / "run")
    written = (tmp_path / "run/result.json").stat().st_mtime_ns
    second, again = call(new_student(), run=tmp_path / "run")
    assert metrics["top1_accuracy"] == again["top1_accuracy"]
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert (tmp_path / "run/result.json").stat().st_mtime_ns == written
    assert "other initial weights" not in caplog.text
    call(new_student(seed=1), run=tmp_path / "run")
    assert "other initial weights" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**TRAIN, "epochs": 4}}, "student.train.epochs: it has 3, now 4"),
        ({"loss": {"temperature": 2.0}}, "loss.temperature: it has 4.0, now 2.0"),
        ({"seed": 1}, "seed: it has 0, now 1"),
    ],
)
def test_folder_of_another_training_is_refused(changes, message, call, tmp_path):
    call(new_student(), run=tmp_path / "run")
    with pytest.raises(RunError, match=message):
        call(new_student(), run=tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"train": {**TRAIN, "restore_best": True}}, "data.validation is 0"),
        ({"loss": {"kind": "kl"}}, "kdscale.distill: .*loss.kind"),
        ({"input": {"mean": [0.5]}}, "'student.input.std' is missing"),
    ],
)
def test_settings_are_checked_as_those_of_a_recipe(changes, message, call):
    with pytest.raises(ConfigError, match=message):
        call(new_student(), **changes)


def test_students_that_do_not_fit_are_refused(call):
    with pytest.raises(ModelError, match="student gives 3 classes, the data set has 4"):
        call(tiny_models.mlp(3, 1))
    with pytest.raises(ConfigError, match="has lazy layers"):
        call(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))


def test_student_may_take_another_input_than_its_teacher(call):
    class Bytes(nn.Module):
        """A model of pixels as they are, 0..1."""

        def __init__(self):
            super().__init__()
            self.layers = tiny_models.mlp(4, 1)

        def forward(self, images):
            assert images.min() >= 0
            assert images.max() <= 1
            return self.layers(images)

    call(Bytes(), input={"mean": [0.0], "std": [1.0]})


def darker(image):
    return (image.float() * (0.5 + torch.rand(()) / 2)).to(torch.uint8)


def test_views_of_your_own_and_features_are_used(splits, tmp_path):
    torch.manual_seed(0)
    path = kdscale.build_cache(
        tiny_models.mlp(4, 1), splits[0], [darker, "random_horizontal_flip"],
        tmp_path / "one.zarr", input={"mean": [0.4], "std": [0.25]}, num_views=2,
        cache={"encoding": "int8", "features": ["1"]},
    )  # fmt: skip
    cached = kdscale.CachedDataset(path, splits[0], views=[darker, "random_horizontal_flip"])
    feature = {"kind": "hint", "student": "1", "teacher": "1"}
    loss = {"soft_weight": 1.0, "hard_weight": 0.0, "feature_weight": 1.0, "features": [feature]}
    _, metrics = kdscale.distill(
        new_student(), cached, splits[1], train={**TRAIN, "epochs": 1}, loss=loss
    )
    assert metrics["top1_accuracy"] >= 0


def test_test_set_may_be_a_list_and_needs_labels(splits, tiny_cache, tmp_path):
    cache = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")
    cached = kdscale.CachedDataset(cache, splits[0])
    samples = [
        (image, int(label))
        for image, label in zip(splits[1].pixels[:, 0], splits[1].labels, strict=True)
    ]
    train = {**TRAIN, "epochs": 1}
    _, of_list = kdscale.distill(new_student(), cached, samples, train=train)
    _, of_split = kdscale.distill(new_student(), cached, splits[1], train=train)
    assert of_list["cross_entropy"] == of_split["cross_entropy"]
    with pytest.raises(ConfigError, match="test_set has no labels"):
        kdscale.distill(new_student(), cached, [image for image, _ in samples], train=train)


def test_images_without_labels_need_a_loss_without_labels(splits, make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "data", unlabelled=True)
    images = kdscale.load_images(str(folder), split="train", root=tmp_path, require_labels=False)
    path = kdscale.build_cache(
        tiny_models.mlp(4, 1), images, [], tmp_path / "unlabelled.zarr", num_views=1,
        input={"mean": [0.4], "std": [0.25]},
    )  # fmt: skip
    cached = kdscale.CachedDataset(path, images)
    with pytest.raises(DataError, match=r"loss.hard_weight is above 0, and .* has no labels"):
        kdscale.distill(new_student(), cached, splits[1], train=TRAIN)
    loss = {"hard_weight": 0.0, "soft_weight": 1.0}
    kdscale.distill(new_student(), cached, splits[1], train={**TRAIN, "epochs": 1}, loss=loss)


def test_programs_own_accelerator_is_left_as_it_was(call):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        call(new_student(), train={**TRAIN, "epochs": 1})
        assert own.mixed_precision == "bf16"
        assert own.gradient_accumulation_steps == 4
        assert torch.backends.cuda.matmul.allow_tf32
        assert Accelerator().mixed_precision == "bf16"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        AcceleratorState._reset_state()
        GradientState._reset_state()


# --------------------------------------------------------------------------- without a classifier

LOSS = {
    "hard_weight": 0,
    "soft_weight": 0,
    "feature_weight": 1,
    "features": [{"kind": "cosine", "student": "output", "teacher": "output", "project": True}],
}


@pytest.fixture
def embeddings(splits, tmp_path):
    """A cache of embeddings of 6 values alone, of the labelled training split."""
    torch.manual_seed(1)
    teacher = tiny_models.embedding(1)
    kdscale.build_cache(
        teacher, splits[0], "random_horizontal_flip", tmp_path / "embeddings.zarr", num_views=2,
        input={"mean": [0.4], "std": [0.25]}, cache={"encoding": "none", "features": ["output"]},
    )  # fmt: skip
    return kdscale.CachedDataset(tmp_path / "embeddings.zarr", splits[0])


def new_embedding(seed=0):
    torch.manual_seed(seed)
    return tiny_models.embedding(1, width=5)


def test_student_without_a_classifier_learns_an_embedding(embeddings, splits, tmp_path):
    def call():
        return kdscale.distill(
            new_embedding(), embeddings, splits[1], train=TRAIN, loss=LOSS, run=tmp_path / "run"
        )

    student, metrics = call()
    assert metrics["classifier"] == "k-NN"
    assert metrics["top1_accuracy"] > 0.3  # chance is 0.25
    assert equal(student, tmp_path / "run" / "weights.safetensors")
    assert student(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert call()[1]["top1_accuracy"] == metrics["top1_accuracy"]  # a finished run is returned


def test_student_without_a_classifier_needs_no_label_at_all(splits, embeddings, tmp_path):
    start = new_embedding().state_dict()
    student, metrics = kdscale.distill(
        new_embedding(), embeddings, None, train=TRAIN, loss=LOSS, run=tmp_path / "run"
    )
    assert metrics["steps"] == 12
    assert "top1_accuracy" not in metrics
    assert not all(one.equal(start[name]) for name, one in student.state_dict().items())
    with pytest.raises(ConfigError, match=r"test_set is None, and a student that learns from lab"):
        kdscale.distill(new_student(), embeddings, None, train=TRAIN)


def test_student_with_logits_of_a_cache_without_any_is_refused(embeddings, splits):
    with pytest.raises(ConfigError, match=r"loss.soft_weight = 0.5 needs the teacher's logits"):
        kdscale.distill(new_student(), embeddings, splits[1], train=TRAIN)
    with pytest.raises(
        ModelError, match=r"student gives 5 classes.* from Python hard_weight and soft_weight = 0"
    ):
        kdscale.distill(
            new_embedding(), embeddings, splits[1], train=TRAIN, loss={**LOSS, "hard_weight": 1}
        )
