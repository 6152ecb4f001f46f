"""Types and ranges of a manifest's fields, checked before anything is computed from them.

A manifest may come from a stranger, with a checksum that fits. Plain code: `kdscale cache info`
reads a manifest without importing pydantic, NumPy or Zarr. `cache/README.md` is the specification.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

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
    _check_dataset(_object("dataset", table["dataset"]), table)
    _check_views(_object("views", table["views"]), table)
    _check_teacher(_object("teacher", table["teacher"]))
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
    _require(type(table["complete"]) is bool, "complete", table["complete"], "true or false")
    num_views, num_samples, shard_samples = (
        _integer(name, table[name]) for name in ("num_views", "num_samples", "shard_samples")
    )
    num_shards = -(-num_samples // shard_samples)
    if num_views * num_shards > MAX_SHARDS:
        raise FieldError(
            f"num_views is {num_views} and a view has {num_shards} shards, wanted at most "
            f"{MAX_SHARDS} shards in all"
        )
    chunk = table.get("chunk_samples")
    if chunk is not None:
        largest = -(-num_samples // _integer("chunk_samples", chunk)) * chunk
        fits = shard_samples % chunk == 0 and shard_samples <= largest
        _require(fits, "chunk_samples", chunk, f"a divisor of shard_samples ({shard_samples})")


def _check_encoding(table: Mapping[str, Any]) -> None:
    encoding, num_classes = table["encoding"], table["num_classes"]
    known = isinstance(encoding, str) and encoding in ENCODINGS
    _require(known, "encoding", encoding, f"one of {', '.join(ENCODINGS)}")
    has_logits = ENCODINGS[encoding].has_logits
    _integer("num_classes", num_classes, least=1 if has_logits else 0)
    if not has_logits and not table.get("features"):
        raise FieldError(f"encoding is {encoding!r} and there are no features: nothing is stored")
    settings = ENCODINGS[encoding].settings
    for name in (name for one in ENCODINGS.values() for name in one.settings):
        if (name in table) != (name in settings):
            raise FieldError(f"{name} and the encoding {encoding!r} do not go together")
    if "top_k" in settings:
        fits = _integer("top_k", table["top_k"]) < num_classes
        _require(fits, "top_k", table["top_k"], f"less than num_classes ({num_classes})")
    if "temperatures" in settings:
        _check_temperatures(table["temperatures"])
    if "embedding_size" in settings:
        _integer("embedding_size", table["embedding_size"])
    fields = {name: table[name] for name in settings}
    wanted = create_encoding(encoding, num_classes, **fields).bytes_per_target
    stated = _integer("bytes_per_target", table["bytes_per_target"], least=min(1, wanted))
    _require(stated == wanted, "bytes_per_target", stated, f"{wanted} for {encoding}")


def _check_temperatures(given: Any) -> None:
    positive = isinstance(given, list) and all(_is_number(one) and one > 0 for one in given)
    ascending = positive and all(one < other for one, other in pairwise(given))
    wanted = "ascending numbers, the first at most 1 and the last at least 1"
    _require(ascending and given and given[0] <= 1 <= given[-1], "temperatures", given, wanted)


def _check_features(features: Any) -> None:
    _require(isinstance(features, list), "features", features, "an array")
    fields = {"module", "pool", "shape"}
    for one in features:
        complete = isinstance(one, Mapping) and one.keys() == fields
        _require(complete, "features", one, "objects with module, pool and shape")
        module, shape = one["module"], one["shape"]
        named = isinstance(module, str) and _MODULE.fullmatch(module)
        _require(named, "features.module", module, "the name of a module")
        if one["pool"] is not None:
            _integer("features.pool", one["pool"])
        sized = isinstance(shape, list) and 1 <= len(shape) <= 3
        _require(sized, "features.shape", shape, "1 to 3 integers")
        count = math.prod(_integer("features.shape", size) for size in shape)
        _require(count <= _MAX_COUNT, "features.shape", shape, f"at most {_MAX_COUNT} values")
    modules = [one["module"] for one in features]
    _require(len(set(modules)) == len(modules), "features", modules, "each module once")


def _check_dataset(dataset: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    _hash("dataset.fingerprint", dataset["fingerprint"])
    num_samples, classes = dataset["num_samples"], dataset["classes"]
    equal = type(num_samples) is int and num_samples == table["num_samples"]
    _require(equal, "dataset.num_samples", num_samples, str(table["num_samples"]))
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    _require(named, "dataset.classes", classes, "an array of names")
    if len(classes) != table["num_classes"]:
        raise FieldError(
            f"dataset.classes has {len(classes)} names, wanted num_classes ({table['num_classes']})"
        )
    if "keys" in dataset:
        known = dataset["keys"] in _KINDS_OF_KEYS
        _require(known, "dataset.keys", dataset["keys"], " or ".join(_KINDS_OF_KEYS))
    share = dataset.get("test", 0.0)
    _require(_is_number(share) and 0 <= share < 1, "dataset.test", share, "a share below 1")
    for name in ("source", "split"):
        _text_or_null(f"dataset.{name}", dataset[name])
    for name in ("image_column", "label_column"):
        _text_or_null(f"dataset.{name}", dataset.get(name))


def _check_views(views: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    for name in ("generator", "seed"):
        _require(type(views[name]) is int, f"views.{name}", views[name], "an integer")
    operations = views["operations"]
    _require(isinstance(operations, list), "views.operations", operations, "an array")
    for one in operations:
        named = isinstance(one, Mapping) and isinstance(one.get("name"), str)
        _require(named, "views.operations", one, "objects with a name")
    count, num_views = views.get("count", table["num_views"]), table["num_views"]
    equal = type(count) is int and count == num_views
    _require(equal, "views.count", count, f"num_views ({num_views})")
    enumerated = views.get("enumerated", True)
    _require(type(enumerated) is bool, "views.enumerated", enumerated, "true")
    if "pairing" in views:
        _check_pairing(_object("pairing", views["pairing"]))


def _check_pairing(pairing: Mapping[str, Any]) -> None:
    unknown = sorted(pairing.keys() - {"num_samples", "validation", "within"})
    wanted = "num_samples, validation or within"
    _require(not unknown, "views.pairing", "".join(unknown[:1]), wanted)
    _integer("views.pairing.num_samples", pairing["num_samples"])
    if "within" in pairing:
        _integer("views.pairing.within", pairing["within"])
    share = pairing.get("validation", 0.0)
    below = _is_number(share) and 0 <= share < 1
    _require(below, "views.pairing.validation", share, "a share below 1")


def _check_teacher(teacher: Mapping[str, Any]) -> None:
    _hash("teacher.weights_sha256", teacher["weights_sha256"])
    _object("preprocess", teacher["preprocess"])
    _object("options", teacher.get("options", {}))
    for name in ("precision", "memory_format"):
        _require(isinstance(teacher[name], str), f"teacher.{name}", teacher[name], "text")
    _text_or_null("teacher.model", teacher["model"])
    top1 = teacher.get("top1_accuracy")
    share = top1 is None or (_is_number(top1) and 0 <= top1 <= 1)
    _require(share, "teacher.top1_accuracy", top1, "0 to 1, or null")


def _check_build(table: Mapping[str, Any]) -> None:
    """Check what is only reported: fidelity, build, versions and checksums."""
    _check_fidelity(_object("fidelity", table["fidelity"]), table)
    build = _object("build", table["build"])
    seconds = build.get("seconds", 0.0)
    _require(
        _is_number(seconds) and seconds >= 0, "build.seconds", seconds, "a number of at least 0"
    )
    for name, least in (("num_processes", 1), ("bytes", 0)):
        if name in build:
            _integer(f"build.{name}", build[name], least)
    versions = _object("versions", table["versions"])
    texts = all(isinstance(version, str) for version in versions.values())
    _require(texts, "versions", versions, "texts")
    for key, stated in _object("checksums", table["checksums"]).items():
        _hash(f"checksums.{key[:80]}", stated)


def _check_fidelity(fidelity: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    if "num_samples" in fidelity:
        _integer("fidelity.num_samples", fidelity["num_samples"])
    for name in ("top1_agreement", "max_probability_error"):
        value = fidelity.get(name, 0.0)
        _require(_is_number(value), f"fidelity.{name}", value, "a number")
    mass = fidelity.get("tail_mass")
    if mass is not None:
        numbers = isinstance(mass, list) and all(map(_is_number, mass))
        fits = numbers and len(mass) == len(table.get("temperatures", []))
        _require(fits, "fidelity.tail_mass", mass, "a number for each of the temperatures")


def _require(condition: object, name: str, value: object, wanted: str) -> None:
    """Raise an error that names a field, its value and what was wanted, unless it fits."""
    if not condition:
        text = repr(value)
        excerpt = text if len(text) <= 60 else f"{text[:57]}..."
        raise FieldError(f"{name} is {excerpt}, wanted {wanted}")


def _object(name: str, value: Any) -> Mapping[str, Any]:
    _require(isinstance(value, Mapping), name, value, "an object")
    return cast(Mapping[str, Any], value)


def _integer(name: str, value: Any, least: int = 1) -> int:
    fits = type(value) is int and least <= value <= _MAX_COUNT
    _require(fits, name, value, f"an integer from {least} to {_MAX_COUNT}")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hash(name: str, value: object) -> None:
    fits = isinstance(value, str) and _SHA256.fullmatch(value)
    _require(fits, name, value, "64 hexadecimal digits")


def _text_or_null(name: str, value: object) -> None:
    _require(value is None or isinstance(value, str), name, value, "text or null")
