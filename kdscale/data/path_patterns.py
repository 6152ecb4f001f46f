"""Files that a path with `*`, `?`, `[...]`, `{a,b}` or `{000..003}` stands for."""

import glob
import itertools
import re
from pathlib import Path

from kdscale.errors import DataError
from kdscale.formatting import number_of

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 100_000


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern of paths."""
    return glob.has_magic(source) or _BRACES.search(source) is not None


def files_of_pattern(source: str) -> list[Path]:
    """Return the files that a pattern stands for, in the order of their paths, each once.

    Raises:
        DataError: a part of the pattern stands for no file; it is named.
    """
    found: set[str] = set()
    for path in _expand_braces(source):
        files = glob.glob(path, recursive=True)  # noqa: PTH207  # the path may be absolute
        if not files:
            raise DataError(
                f"no data at {path}: there is no such file"
                + (f" ({source} names it)" if path != source else "")
                + ". Correct data.source, or download the file"
            )
        found.update(files)
    return [Path(one) for one in sorted(found)]


def _expand_braces(text: str) -> list[str]:
    """Return a text once for each choice of its braces, as a shell does."""
    parts = _BRACES.split(text)
    choices = [[one] if place % 2 == 0 else _choices(one) for place, one in enumerate(parts)]
    number = 1
    for one in choices:
        number *= len(one)
    if number > _MOST_FILES:
        raise DataError(
            f"{text} stands for {number_of(number, 'file')}: wanted at most {_MOST_FILES:,}"
        )
    return ["".join(one) for one in itertools.product(*choices)]


def _choices(braces: str) -> list[str]:
    if bounds := _RANGE.fullmatch(braces):
        first, last = bounds.groups()
        padded = any(len(one) > 1 and one.startswith("0") for one in bounds.groups())
        width = max(len(first), len(last)) if padded else 0
        if int(last) - int(first) > _MOST_FILES:
            raise DataError(f"{{{braces}}} is a range of more than {_MOST_FILES:,} numbers")
        return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    return braces.split(",")
