"""Metrics against examples counted by hand."""

import json
import subprocess
import sys

import pytest
import torch

from kdscale.evaluation.metrics import (
    BINS,
    LARGEST_MATRIX,
    NO_PREDICTION,
    Calibration,
    Counts,
    details,
    predict,
    summarize,
)


def logits_for(predictions, num_classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).float()


def details_of(logits, labels):
    return details(Counts.of(logits, labels), labels, predict(logits))


def test_metrics_of_an_example_counted_by_hand():
    #            class 0: 2 of 3 found; class 1: 1 of 1; class 2: 0 of 2
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    predictions = [0, 0, 1, 1, 1, 0]
    found = summarize(Counts.of(logits_for(predictions), labels))
    assert found["top1_accuracy"] == pytest.approx(3 / 6)
    # precision: class 0 2 of 3, class 1 1 of 3, class 2 never predicted: 0
    assert found["macro_precision"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert found["macro_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["top5_accuracy"] == 1.0  # of three classes


def test_class_that_is_never_predicted_counts_as_precision_zero():
    found = summarize(Counts.of(logits_for([0, 0, 0]), torch.tensor([0, 1, 2])))
    assert found["macro_precision"] == pytest.approx(1 / 9)
    assert found["macro_recall"] == pytest.approx(1 / 3)


def test_class_that_is_neither_there_nor_predicted_is_left_out_of_means():
    found = summarize(Counts.of(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 1])))
    assert (found["macro_precision"], found["macro_recall"]) == (1.0, 1.0)


def test_confusion_has_labels_in_rows_and_predictions_in_columns():
    found = details_of(logits_for([2, 1]), torch.tensor([0, 1]))
    assert found["confusion"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_top5_counts_labels_among_the_five_largest():
    logits = torch.arange(8.0).flip(0).repeat(8, 1)  # class 0 first, class 7 last
    found = summarize(Counts.of(logits, torch.arange(8)))
    assert found["top1_accuracy"] == pytest.approx(1 / 8)
    assert found["top5_accuracy"] == pytest.approx(5 / 8)


def test_parts_add_up_to_the_whole():
    torch.manual_seed(0)
    logits, labels = torch.randn(101, 7), torch.randint(7, (101,))
    whole = Counts.of(logits, labels)
    parts = Counts.none(7)
    for some in torch.arange(101).split(17):
        parts += Counts.of(logits[some], labels[some])
    assert summarize(parts) == summarize(whole)
    rest = labels, predict(logits)
    assert details(parts, *rest) == details(whole, *rest)
    assert sum(map(sum, details(whole, *rest)["confusion"])) == 101


def test_nothing_counted_gives_zeros_not_a_crash():
    assert set(summarize(Counts.none(3)).values()) == {0.0}


def test_details_of_an_example_counted_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    found = details_of(logits_for([0, 0, 1, 1, 1, 0]), labels)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [1, 1, 0]]
    columns = ("precision", "recall", "samples", "correct", "predicted")
    assert [tuple(one[name] for name in columns) for one in found["per_class"]] == [
        (pytest.approx(2 / 3), pytest.approx(2 / 3), 3, 2, 3),
        (pytest.approx(1 / 3), 1.0, 1, 1, 3),
        (0.0, 0.0, 2, 0, 0),
    ]
    assert found["most_confused"] == [
        {"label": 0, "predicted": 1, "samples": 1},
        {"label": 2, "predicted": 0, "samples": 1},
        {"label": 2, "predicted": 1, "samples": 1},
    ]


# ------------------------------------------------------------------ calibration


def calibration_by_the_paper(confidences, right):
    """Equation 3 of Guo et al. in plain floats, bin by bin."""
    total = 0.0
    for m in range(1, 16):
        inside = [i for i, one in enumerate(confidences) if (m - 1) / 15 < one <= m / 15]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def test_calibration_error_of_an_example_counted_by_hand():
    found = Calibration.of(
        torch.tensor([0.95, 0.95, 0.55, 0.55]), torch.tensor([True, True, True, False])
    )
    # two of two right at 0.95, one of two at 0.55
    expected = 2 / 4 * (1 - 0.95) + 2 / 4 * (0.55 - 0.5)
    assert found.error == pytest.approx(expected, abs=1e-7)
    assert found.describe()["samples"] == [0] * 8 + [2] + [0] * 5 + [2]
    assert found.describe()["accuracy"][8] == 0.5
    assert found.describe()["confidence"][14] == pytest.approx(0.95)


def test_calibration_error_of_who_is_sure_and_right_is_zero_and_wrong_is_one():
    sure = torch.ones(5)
    assert Calibration.of(sure, sure > 0).error == 0
    assert Calibration.of(sure, sure < 0).error == 1


