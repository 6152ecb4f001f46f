"""Images of equal content, found by their hashes: under two labels, or in two splits."""

import numpy as np

from kdscale.data.image_dataset import ImageDataset
from kdscale.formatting import number_of, printable


def describe_conflicts(images: ImageDataset) -> str | None:
    """Return a line about images of a split that have two labels; None where there are none.

    Only hashes that are stored with the images are compared: nothing is read again.
    """
    keys, labels = images.keys, images.labels
    if keys is None or not images.classes or not _any_equal(keys):
        return None
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
    grouped, sizes = labels[order], np.diff([*starts, len(keys)])
    lowest, highest = np.minimum.reduceat(grouped, starts), np.maximum.reduceat(grouped, starts)
    conflicts = np.flatnonzero(lowest != highest)
    if not len(conflicts):
        return None
    same = order[starts[conflicts[0]] :][: sizes[conflicts[0]]]
    first = same[0]
    other = same[labels[same] != labels[first]][0]
    examples = " and ".join(
        f"{images.place(int(one))} as {_class_name(images, int(labels[one]))}"
        for one in (first, other)
    )
    return (
        f"{number_of(int(sizes[conflicts].sum()), 'image')} of split {images.split!r} of "
        f"{images.name} are equal to another one of a different label, such as {examples}"
    )


def describe_overlap(train: ImageDataset, test: ImageDataset) -> str | None:
    """Return a line about images that are in both splits; None where there are none."""
    if train.fingerprint == test.fingerprint:
        return (
            f"the test split {test.split!r} holds the same images as the training split "
            f"{train.split!r}: accuracy is measured on images that the model is trained on. Set "
            "data.test_split to another split, unless this is meant"
        )
    if train.keys is None or test.keys is None or train.one_size != test.one_size:
        return None
    shared = np.flatnonzero(np.isin(test.keys, train.keys))
    if not len(shared):
        return None
    twin = int(np.flatnonzero(train.keys == test.keys[shared[0]])[0])
    return (
        f"{len(shared):,} of the {number_of(test.num_samples, 'image')} of the test split "
        f"{test.split!r} are in the training split {train.split!r}, too, such as "
        f"{test.place(int(shared[0]))}, which is {train.place(twin)}: accuracy is partly measured "
        "on images that the model is trained on"
    )


def _any_equal(keys: np.ndarray) -> bool:
    ordered = np.sort(keys)
    return bool((ordered[1:] == ordered[:-1]).any())


def _class_name(images: ImageDataset, label: int) -> str:
    return repr(printable(images.classes[label])) if label >= 0 else "unlabelled"
