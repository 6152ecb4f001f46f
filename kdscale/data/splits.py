"""Names of splits: of folders, of files, and in a recipe."""

import re
from collections.abc import Mapping
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
    for name in _ALIASES.get(wanted, (wanted,)):
        if name in splits:
            return name
    raise DataError(
        f"{source} has no split '{wanted}': it has {', '.join(sorted(splits))}. Choose one of them"
    )