def test_calibration_error_of_logits_is_that_of_the_paper():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(500, 10), torch.randint(10, (500,))
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = calibration_by_the_paper(confidence.tolist(), (predicted == labels).tolist())
    found = summarize(Counts.of(logits, labels))["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_calibration_is_the_same_to_the_bit_in_any_order_and_any_parts():
    torch.manual_seed(0)
    confidence, right = torch.rand(10_001), torch.rand(10_001) > 0.5
    whole = Calibration.of(confidence, right)
    order = torch.randperm(10_001)
    parts = Calibration.none()
    for some in order.split(313):
        parts += Calibration.of(confidence[some], right[some])
    assert parts.error == whole.error
    assert parts.describe() == whole.describe()


@pytest.mark.parametrize("numerator", range(1, 16))
def test_upper_edge_of_a_bin_belongs_to_it(numerator):
    at_edge = Calibration.of(torch.tensor([numerator / 15 - 1e-6]), torch.tensor([True]))
    above = Calibration.of(torch.tensor([numerator / 15 + 1e-6]), torch.tensor([True]))
    assert at_edge.samples_M.tolist().index(1) == numerator - 1
    assert above.samples_M.tolist().index(1) == min(numerator, BINS - 1)


# ------------------------------------------------------------------ no prediction, or several

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_sample_with_a_logit_that_is_not_finite_is_wrong_whatever_its_label(bad, place):
    logits = torch.tensor([[3.0, 0.0, 0.0]]).repeat(3, 1)
    logits[:, place] = bad
    labels = torch.arange(3)
    found = summarize(Counts.of(logits, labels))
    assert found.pop("cross_entropy") > 1e5
    assert found.pop("non_finite_samples") == 3
    assert set(found.values()) == {0}, "no accuracy, precision, recall, calibration or tie"
    assert predict(logits).tolist() == [NO_PREDICTION] * 3


def test_samples_that_are_not_finite_count_in_their_class_and_nowhere_else():
    logits = torch.tensor([[2.0, 0], [NAN, 0], [0, 2.0], [INF, INF]])
    labels = torch.tensor([0, 0, 1, 1])
    found = summarize(Counts.of(logits, labels))
    assert (found["top1_accuracy"], found["top5_accuracy"]) == (0.5, 0.5)
    assert (found["macro_precision"], found["macro_recall"]) == (1.0, 0.5)
    found = details_of(logits, labels)
    assert found["confusion"] == [[1, 0], [0, 1]]
    assert [one["samples"] for one in found["per_class"]] == [2, 2]
    assert sum(found["calibration"]["samples"]) == 2
    assert found["most_confused"] == []


def test_of_equal_logits_the_first_class_is_predicted_and_the_guess_is_counted():
    labels = torch.arange(8)
    found = summarize(Counts.of(torch.zeros(8, 8), labels))
    assert found["tied_samples"] == 8
    assert (found["top1_accuracy"], found["top5_accuracy"]) == (1 / 8, 5 / 8)
    assert summarize(Counts.of(torch.eye(8), labels))["tied_samples"] == 0, "ties below the top"


def test_whoever_is_right_at_first_is_among_the_first_five_too():
    torch.manual_seed(0)
    logits, labels = torch.randint(3, (2000, 9)).float(), torch.randint(9, (2000,))
    is_right = (predict(logits) == labels).nonzero()[:, 0]
    assert summarize(Counts.of(logits[is_right], labels[is_right]))["top5_accuracy"] == 1


# ------------------------------------------------------------------ many classes


def test_beyond_a_thousand_classes_there_are_counts_instead_of_a_matrix():
    torch.manual_seed(0)
    few, many = LARGEST_MATRIX, LARGEST_MATRIX + 1
    labels = torch.randint(7, (3000,))
    logits = torch.randn(3000, few)
    logits[:, 7:] -= 9
    wide = torch.cat([logits, torch.full((3000, many - few), -99.0)], 1)
    matrix, counts = details_of(logits, labels), details_of(wide, labels)
    assert counts.pop("confusion") is None
    confusion = torch.tensor(matrix.pop("confusion"))
    assert counts["per_class"][:few] == matrix["per_class"]
    assert counts["most_confused"] == matrix["most_confused"]
    for name, expected in (
        ("samples", confusion.sum(1)), ("predicted", confusion.sum(0)),
        ("correct", confusion.diagonal()),
    ):  # fmt: skip
        assert [one[name] for one in matrix["per_class"]] == expected.tolist()
    off = confusion - confusion.diagonal().diag()
    assert [one["samples"] for one in matrix["most_confused"]] == (
        off.flatten().sort(descending=True).values[: len(matrix["most_confused"])].tolist()
    )


_MANY = """
import json, resource, torch
from kdscale.evaluation.metrics import Counts, details, predict, summarize
torch.set_num_threads(1)
C, counts, labels, found = 21841, Counts.none(21841), torch.arange(240) * 91, []
random = torch.Generator().manual_seed(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for part in labels.split(80):
    logits = torch.randn(len(part), C, generator=random)
    counts += Counts.of(logits, part)
    found.append(predict(logits))
text = json.dumps({**summarize(counts), **details(counts, labels, torch.cat(found))})
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([1024 * grown, len(text)]))
"""


@pytest.mark.thorough
def test_metrics_of_21841_classes_take_megabytes():
    done = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True, check=True)
    memory, size = json.loads(done.stdout)
    assert memory < 300e6
    assert size < 5e6
