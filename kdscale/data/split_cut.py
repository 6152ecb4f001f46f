"""A split that is cut in two: images to train on, and images to test on."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.image_hashes import encoded_keys
from kdscale.data.splits import same_split
from kdscale.errors import DataError
from kdscale.formatting import number_of


@dataclass(frozen=True, slots=True)
class SplitCut:
    """One of the two parts of a split."""

    share: float
    """Share of the labelled images that are in the test part, 0..1."""
    test: bool
    """Whether this is the test part; else it is the training part."""
    test_split: str
    """Name of the test split that the source would need without a cut."""


def check_cut(source: str, splits: Collection[str], split: str, cut: SplitCut) -> None:
    """Stop where a source has a test split of its own.

    Args:
        source: the source as the user named it.
        splits: names of all its splits.
        split: the one that is to be cut.
        cut: the part.

    Raises:
        DataError: naming the test split.
    """
    own = same_split(splits, cut.test_split)
    if own is not None and own != split:
        raise DataError(
            f"{source} has the split '{own}' to test on, and data.test is {cut.share:g}, which "
            f"cuts a test part off split '{split}': leave data.test out, or set data.test_split = "
            f"'{split}' to test on the part all the same"
        )


def cut_split(encoded: EncodedSplit, cut: SplitCut) -> EncodedSplit:
    """Return one part of a split; reads all of its encoded images.

    Raises:
        DataError: a part would be empty, or no image has a label.
    """
    place = f"split '{encoded.split}' of {encoded.name}"
    if (encoded.labels < 0).all():
        raise DataError(
            f"data.test is {cut.share:g}, but {place} has no labels to test with: set data.label, "
            "or leave data.test out and name a split with labels in data.test_split"
        )
    in_test = choose_test_samples(encoded_keys(encoded), encoded.labels, cut.share)
    number, all_of_them = int(in_test.sum()), number_of(len(in_test), "image")
    if not 0 < number < len(in_test):
        raise DataError(
            f"data.test is {cut.share:g}, which cuts {number} of {all_of_them} off {place}: wanted "
            "at least one to test on and one to train on. Choose another share, or put images into "
            f"a split '{cut.test_split}' and leave data.test out"
        )
    split, phrase = encoded.split, f"without the {number:,} of its test part"
    if cut.test:
        split, phrase = f"{encoded.split} (test part)", f"cut off {all_of_them}"
    rows = np.flatnonzero(in_test == cut.test)
    return replace(
        encoded,
        rows=encoded.rows[rows],
        labels=encoded.labels[rows],
        split=split,
        cut=f"{phrase} (data.test = {cut.share:g})",
    )


def choose_test_samples(keys: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Return which samples are in the test part: the given share of each class, to one image.

    The images' content decides, neither their order nor their names: equal images are in one part,
    in that of the first class that they have. Images without a label, and their equals, are
    trained on.

    Args:
        keys: uint64 [N], as of `kdscale.data.image_hashes.encoded_keys`: as good as random.
        labels: int64 [N], -1 where a sample has no label.
        share: of the labelled images that differ, 0..1.

    Returns:
        bool [N].
    """
    distinct, image = np.unique(keys, return_inverse=True)
    first_label = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(first_label, image, labels)
    by_class = np.argsort(first_label, kind="stable")  # of one class: by key
    by_class = by_class[first_label[by_class] >= 0]
    in_test = np.zeros(len(distinct), dtype=bool)
    in_test[by_class] = np.diff(np.floor(np.arange(len(by_class) + 1) * share + 0.5)) > 0
    return in_test[image]
