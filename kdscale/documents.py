"""JSON files with a checksum: written whole, read as an object that is what was written.

The checksum, under the key `checksum`, is the SHA-256 of the canonical JSON of the other keys,
like that of a cache's manifest. Files of kdscale 0.1 have none; `read_object` accepts them, since
nothing else tells a file written then from one written now, and the caller checks their fields.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from kdscale.atomic_write import write_durably
from kdscale.regular_files import read_document

CHECKSUM = "checksum"

T = TypeVar("T")

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


def without_nan(value: Any) -> Any:
    """Return a JSON value with null in place of every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value


def write_object(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, durably.

    Raises:
        StorageError: the disk is full, read-only or not permitted.
    """
    document = {**table, CHECKSUM: checksum_of(table)}
    write_durably(path, json.dumps(document, indent=2).encode() + b"\n")


def write_object_by_lines(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON object like `write_object`, with one key a line: long arrays stay short.

    Raises:
        StorageError: the disk is full, read-only or not permitted.
    """
    document = {**table, CHECKSUM: checksum_of(table)}
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    write_durably(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


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
    if CHECKSUM in table:
        if table.pop(CHECKSUM) != checksum_of(table):
            raise ValueError("its content does not match its checksum")
    elif any(_is_checksum_of_rest(table, key) for key in table):
        raise ValueError(f"its key {CHECKSUM!r} is damaged")
    return table


def parse_as(kind: type[T], table: Mapping[str, Any]) -> T:
    """Return a dataclass from a JSON object whose keys are its fields, checked by its annotations.

    Raises:
        ValueError: an unknown or missing key, or a value of another type or out of range.
    """
    unknown = sorted(table.keys() - {one.name for one in fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"its key {unknown[0][:80]!r} is not known to this version of kdscale")
    return check_as(kind, table)


def check_as(kind: type[T], table: Mapping[str, Any]) -> T:
    """Return a dataclass or a pydantic model of a JSON object; keys beyond its fields are ignored.

    Raises:
        ValueError: a missing key, or a value of another type or out of range.
    """
    from pydantic import TypeAdapter, ValidationError  # heavy: `kdscale cache info` needs none

    try:
        return TypeAdapter(kind).validate_json(canonical(table), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))[:80]
        if first["type"] == "missing":
            raise ValueError(f"its key {field!r} is missing") from None
        wanted = first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{field} is {reprlib.repr(first['input'])}, wanted {wanted}") from None


def _is_checksum_of_rest(table: Mapping[str, Any], key: str) -> bool:
    value = table[key]
    if not isinstance(value, str) or len(value) != hashlib.sha256().digest_size * 2:
        return False
    return value == checksum_of({name: one for name, one in table.items() if name != key})
