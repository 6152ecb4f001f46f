"""Names of classes that look alike: by Unicode form, invisible characters or case."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kdscale.errors import DataError


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
