"""Objects of leases in a cache's store: their keys, what they contain, the builders they name.

A lease is `claims/NAME.GENERATION`, a builder's counter `claims/BUILDER.builder`.
`cache/README.md` specifies both.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field

from kdscale.cache.process_identity import ProcessIdentity, parse_identity
from kdscale.cache.stores.store import Store

FOLDER = "claims"
_KEY = re.compile(FOLDER + r"/([^/\\]+)\.([0-9]+|builder)")
_TEMPORARY = re.compile(FOLDER + r"/\.[^/]+\.tmp")
_DIGITS = 20  # of a counter; its builder's identity follows, on a line of its own


def lease_key(name: str, generation: int) -> str:
    """Return the key of a lease on a part; each builder that takes over a part adds one."""
    return f"{FOLDER}/{name}.{generation}"


def counter_key(builder: str) -> str:
    """Return the key of a builder's counter."""
    return f"{FOLDER}/{builder}.builder"


def is_lease(key: str) -> bool:
    """Return whether a key is that of a lease, a counter, or a temporary file of one of them."""
    return _KEY.fullmatch(key) is not None or _TEMPORARY.fullmatch(key) is not None


def counter_text(number: int, identity: bytes) -> bytes:
    """Return the content of a counter, as long for every number."""
    return b"%0*d\n" % (_DIGITS, number) + identity


def parse_counter(content: bytes) -> ProcessIdentity | None:
    """Return the builder of a counter; None of one that an earlier version wrote."""
    return parse_identity(content[_DIGITS + 1 :])


def generations(store: Store) -> dict[str, list[int]]:
    """Return the generations of the lease on each part that has one, ascending."""
    found: dict[str, list[int]] = {}
    for key, _ in store.keys(FOLDER):
        parts = _KEY.fullmatch(key)
        if parts is not None and parts[2].isdecimal():
            found.setdefault(parts[1], []).append(int(parts[2]))
    return {name: sorted(numbers) for name, numbers in found.items()}


@dataclass(slots=True)
class ListedLeases:
    """Contents of all leases and counters of a cache."""

    leases: dict[str, bytes] = field(default_factory=dict)
    """Content of the newest lease on each part."""
    builders: dict[str, ProcessIdentity] = field(default_factory=dict)
    """Process that created a lease which is there, by builder."""
    counters: dict[str, bytes] = field(default_factory=dict)
    """Content of each counter, by builder."""


def list_leases(store: Store) -> ListedLeases:
    """Read all leases and counters."""
    found, newest = ListedLeases(), dict[str, int]()
    for key, _ in list(store.keys(FOLDER)):
        parts = _KEY.fullmatch(key)
        if parts is None:
            continue
        name, kind = parts.groups()
        with suppress(FileNotFoundError):  # it was removed just now
            content = store.read(key)
            if kind == "builder":
                found.counters[name] = content
                continue
            if int(kind) >= newest.get(name, -1):
                newest[name], found.leases[name] = int(kind), content
            if (identity := parse_identity(content)) is not None:
                found.builders[identity.builder] = identity
    return found
