"""Checks of values from untrusted files: right type and range, or left out."""

import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError, RunError
from kdscale.formatting import reason_of
from kdscale.runs.folder import read_run_file

_LARGEST = 1e18
_LONGEST_NAME = 80

_SHARES = {
    "top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall", "calibration_error",
    "agreement", "best_top1_accuracy", "best_validation_accuracy", "chosen_top1_accuracy",
    "last_top1_accuracy", "knn_top1_accuracy", "probe_top1_accuracy",
    "ema_top1_accuracy",
}  # fmt: skip
_AMOUNTS = {
    "train_seconds", "build_seconds", "num_parameters", "weight_bytes", "num_samples", "epochs",
    "steps", "num_processes", "flops", "non_finite_samples", "tied_samples",
}  # fmt: skip
_TEXTS = {"model", "device", "cache"}


def is_number(value: object, low: float = 0.0, high: float = _LARGEST) -> TypeGuard[int | float]:
    """Return whether a value is a finite number in a range; booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high  # NaN is not


def excerpt(value: object) -> str:
    """Return a value for a message, cut to some 40 letters."""
    return reprlib.repr(value)


def name_text(name: str) -> str:
    """Return a name as it can stand in a table: on one line, at most 80 letters, all printable."""
    words = " ".join(name.split())
    words = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in words[: 2 * _LONGEST_NAME]
    )
    return words if len(words) <= _LONGEST_NAME else f"{words[: _LONGEST_NAME - 1]}…"


def sound_metrics(table: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a result without the known fields whose value cannot be meant, and a line for each.

    Args:
        table: the result.
        path: the file it comes from, for the messages.
    """
    wanted = {name: value for name, value in table.items() if value is not None}
    bad = [
        (name, value, kind)
        for name, value in wanted.items()
        if (kind := _wanted(name)) and not _fits(value, kind)
    ]
    rest = {name: value for name, value in wanted.items() if name not in {one for one, *_ in bad}}
    for name in _TEXTS & rest.keys():
        rest[name] = name_text(rest[name])
    return rest, [
        f"{path} is damaged: {name} is {excerpt(value)}, wanted {kind}" for name, value, kind in bad
    ]


def _wanted(name: str) -> str | None:
    if name in _SHARES:
        return "a number in 0..1"
    if name in _AMOUNTS:
        return "a number of at least 0"
    return "a text" if name in _TEXTS else None


def _fits(value: object, kind: str) -> bool:
    if kind == "a text":
        return isinstance(value, str)
    return is_number(value, 0, 1 if kind == "a number in 0..1" else _LARGEST)


def read_json(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the object in a file, if the file is there; else say why it cannot be used."""
    try:
        return read_run_file(path), []
    except FileNotFoundError:
        return None, []
    except UnicodeDecodeError:
        return None, [f"{path} cannot be read (it is no text in UTF-8)"]
    except RunError as error:
        return None, [str(error)]
    except (KdscaleError, *DAMAGE) as error:
        return None, [f"{path} cannot be read ({reason_of(error)})"]


def tables_of(recipe: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the table at dotted `names` of a recipe; empty where it has none.

    A recipe may be another version's, or damaged: what stands there need not be a table.
    """
    table: Any = recipe
    for name in names:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table if isinstance(table, Mapping) else {}


def dicts(values: object) -> Sequence[dict[str, Any]]:
    """Return the objects in a list; empty where it is no list of objects."""
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return values
    return []
