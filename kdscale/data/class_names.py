"""Names of classes: read from a file, and refused where two of them look alike."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdscale.documents import DAMAGE
from kdscale.errors import DataError, UnsafePathError
from kdscale.formatting import reason_of
from kdscale.regular_files import read_document


def read_class_names(path: Path) -> tuple[str, ...] | Mapping[str, str]:
    """Read names of classes from a file.

    Args:
        path: lines of text, or JSON.

    Returns:
        Names in the order of the labels: of a line each, or of a JSON list. Of a JSON object: the
        new name by the present one, which is the number of a class without a name.

    Raises:
        DataError: the file cannot be read, or holds anything else.
    """
    try:
        text = read_document(path).decode("utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        found = json.loads(text, object_pairs_hook=_unique) if is_json else text.splitlines()
    except (*DAMAGE, UnsafePathError) as error:
        raise DataError(f"no class names can be read from {path}: {reason_of(error)}") from error
    if isinstance(found, list):
        while found and found[-1] == "":
            found.pop()
    names = list(found.values()) if isinstance(found, dict) else found
    if not names or not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise DataError(
            f"{path} holds no class names: wanted a name in each line, a JSON list of names, or a "
            "JSON object of a name for each class"
        )
    names = [name.strip() for name in names]
    if empty := [number for number, name in enumerate(names) if not canonical(name)]:
        raise DataError(f"{path}: name {empty[0]} is empty: give the class a name")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has the name {twice!r} twice: give each class its own")
    check_distinguishable([names], str(path))
    return dict(zip(found, names, strict=True)) if isinstance(found, dict) else tuple(names)


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object, of which Python would take the last of equal keys.

    Raises:
        ValueError: it has a key twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return found


def canonical(name: str) -> str:
    """A name as it looks: composed (NFC), without invisible characters and outer white space."""
    visible = "".join(one for one in name if unicodedata.category(one) not in ("Cf", "Cc"))
    return unicodedata.normalize("NFC", visible).strip()


def check_distinguishable(names: Iterable[Sequence[str]], place: str) -> None:
    """Refuse two classes whose names differ only in what a reader does not see, or means alike.

    Args:
        names: class names of each split. Names that differ only in upper and lower case are two
            classes where one split has both (such as letters), else a slip of the pen.
        place: the source, for messages.

    Raises:
        DataError: naming both.
    """
    splits = [set(one) for one in names]
    everything = sorted(set().union(*splits))
    if all(name.isascii() and name == name.strip() for name in everything):
        folded = len({name.lower() for name in everything})
        if folded == len(everything):
            return
    for same in _groups(everything, fold_case=False):
        raise DataError(
            f"classes {' and '.join(map(ascii, same))} of {place} look alike: they differ only in "
            "Unicode form (NFC, NFD), invisible characters or white space. Rename one to the other"
        )
    for same in _groups(everything, fold_case=True):
        if not any(len(split.intersection(same)) > 1 for split in splits):
            raise DataError(
                f"classes {' and '.join(map(repr, same))} of {place} differ only in case, and no "
                "split has both: rename one to the other"
            )


def _groups(names: Iterable[str], *, fold_case: bool) -> list[list[str]]:
    found = defaultdict(list)
    for name in names:
        found[canonical(name).casefold() if fold_case else canonical(name)].append(name)
    return [same for same in found.values() if len(same) > 1]
