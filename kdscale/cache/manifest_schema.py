"""Types and ranges of a manifest's fields, checked before anything is computed from them.

A manifest may come from a stranger, with a checksum that fits. Plain code: `kdscale cache info`
reads a manifest without importing pydantic, NumPy or Zarr. `cache/README.md` is the specification.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kdscale.encodings import ENCODINGS, create_encoding

MAX_SHARDS = 1 << 21
"""Largest number of shards of a cache, all views together: 300 views of 28 million images."""
_MAX_COUNT = 1 << 40
_MAX_INTEGER = 1 << 64
_MAX_DEPTH = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_KINDS_OF_KEYS = ("pixels", "encoded")


class FieldError(ValueError):
    """A field of a manifest has a type or value that no cache has; the message names both."""


def check_table(table: Mapping[str, Any]) -> None:
    """Check a manifest as parsed from JSON, without its checksum.

    Raises:
        FieldError: names the first field that is wrong, its value and what was wanted.
        KeyError: a field is missing.
    """
    check_values(table)
    _check_counts(table)
    _check_encoding(table)
    _check_features(table.get("features", []))
    _check_dataset(_object(table, "dataset"), table)
    _check_views(_object(table, "views"), table)
    _check_teacher(_object(table, "teacher"))
    _check_build(table)


def check_values(value: Any, depth: int = 0) -> None:
    """Check that a JSON value can be printed and computed with.

    Raises:
        FieldError: nested too deeply, a huge integer, a number that is not finite, or text that is
            no valid Unicode.
    """
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise FieldError("a text contains half of a surrogate pair")
    elif isinstance(value, dict | list):
        if depth > _MAX_DEPTH:
            raise FieldError(f"nested more than {_MAX_DEPTH} levels deep")
        for inner in value:  # of an object, its keys
            check_values(inner, depth + 1)
        for inner in value.values() if isinstance(value, dict) else ():
            check_values(inner, depth + 1)
    elif isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise FieldError("an integer does not fit in 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError("a number is not finite")


def _check_counts(table: Mapping[str, Any]) -> None:
    if type(table["complete"]) is not bool:
        raise _unfit("complete", table["complete"], "true or false")
    for name in ("num_views", "num_samples", "num_classes", "shard_samples"):
        _integer(table, name)
    num_samples, shard_samples = table["num_samples"], table["shard_samples"]
    num_shards = -(-num_samples // shard_samples)
    if table["num_views"] * num_shards > MAX_SHARDS:
        raise FieldError(
            f"num_views is {table['num_views']} and a view has {num_shards} shards, wanted at most "
            f"{MAX_SHARDS} shards in all"
        )
    chunk = table.get("chunk_samples")
    if chunk is not None:
        _integer(table, "chunk_samples")
        largest = -(-num_samples // chunk) * chunk
        if shard_samples % chunk or shard_samples > largest:
            raise _unfit("chunk_samples", chunk, f"a divisor of shard_samples ({shard_samples})")


def _check_encoding(table: Mapping[str, Any]) -> None:
    encoding, num_classes = table["encoding"], table["num_classes"]
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise _unfit("encoding", encoding, f"one of {', '.join(ENCODINGS)}")
    settings = ENCODINGS[encoding].settings
    for name in (name for one in ENCODINGS.values() for name in one.settings):
        if (name in table) != (name in settings):
            raise FieldError(f"{name} and the encoding {encoding!r} do not go together")
    if "top_k" in settings and _integer(table, "top_k") >= num_classes:
        raise _unfit("top_k", table["top_k"], f"less than num_classes ({num_classes})")
    if "temperatures" in settings:
        _check_temperatures(table["temperatures"])
    if "embedding_size" in settings:
        _integer(table, "embedding_size")
    fields = {name: table[name] for name in settings}
    wanted = create_encoding(encoding, num_classes, **fields).bytes_per_target
    if _integer(table, "bytes_per_target") != wanted:
        raise _unfit("bytes_per_target", table["bytes_per_target"], f"{wanted} for {encoding}")


def _check_temperatures(temperatures: Any) -> None:
    wanted = "ascending numbers, the first at most 1 and the last at least 1"
    if not isinstance(temperatures, list) or not temperatures:
        raise _unfit("temperatures", temperatures, wanted)
    if not all(_is_number(one) and one > 0 for one in temperatures):
        raise _unfit("temperatures", temperatures, wanted)
    ascending = all(one < other for one, other in pairwise(temperatures))
    if not ascending or temperatures[0] > 1 or temperatures[-1] < 1:
        raise _unfit("temperatures", temperatures, wanted)


def _check_features(features: Any) -> None:
    if not isinstance(features, list):
        raise _unfit("features", features, "an array")
    modules = []
    for one in features:
        if not isinstance(one, Mapping) or one.keys() != {"module", "pool", "shape"}:
            raise _unfit("features", one, "objects with module, pool and shape")
        module, shape = one["module"], one["shape"]
        if not isinstance(module, str) or not _MODULE.fullmatch(module):
            raise _unfit("features.module", module, "the name of a module")
        if one["pool"] is not None:
            _integer(one, "pool", "features.pool")
        if not isinstance(shape, list) or not 1 <= len(shape) <= 3:
            raise _unfit("features.shape", shape, "1 to 3 integers")
        for size in shape:
            _integer({"shape": size}, "shape", "features.shape")
        if math.prod(shape) > _MAX_COUNT:
            raise _unfit("features.shape", shape, f"at most {_MAX_COUNT} values")
        modules.append(module)
    if len(set(modules)) != len(modules):
        raise _unfit("features", modules, "each module once")


def _check_dataset(dataset: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    _hash(dataset, "fingerprint", "dataset.fingerprint")
    if dataset["num_samples"] != table["num_samples"] or type(dataset["num_samples"]) is not int:
        raise _unfit("dataset.num_samples", dataset["num_samples"], str(table["num_samples"]))
    classes = dataset["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _unfit("dataset.classes", classes, "an array of names")
    if len(classes) != table["num_classes"]:
        raise FieldError(
            f"dataset.classes has {len(classes)} names, wanted num_classes ({table['num_classes']})"
        )
    if "keys" in dataset and dataset["keys"] not in _KINDS_OF_KEYS:
        raise _unfit("dataset.keys", dataset["keys"], " or ".join(_KINDS_OF_KEYS))
    for name in ("source", "split"):
        _text_or_none(dataset[name], f"dataset.{name}")
    for name in ("image_column", "label_column"):
        _text_or_none(dataset.get(name), f"dataset.{name}")


def _check_views(views: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    for name in ("generator", "seed"):
        if type(views[name]) is not int:
            raise _unfit(f"views.{name}", views[name], "an integer")
    operations = views["operations"]
    if not isinstance(operations, list):
        raise _unfit("views.operations", operations, "an array")
    for one in operations:
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            raise _unfit("views.operations", one, "objects with a name")
    count = views.get("count", table["num_views"])
    if type(count) is not int or count != table["num_views"]:
        raise _unfit("views.count", count, f"num_views ({table['num_views']})")
    if type(views.get("enumerated", True)) is not bool:
        raise _unfit("views.enumerated", views["enumerated"], "true")
    if "pairing" in views:
        _check_pairing(_object(views, "pairing"))


def _check_pairing(pairing: Mapping[str, Any]) -> None:
    unknown = pairing.keys() - {"num_samples", "validation", "within"}
    if unknown:
        raise _unfit("views.pairing", sorted(unknown)[0], "num_samples, validation or within")
    _integer(pairing, "num_samples", "views.pairing.num_samples")
    if "within" in pairing:
        _integer(pairing, "within", "views.pairing.within")
    validation = pairing.get("validation", 0.0)
    if not _is_number(validation) or not 0 <= validation < 1:
        raise _unfit("views.pairing.validation", validation, "a share below 1")


def _check_teacher(teacher: Mapping[str, Any]) -> None:
    _hash(teacher, "weights_sha256", "teacher.weights_sha256")
    for name in ("preprocess", "options"):
        if name == "preprocess" or name in teacher:
            _object(teacher, name)
    for name in ("precision", "memory_format"):
        if not isinstance(teacher[name], str):
            raise _unfit(f"teacher.{name}", teacher[name], "text")
    _text_or_none(teacher["model"], "teacher.model")
    accuracy = teacher.get("top1_accuracy")
    if accuracy is not None and (not _is_number(accuracy) or not 0 <= accuracy <= 1):
        raise _unfit("teacher.top1_accuracy", accuracy, "0 to 1, or null")


def _check_build(table: Mapping[str, Any]) -> None:
    """Check what is only reported: fidelity, build, versions and checksums."""
    _check_fidelity(_object(table, "fidelity"), table)
    build = _object(table, "build")
    seconds = build.get("seconds", 0.0)
    if not _is_number(seconds) or seconds < 0:
        raise _unfit("build.seconds", seconds, "a number of at least 0")
    for name, least in (("num_processes", 1), ("bytes", 0)):
        if name in build:
            _integer(build, name, f"build.{name}", least)
    versions = _object(table, "versions")
    if not all(isinstance(version, str) for version in versions.values()):
        raise _unfit("versions", versions, "texts")
    for key, stated in _object(table, "checksums").items():
        _hash({"checksum": stated}, "checksum", f"checksums.{key[:80]}")


def _check_fidelity(fidelity: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    if "num_samples" in fidelity:
        _integer(fidelity, "num_samples", "fidelity.num_samples")
    for name in ("top1_agreement", "max_probability_error"):
        if name in fidelity and not _is_number(fidelity[name]):
            raise _unfit(f"fidelity.{name}", fidelity[name], "a number")
    mass = fidelity.get("tail_mass")
    if mass is not None:
        grid = table.get("temperatures", [])
        if not isinstance(mass, list) or not all(map(_is_number, mass)) or len(mass) != len(grid):
            raise _unfit("fidelity.tail_mass", mass, "a number for each of the temperatures")


def _object(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table[name]
    if not isinstance(value, Mapping):
        raise _unfit(name, value, "an object")
    return value


def _integer(table: Mapping[str, Any], name: str, label: str = "", least: int = 1) -> int:
    value = table[name]
    if type(value) is not int or not least <= value <= _MAX_COUNT:
        raise _unfit(label or name, value, f"an integer from {least} to {_MAX_COUNT}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hash(table: Mapping[str, Any], name: str, label: str) -> None:
    value = table[name]
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise _unfit(label, value, "64 hexadecimal digits")


def _text_or_none(value: object, label: str) -> None:
    if value is not None and not isinstance(value, str):
        raise _unfit(label, value, "text or null")


def _unfit(name: str, value: object, wanted: str) -> FieldError:
    text = repr(value)
    excerpt = text if len(text) <= 60 else f"{text[:57]}..."
    return FieldError(f"{name} is {excerpt}, wanted {wanted}")
