"""How two values of manifests differ, field by field."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kdscale.documents import canonical

ABSENT = "(nothing)"
"""Stands for the value of a field that is not there."""


def differences(ours: Any, theirs: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of the fields whose canonical JSON differs."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{name}.{key}" if name else key
            yield from differences(ours.get(key, ABSENT), theirs.get(key, ABSENT), inner)
    elif _is_list(ours) and _is_list(theirs) and len(ours) == len(theirs):
        for position, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{name}[{position}]")
    elif canonical(ours) != canonical(theirs):
        yield name, ours, theirs


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def short(value: object) -> str:
    """A value in at most about 200 characters, for messages."""
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    if isinstance(value, list | tuple) and len(text) > 200:
        return f"{text[:180]}… ({len(value)} entries)"
    return text if len(text) <= 200 else f"{text[:197]}…"
