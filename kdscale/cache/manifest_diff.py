"""How two manifests differ, field by field."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdscale.cache.manifest import ABSENT, Manifest
from kdscale.documents import canonical
from kdscale.errors import CacheMismatchError


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


def check_identity(
    path: object,
    cache: Manifest,
    required: Manifest,
    explain: Callable[[], Sequence[str]] | None = None,
) -> None:
    """Check that the cache at `path`, named in messages, matches the required manifest.

    Args:
        path: where it lies.
        cache: its manifest.
        required: the required manifest.
        explain: returns in what the data sets differ, where they do.

    Raises:
        CacheMismatchError: names every differing field with both values.
    """
    differing = list(differences(cache.identity, required.identity))
    differing += cache.lacks(required)
    if cache.num_views < required.num_views:
        differing.append(("views.count", cache.num_views, required.num_views))
    if not differing:
        return
    lines = [
        f"  {name}: the cache has {short(ours)}, the recipe asks for {short(theirs)}"
        for name, ours, theirs in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"  and {len(differing) - _SHOWN} more")
    if explain is not None and any(name.startswith("dataset.") for name, *_ in differing):
        lines += [f"  {line}" for line in explain()]
    raise CacheMismatchError(
        f"{path} holds other targets than the recipe asks for:\n"
        + "\n".join(lines)
        + "\nChange the recipe, name another --cache, or build one with `kdscale cache build`."
    )


_SHOWN = 20  # differing fields
