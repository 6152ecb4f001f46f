"""Two data sets beside each other: what was added, dropped, changed, moved or renamed."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import CLASSES

from kdscale.cache.dataset_diff import Rows, changes

BEFORE = Rows(np.arange(100, 120, dtype=np.uint64), np.arange(20) % 5, CLASSES)


def rows(keys, labels=None, classes=CLASSES):
    """Images by number, each with the label it has in `BEFORE` unless others are given."""
    keys = np.asarray(keys, dtype=np.uint64)
    own = np.asarray([int(key) % 5 for key in keys])
    return Rows(keys, own if labels is None else np.asarray(labels), classes)


def test_equal_sets_differ_in_nothing():
    assert changes(BEFORE, rows(range(100, 120))) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([*range(100, 117), 7, 8, 9, 117, 118, 119], ["3 images added (first: 17)"]),
        ([*range(100, 104), *range(106, 120)],
         ["2 images dropped (first: 4 of the cache)"]),
        ([*range(100, 105), 9, *range(106, 120)], ["1 image changed (first: 5)"]),
        ([5, *range(101, 119), 6], ["2 images changed (first: 0)"]),
        ([101, 100, *range(102, 120)], ["order of images changed (first: 0)"]),
        ([*range(100, 110), *range(119, 109, -1)], ["order of images changed (first: 10)"]),
        ([7, *range(101, 118), 119],
         ["1 image added (first: 0)",
          "2 images dropped (first: 0 of the cache)"]),
        ([*range(110, 120), *range(100, 110), 55],
         ["1 image added (first: 20)", "order of images changed (first: 0)"]),
        (range(20), ["all images differ: another data set, or other pixels from another decoder"]),
    ],
)  # fmt: skip
def test_images_are_distinguished_by_content(now, said):
    assert changes(BEFORE, rows(now)) == said


def test_of_equal_images_one_may_be_added_or_dropped():
    twice = rows([100, 100, 101])
    assert changes(twice, rows([100, 101])) == ["1 image dropped (first: 1 of the cache)"]
    assert changes(rows([100, 101]), twice) == ["1 image added (first: 1)"]
    assert changes(twice, rows([100, 100, 101])) == []


def test_labels_follow_their_images():
    labels = BEFORE.labels.copy()
    labels[[3, 17]] = 0, 4
    assert changes(BEFORE, replace(BEFORE, labels=labels)) == [
        "labels of 2 images (first: 3) changed"
    ]
    backwards = Rows(BEFORE.keys[::-1], labels[::-1], CLASSES)
    assert changes(BEFORE, backwards) == [
        "order of images changed (first: 0)", "labels of 2 images (first: 2) changed"
    ]  # fmt: skip


def test_classes_in_another_order_are_the_same_labels_by_name():
    swapped = ("bee", "ant", *CLASSES[2:])
    now = Rows(BEFORE.keys, np.array([1, 0, 2, 3, 4])[BEFORE.labels], swapped)
    assert changes(BEFORE, now) == ["class order changed"]
    assert changes(BEFORE, replace(BEFORE, classes=swapped)) == [
        "class order changed", "labels of 8 images (first: 0) changed"
    ]  # fmt: skip


def test_other_classes_are_named():
    now = replace(BEFORE, classes=("ant", "bee", "cat", "dog", "yak"))
    assert changes(BEFORE, now) == [
        "classes added: yak", "classes dropped: elk", "labels of 4 images (first: 4) changed"
    ]  # fmt: skip


def test_unlabelled_images_have_no_class():
    none = replace(BEFORE, labels=np.full(20, -1))
    assert changes(none, none) == []
    assert changes(none, BEFORE) == ["labels of 20 images (first: 0) changed"]
