"""In which images two data sets differ: the rows of a cache beside those of the data at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Rows:
    """The images of a data set in their order, without their pixels."""

    keys: np.ndarray
    """uint64 [N]: content of each image."""
    labels: np.ndarray
    """int64 [N], -1 where unlabelled."""
    classes: Sequence[str]
    """Names in label order."""

    @property
    def names(self) -> np.ndarray:
        """The class of each image by name; empty where unlabelled."""
        return np.asarray(np.array(["", *self.classes], dtype=object)[self.labels + 1])


def changes(before: Rows, now: Rows) -> list[str]:
    """What has become of the images, for people; indices count from 0.

    Images are distinguished by content, so one that moved is not taken for another. Equal images
    are numbered: first, second and so on.

    Args:
        before: as the cache was built from them.
        now: the data at hand; indices of what was dropped are the cache's, all others are these.
    """
    return [*_images(before, now), *_classes(before, now), *_labels(before, now)]


def _images(before: Rows, now: Rows) -> list[str]:
    old, new = _identities(before.keys, now.keys)
    dropped, added = ~np.isin(old, new), ~np.isin(new, old)
    changes = []
    if len(old) and dropped.all() and added.all():
        return ["all images differ: another data set, or other pixels from another decoder"]
    if len(old) == len(new):
        changed = dropped & added
        dropped, added = dropped & ~changed, added & ~changed
        changes += _counted(changed, "changed", "image")
        same = ~changed
        moved = not np.array_equal(old[~dropped & same], new[~added & same])
    else:
        moved = not np.array_equal(old[~dropped], new[~added])
    changes += _counted(added, "added", "image")
    changes += _counted(dropped, "dropped", "image", " of the cache")
    if moved:
        changes.append(f"order of images changed ({_first_moved(old, new)})")
    return changes


def _identities(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that are equal for equal images, and for as many of them as both sets have."""
    _, numbers = np.unique(np.concatenate([before, now]), return_inverse=True)
    parts = np.split(numbers, [len(before)])
    size = len(numbers) + 1
    old, new = (part * size + _occurrence(part) for part in parts)
    return old, new


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered, side="left")
    occurrence = np.empty(len(values), dtype=np.int64)
    occurrence[order] = np.arange(len(values)) - first
    return occurrence


def _first_moved(old: np.ndarray, new: np.ndarray) -> str:
    """The first image at hand that both sets have, but not in the same place among such images."""
    ours, theirs = new[np.isin(new, old)], old[np.isin(old, new)]
    moved = int(np.flatnonzero(ours != theirs)[0])
    return f"first: {int(np.flatnonzero(new == ours[moved])[0])}"


def _classes(before: Rows, now: Rows) -> list[str]:
    ours, theirs = list(before.classes), list(now.classes)
    if ours == theirs:
        return []
    if sorted(ours) == sorted(theirs):
        return ["class order changed"]
    added = [name for name in theirs if name not in ours]
    dropped = [name for name in ours if name not in theirs]
    return [
        f"classes {word}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for word, names in (("added", added), ("dropped", dropped))
        if names
    ]


def _labels(before: Rows, now: Rows) -> list[str]:
    """Images that both sets have, under another class; by name, whatever the classes' order."""
    old, new = _identities(before.keys, now.keys)
    _, ours, theirs = np.intersect1d(old, new, assume_unique=True, return_indices=True)
    other = np.zeros(len(new), dtype=bool)
    other[theirs] = before.names[ours] != now.names[theirs]
    return [f"labels of {line} changed" for line in _counted(other, "", "image")]


def _counted(which: np.ndarray, what: str, noun: str, of: str = "") -> list[str]:
    """`3 images added (first: 17)`; nothing where there is none."""
    count = int(which.sum())
    if not count:
        return []
    words = f"{count} {noun}{'s' if count > 1 else ''} {what}".strip()
    return [f"{words} (first: {int(np.flatnonzero(which)[0])}{of})"]
