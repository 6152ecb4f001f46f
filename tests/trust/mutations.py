"""Hostile variants of JSON, TOML, safetensors and plain bytes, drawn with a given generator."""

import json
import struct
from copy import deepcopy

DEEP = 100_000  # levels of nesting, far beyond Python's recursion limit
LONG = 5_000  # digits: beyond what int() takes

VALUES = [
    None, True, -1, 0, 1, 3, 10**6, 10**9, 10**12, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308,
    5e-324, float("nan"), float("inf"), -float("inf"), "", "x", "0", "x" * 100_000,
    "../../outside/victim.txt", "/dev/zero", "a\0b", "\u202e\x1b[31m", "\ud800", [], {}, [[]],
    [None], [1, 2, 3], [0] * 10_000, {"": 0}, {"x": {"y": []}}, "os:system",
    "transformers/../../outside", "s3://",
]  # fmt: skip
"""Values that a field of a file may hold where something else is meant."""


def damage_bytes(draw, data):
    """A few bytes changed, cut out, repeated or zeroed, or the file cut short."""
    data = bytearray(data)
    kind = draw.randrange(6)
    place = draw.randrange(max(1, len(data)))
    span = slice(place, place + 1 + draw.randrange(64))
    if kind == 0:
        for _ in range(1 + draw.randrange(20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[span]
    elif kind == 3:
        data[place:place] = draw.randbytes(1 + draw.randrange(64))
    elif kind == 4:
        data[span] = bytes(len(data[span]))
    else:
        data[place:place] = data[span] * (1 + draw.randrange(50))
    return bytes(data)


def damage_text(draw, text):
    """Other encodings, cut short, repeated, or not this kind of text at all; bytes."""
    choices = [
        lambda: b"",
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: text.encode()[: draw.randrange(len(text))],
        lambda: text.encode() * 2,
        lambda: text.encode() + bytes(1000),
        lambda: b"\x80\xff" + text.encode(),
        lambda: draw.randbytes(200),
        lambda: b"null",
        lambda: b"[" * DEEP,
        lambda: b'{"a":' * DEEP,
        lambda: b"9" * LONG,
        lambda: b'"' + b"x" * 1_000_000 + b'"',
    ]
    return draw.choice(choices)()


def _places(value, path=()):
    """Paths of all values inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))


def damage_value(draw, value):
    """A copy of a JSON value with one of its values, keys or types changed."""
    value = deepcopy(value)
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places:
        return draw.choice(VALUES)
    *above, key = draw.choice(places)
    inside = value
    for step in above:
        inside = inside[step]
    kind = draw.randrange(8)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[f"{key}s"] = inside.pop(key)
    elif kind == 2 and isinstance(inside, dict):
        inside["unknown"] = draw.choice(VALUES)
    elif kind == 3:
        inside[key] = [inside[key]]
    else:
        inside[key] = draw.choice(VALUES)
    return value


def damage_json(draw, text):
    """Bytes of a JSON document with one thing wrong."""
    if draw.random() < 0.25:
        return damage_text(draw, text)
    try:
        value = json.loads(text)
    except ValueError:  # a checksum in the metadata of weights, which is bare text
        return damage_text(draw, text)
    value = draw.choice(VALUES) if draw.random() < 0.05 else damage_value(draw, value)
    written = json.dumps(value)
    if draw.random() < 0.05:  # what json.dumps cannot write
        written = written.replace("0", "9" * LONG, 1)
    return written.encode()


def split_safetensors(data):
    """The header, as JSON has it, and the bytes of the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header, tensors, length=None):
    """A file of this header (a value or bytes); `length` is what it says of the header's."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + tensors


def damage_safetensors(draw, data):
    """A file with another header, another length, other metadata, or other bytes."""
    header, tensors = split_safetensors(data)
    kind = draw.randrange(5)
    if kind == 0:
        return damage_bytes(draw, data)
    if kind == 1:
        length = draw.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8])
        return join_safetensors(header, tensors, length)
    if kind == 2:
        return join_safetensors(damage_json(draw, json.dumps(header)), tensors)
    metadata = header.get("__metadata__")
    if kind == 3 or not metadata:
        return join_safetensors(damage_value(draw, header), tensors)
    name = draw.choice(list(metadata))  # values are JSON, in a string
    metadata[name] = damage_json(draw, metadata[name]).decode("utf-8", "replace")
    return join_safetensors(header, tensors)
