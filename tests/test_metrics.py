"""Metrics against examples counted by hand."""

import pytest
import torch

from kdscale.metrics import Counts, summarize


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
    assert parts.confusion_CC.sum() == 101


def test_nothing_counted_gives_zeros_not_a_crash():
    assert set(summarize(Counts.none(3)).values()) == {0.0}
