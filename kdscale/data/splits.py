"""Names of splits: of folders, of files, and in a recipe."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from kdscale.errors import DataError

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "unlabeled": "unlabeled", "unlabelled": "unlabeled",
}  # fmt: skip
_FILE_WORDS = SPLIT_FOLDERS | {"eval": "test", "evaluation": "test"}
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "valid": ("valid", "validation", "val"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "validation", "valid", "val"),
}


def split_words(name: str) -> list[str]:
    """The splits that words of a name stand for, each once: `mnist_train-1` stands for train."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return sorted({_FILE_WORDS[word] for word in words if word in _FILE_WORDS})


def find_split(source: str, splits: Mapping[str, Any], wanted: str) -> str:
    """The name under which a source has a split; "test" also finds a validation split.

    Raises:
        DataError: it has none.
    """
    name = same_split(splits, wanted)
    if name is None:
        raise DataError(
            f"{source} has no split '{wanted}': it has {', '.join(sorted(splits))}. Choose one of "
            "them, or, to test on a part of the training split, set data.test = 0.1"
        )
    return name


def same_split(splits: Collection[str], wanted: str) -> str | None:
    """Return the name among `splits` that a wanted name stands for; None where there is none."""
    return next((name for name in _ALIASES.get(wanted, (wanted,)) if name in splits), None)
