"""Metrics against examples counted by hand."""

import pytest
import torch

from kdscale.metrics import BINS, Calibration, Counts, details, summarize


def logits_for(predictions, num_classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).float()


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
    counts = Counts.of(logits_for([2, 1]), torch.tensor([0, 1]))
    assert counts.confusion_CC.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


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
    assert torch.equal(parts.confusion_CC, whole.confusion_CC)
    assert parts.top5 == whole.top5
    assert summarize(parts) == summarize(whole)
    assert details(parts) == details(whole)
    assert parts.confusion_CC.sum() == 101


def test_nothing_counted_gives_zeros_not_a_crash():
    assert set(summarize(Counts.none(3)).values()) == {0.0}


def test_details_of_an_example_counted_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    found = details(Counts.of(logits_for([0, 0, 1, 1, 1, 0]), labels))
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert found["per_class"] == [
        {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "samples": 3},
        {"precision": pytest.approx(1 / 3), "recall": 1.0, "samples": 1},
        {"precision": 0.0, "recall": 0.0, "samples": 2},
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


def test_model_that_gives_no_numbers_is_counted_not_crashed_on():
    found = summarize(Counts.of(torch.full((4, 3), float("nan")), torch.tensor([0, 1, 2, 0])))
    assert found.pop("cross_entropy") > 1e5
    assert all(0 <= value <= 1 for value in found.values())
