"""Paths in a recipe's table: the folder that relative ones begin at, and which are one place."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATHS = (
    ("data", "source"),
    ("data", "class_names"),
    *((model, "weights") for model in ("teacher", "student")),
    *((model, "train", "pretrained") for model in ("teacher", "student")),
)
"""Fields of a recipe that may be paths, beside the list `ensemble.caches`."""


def _path_fields(table: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return where a recipe's table may have paths: table or list and key, by dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for *sections, field in _PATHS:
        section: Any = table
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and field in section:
            found[".".join((*sections, field))] = section, field
    ensemble = table.get("ensemble")
    caches = ensemble.get("caches") if isinstance(ensemble, dict) else None
    if isinstance(caches, list):
        found |= {f"ensemble.caches.{index}": (caches, index) for index in range(len(caches))}
    return found


def take_paths_from(table: dict[str, Any], folder: Path) -> None:
    """Let relative paths name what lies in a folder; others are left as they are.

    They are then relative to the current folder, or names of the hub.
    """
    for section, key in _path_fields(table).values():
        section[key] = _path_in(folder, section[key])


def folder_of_paths(table: Mapping[str, Any]) -> Path | None:
    """Return the current folder if a path in a recipe's table is relative to it, else None."""
    values = [section[key] for section, key in _path_fields(table).values()]
    folder = Path.cwd()
    return folder if any(_path_in(folder, value) != value for value in values) else None


def adopt_equal_paths(before: dict[str, Any], now: Mapping[str, Any], folder: Path | None) -> None:
    """Replace each path of a recipe's table by that of another table where both are one place.

    Args:
        before: table of the recipe that a run was begun with.
        now: table of the recipe that it is to go on with, whose relative paths are those of the
            current folder.
        folder: folder that relative paths of `before` may also be those of; None = none.
    """
    new = _path_fields(now)
    for name, (section, key) in _path_fields(before).items():
        if name in new:
            other = new[name][0][new[name][1]]
            places = {_real(section[key]), _real(_path_in(folder or Path(), section[key]))}
            if places & {_real(other)} - {None}:
                section[key] = other


def _real(path: Any) -> str | None:
    """Return the absolute path, without links, of something that exists; None of anything else."""
    if not isinstance(path, str) or not 0 < len(path) < _LONGEST_PATH or "\0" in path:
        return None
    try:
        there = Path(path).expanduser()
    except RuntimeError:  # the home folder of nobody
        return None
    return os.path.realpath(there) if os.path.lexists(there) else None


def _path_in(folder: Path, value: Any) -> Any:
    """Return a relative path below a folder if there is something, else the value itself."""
    if not isinstance(value, str) or not value or value.startswith(("~", "/")) or "\0" in value:
        return value
    path = folder / value
    return str(path) if len(value) < _LONGEST_PATH and os.path.lexists(path) else value


_LONGEST_PATH = 4096
"""Bytes of a path on usual systems."""
