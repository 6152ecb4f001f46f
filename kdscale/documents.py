"""JSON files with a checksum: written whole, read as an object that is what was written.

The checksum, under the key `checksum`, is the SHA-256 of the canonical JSON of the other keys,
like that of a cache's manifest. Files of kdscale 0.1 have none; `read_object` accepts them, since
nothing else tells a file written then from one written now, and the caller checks their fields.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdscale.durable import write_durably
from kdscale.regular_files import read_document

CHECKSUM = "checksum"

DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
"""Exceptions that reading and parsing a damaged JSON document can raise.

MemoryError is not among them: `read_document` limits the size of a file.
"""


def checksum_of(table: Mapping[str, Any]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a JSON object without its key `checksum`."""
    rest = {key: value for key, value in table.items() if key != CHECKSUM}
    return hashlib.sha256(canonical(rest)).hexdigest()


def canonical(value: object) -> bytes:
    """Return ASCII JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_object(
    path: Path, table: Mapping[str, Any], check: Callable[[], None] | None = None
) -> None:
    """Write a JSON object with its checksum, durably; `check` as in `write_durably`.

    Raises:
        StorageError: the disk is full, read-only or not permitted.
    """
    document = {**table, CHECKSUM: checksum_of(table)}
    write_durably(path, json.dumps(document, indent=2).encode() + b"\n", check)


def read_object(path: Path, *, root: Path | None = None) -> dict[str, Any]:
    """Read a JSON object and verify its checksum if it has one; the key is left out of the result.

    Args:
        path: the file.
        root: the folder that the file has to stay in; None for a file that a user named.

    Raises:
        UnsafePathError: the file is a link that leads out of `root`, or not a regular file.
        OSError: it cannot be read.
        ValueError: it is not JSON, not an object, or not what was written.
    """
    return parse_object(read_document(path, root=root))


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse the bytes of a file that `write_object` wrote.

    Raises:
        ValueError: see `read_object`.
    """
    try:
        table: object = json.loads(data)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError(f"it holds a JSON {type(table).__name__}, wanted an object")
    stated = table.pop(CHECKSUM, None)
    if stated is not None and stated != checksum_of(table):
        raise ValueError("its content does not match its checksum")
    return table
