"""A teacher that cannot teach is refused on a sample of images, and one that can is left alone."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdscale.data.loader import DeviceImages
from kdscale.data.sample import balanced_sample
from kdscale.errors import ModelError
from kdscale.models.feature_extraction import FeatureSpec
from kdscale.models.preprocess import Preprocess
from kdscale.models.registry import create_model
from kdscale.models.weights import load_weights
from kdscale.teacher.frozen_teacher import OomSafeTeacher, freeze
from kdscale.teacher.label_order import find_relabelling
from kdscale.teacher.output_checks import inspect_outputs, inspect_teacher

CPU = torch.device("cpu")
PREPROCESS = Preprocess((0.4,), (0.25,), None)


class Changed(nn.Module):
    """A trained classifier, and what is done before its last layer and to its outputs."""

    def __init__(self, trained, embedding=lambda values: values, output=lambda logits: logits):
        super().__init__()
        *body, self.head = trained
        self.body = nn.Sequential(*body)
        self.embedding, self.output = embedding, output

    def forward(self, pixels):
        return self.output(self.head(self.embedding(self.body(pixels))))


class AlwaysOn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class DroppingFeature(nn.Module):
    """Its features are random, and its logits are not."""

    def forward(self, values):
        return F.dropout(values, 0.5)


def noise_in_large_batches(logits):
    return logits + torch.randn_like(logits) * (len(logits) > 64)


def nan_for_some(logits):
    return torch.where(logits[:, :1] > logits[:, :1].median(), torch.nan, logits)


def batch_statistics(width):
    return nn.BatchNorm1d(width, track_running_stats=False, affine=False)


def mixed_with_the_batch(values):
    return values + 0.3 * values.mean(0, keepdim=True)


BAD = {
    "functional dropout": ({"embedding": lambda v: F.dropout(v, 0.1)}, "differ from one forward"),
    "a module that ignores eval": ({"embedding": AlwaysOn(0.1)}, "something is random"),
    "noise in large batches": ({"output": noise_in_large_batches}, "the other images of"),
    "batch statistics": ({"embedding": batch_statistics(32)}, "the other images of"),
    "the mean of the batch": ({"embedding": mixed_with_the_batch}, "the other images of"),
    "no batch dimension": ({"output": torch.squeeze}, "for a single image"),
    "probabilities": ({"output": lambda v: v.softmax(1)}, "gives probabilities"),
    "softened probabilities": ({"output": lambda v: (v / 4).softmax(1)}, "remove the softmax"),
    "percentages": ({"output": lambda v: 100 * v.softmax(1)}, "sum to 100"),
    "a constant": ({"output": torch.zeros_like}, "the same logits for all of 128"),
    "a constant bias": ({"output": lambda v: v * 0 + torch.arange(4.0)}, "say nothing of any"),
    "NaN for some": ({"output": nan_for_some}, r"for \d+ of 128 training images \(positions \d+, "),
    "another order": (
        {"output": lambda v: v[:, [1, 2, 3, 0]]},
        r"another order .* \(output 0, 'centre' here, seems to be 'north'",
    ),
    "two classes swapped": ({"output": lambda v: v[:, [0, 2, 1, 3]]}, "output 1, 'north' here"),
}
GOOD = {
    "as it is": {},
    "dropout in training alone": {"embedding": nn.Dropout(0.5)},
    "log-probabilities": {"output": lambda v: v.log_softmax(1)},
    "large logits": {"output": lambda v: 100 * v},
    "small logits": {"output": lambda v: v / 100},
    "shifted logits": {"output": lambda v: v + 50},
    "instance norm": {"embedding": lambda v: F.layer_norm(v, v.shape[1:])},
    "positive logits": {"output": F.softplus},
}


@pytest.fixture(scope="session")
def images(load_table, shared_root):
    from kdscale.experiment import training_images

    return training_images(load_table(), shared_root, labelled=True)


@pytest.fixture
def frozen(tiny_teacher):
    def create(precision="float32", **changes):
        trained = create_model(
            "tiny_models:mlp", num_classes=4, in_channels=1, options={"hidden": 32}
        )
        load_weights(tiny_teacher, trained)
        model = Changed(trained, **changes)
        return freeze(
            model, PREPROCESS, precision=precision, memory_format="contiguous", device=CPU
        )

    return create


def inspect(teacher, images, **more):
    return inspect_teacher(OomSafeTeacher(teacher, 128), DeviceImages(images, CPU), images, **more)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", BAD)
def test_teacher_that_cannot_be_meant_is_refused(frozen, images, kind, precision):
    changes, said = BAD[kind]
    with pytest.raises(ModelError, match=said):
        inspect(frozen(precision, **changes), images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", GOOD)
def test_sound_teacher_is_left_alone_in_any_precision(frozen, images, kind, precision, caplog):
    inspection = inspect(frozen(precision, **GOOD[kind]), images)
    assert inspection.top1_accuracy > 0.8
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["batch_norm_and_dropout", "convolutional"])
def test_untrained_networks_are_functions_of_one_image(images, model, precision):
    torch.manual_seed(0)
    model = create_model(f"tiny_models:{model}", num_classes=4, in_channels=1)
    teacher = freeze(
        model, PREPROCESS, precision=precision, memory_format="channels_last", device=CPU
    )
    inspect_outputs(teacher, DeviceImages(images, CPU).gather(torch.arange(8))[0])


@pytest.mark.parametrize("kind", ["functional dropout", "batch statistics", "probabilities"])
def test_what_needs_no_training_is_found_without_it(frozen, images, kind):
    changes, said = BAD[kind]
    with pytest.raises(ModelError, match=said):
        inspect_outputs(frozen(**changes), DeviceImages(images, CPU).gather(torch.arange(8))[0])


def test_random_features_are_found_where_the_logits_are_not_random(frozen, images):
    teacher = frozen()
    teacher.model.add_module("aside", DroppingFeature())
    teacher.model.embedding = lambda values: (teacher.model.aside(values), values)[1]
    inspect(teacher, images)
    tapped = dataclasses.replace(teacher, taps=(FeatureSpec("aside", None),))
    with pytest.raises(ModelError, match="features of 'aside' of the same images differ"):
        inspect(teacher, images, with_features=tapped)


def test_overflow_of_half_precision_names_the_remedy(frozen, images):
    def overflowing(values):
        return (values.half() * 60000).float()

    with pytest.raises(ModelError, match=r"set teacher\.precision = 'float32' \(float16 may"):
        inspect(frozen("float16", output=overflowing), images)


def test_outputs_of_a_sigmoid_are_mentioned(frozen, images, caplog):
    inspect(frozen(output=torch.sigmoid), images)
    assert "as those of a sigmoid do" in caplog.text


def test_teacher_at_chance_is_mentioned_loudly(images, frozen, caplog):
    shuffled = np.random.default_rng(0).permutation(images.labels)
    inspect(frozen(), dataclasses.replace(images, labels=shuffled))
    assert "THE TEACHER IS NO BETTER THAN CHANCE" in caplog.text


def test_images_without_labels_are_inspected_without_an_accuracy(images, frozen):
    unlabelled = dataclasses.replace(images, labels=np.full_like(images.labels, -1))
    assert inspect(frozen(), unlabelled).top1_accuracy is None
    with pytest.raises(ModelError, match="probabilities"):
        inspect(frozen(output=lambda v: v.softmax(1)), unlabelled)


# --------------------------------------------------------------------------- the sample


def test_sample_of_a_class_sorted_split_is_balanced_and_always_the_same():
    labels = np.repeat(np.arange(5), [4000, 1000, 300, 100, 7])
    sample = balanced_sample(labels, 500)
    assert Counter(labels[sample.numpy()].tolist()) == {0: 132, 1: 131, 2: 130, 3: 100, 4: 7} or (
        sorted(Counter(labels[sample.numpy()].tolist()).values()) == [7, 100, 131, 131, 131]
    )
    assert torch.equal(sample, balanced_sample(labels.copy(), 500))
    assert torch.equal(sample, sample.unique())
    first = sample[labels[sample.numpy()] == 0]
    assert first.double().mean().sub(2000).abs() < 400  # spread over the class


@pytest.mark.parametrize("labels", [np.full(3000, -1), np.arange(3000), np.zeros(3000, np.int64)])
def test_sample_has_its_size_whatever_the_labels(labels):
    sample = balanced_sample(labels, 1000)
    assert len(sample) == len(sample.unique()) == 1000
    assert sample.double().mean().sub(1500).abs() < 150


def test_sample_of_a_small_split_is_all_of_it():
    assert balanced_sample(np.array([1, 0, 1]), 1000).tolist() == [0, 1, 2]


def test_accuracy_is_that_of_the_split_however_it_is_sorted_and_balanced(images, frozen):
    """3,000 images sorted by class, of which the teacher knows the first class alone."""
    labels = np.repeat(np.arange(4), [1500, 900, 500, 100])
    of_class = [np.flatnonzero(images.labels == label) for label in range(4)]
    pixels = images.pixels[np.concatenate([np.resize(of_class[label], (labels == label).sum())
                                           for label in range(4)])]  # fmt: skip
    split = dataclasses.replace(images, pixels=pixels, labels=labels)
    bias = torch.tensor([30.0, 0, 0, 0])
    found = inspect(frozen(output=lambda logits: logits + bias), split)
    assert found.top1_accuracy == pytest.approx(0.5, abs=0.02)
    assert torch.bincount(found.labels).min() == 100


# --------------------------------------------------------------------------- the order of classes


def predictions(labels, num_classes, accuracy, generator):
    wrong = torch.randint(num_classes, labels.shape, generator=generator)
    right = torch.rand(len(labels), generator=generator) < accuracy
    return torch.where(right, labels, wrong)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("num_classes", "accuracy"), [(2, 0.9), (4, 0.6), (10, 0.5), (100, 0.8)])
def test_any_order_of_a_trained_teachers_classes_is_found(num_classes, accuracy, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(1000) % num_classes
    order = torch.randperm(num_classes, generator=generator)
    while torch.equal(order, torch.arange(num_classes)):
        order = torch.randperm(num_classes, generator=generator)
    predicted = order[predictions(labels, num_classes, accuracy, generator)]
    found = find_relabelling(labels, predicted, num_classes)
    assert found is not None
    assert found.complete
    agree = [order[label] == output for output, label in found.label_of.items()]
    assert np.mean(agree) > 0.9


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_classes", [2, 4, 10, 100, 1000])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("count", [8, 50, 1000])
def test_teacher_in_the_right_order_is_never_doubted(num_classes, accuracy, count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    predicted = predictions(labels, num_classes, accuracy, generator)
    assert find_relabelling(labels, predicted, num_classes) is None


@pytest.mark.parametrize("seed", range(5))
def test_class_that_is_taken_for_another_is_no_other_order(seed):
    """All dogs are called cats, and cats are cats."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(1000) % 10
    predicted = predictions(labels, 10, 0.8, generator)
    predicted[labels == 5] = 3
    assert find_relabelling(labels, predicted, 10) is None
