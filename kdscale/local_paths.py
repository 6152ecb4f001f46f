"""Paths of this machine, reduced to their last part in what is published: they may name a user."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?:~|/|\.{1,2}/|[A-Za-z]:[\\/]).*", re.DOTALL)
_PATH_IN_TEXT = re.compile(
    r"(?:(?<=[\s\"'=(,`\[{:])|(?<=file://)|^)(?:~[\w.-]*/|/(?!/)|[A-Za-z]:\\)[^\s\"'`,)\]}]+"
)


def without_paths(value: Any) -> Any:
    """Return a value with each path of this machine in its texts reduced to the last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    library, _, place = value.partition("/")
    if library in ("transformers", "timm") and is_path(place):
        return f"{library}/{_last_part(place)}"
    if is_path(value):
        return _last_part(value)
    return _PATH_IN_TEXT.sub(lambda found: _last_part(found[0]), value)


def is_path(text: str) -> bool:
    """Whether a text is a path: absolute, of the home folder, or of something that exists here."""
    return _PATH.fullmatch(text) is not None or ("/" in text and _exists(text))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or a NUL
        return False


def _last_part(path: str) -> str:
    return "…/" + re.split(r"[\\/]", path.rstrip("\\/"))[-1]
