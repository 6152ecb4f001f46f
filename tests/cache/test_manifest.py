import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import synthetic

from kdscale.cache.catalog import content_bytes, describe, find_cache, list_caches
from kdscale.cache.manifest import (
    FORMAT_VERSION,
    Manifest,
    canonical,
    group_document,
    read_manifest,
    write_manifest,
)
from kdscale.cache.manifest_diff import check_identity
from kdscale.errors import CacheCorruptError, CacheError, CacheMismatchError, CacheNotFoundError


def with_field(manifest, section, name, value):
    return replace(manifest, **{section: {**getattr(manifest, section), name: value}})


IDENTITY = [
    ("dataset", "fingerprint", "e" * 64),
    ("dataset", "num_samples", 11),
    ("dataset", "classes", ["ant", "bee", "cat", "dog", "fox"]),
    ("views", "generator", 2),
    ("views", "seed", 4),
    ("views", "operations", [{"name": "flip"}]),
    ("teacher", "weights_sha256", "b" * 64),
    ("teacher", "preprocess", {"mean": [0.5], "std": [0.5], "size": None}),
    ("teacher", "precision", "bfloat16"),
    ("teacher", "memory_format", "channels_last"),
    ("teacher", "options", {"activation": "gelu"}),
]
NOT_IDENTITY = [
    {"num_views": 7},
    {"shard_samples": 2},
    {"bytes_per_target": 1},
    {"versions": {"zarr": "9"}},
    {"fidelity": {}},
    {"build": {"seconds": 1.0}},
    {"checksums": {"labels/c/0": "0"}},
    {"complete": True},
]


# ------------------------------------------------------------------ round trip and identity


def test_manifest_reads_back_as_written(tmp_path):
    manifest = synthetic.asked(complete=True, build={"seconds": 0.1}, checksums={"k": "0" * 64})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_canonical_json_is_the_same_for_equal_values_whatever_their_order():
    assert canonical({"b": (1, 2.0), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.0]}'
    assert canonical({"a": "é", "b": [1, 2.0]}) == canonical({"b": [1, 2.0], "a": "é"})


def test_id_is_a_fixed_function_of_the_identity():
    assert synthetic.asked().id == "f29003847ae241b1"


@pytest.mark.parametrize("changes", NOT_IDENTITY, ids=lambda changes: next(iter(changes)))
def test_id_does_not_depend_on_what_is_not_identity(changes):
    assert replace(synthetic.asked(), **changes).id == synthetic.asked().id


@pytest.mark.parametrize(("section", "name"), [("dataset", "source"), ("teacher", "model")])
def test_id_does_not_depend_on_names(section, name):
    assert with_field(synthetic.asked(), section, name, "other").id == synthetic.asked().id


@pytest.mark.parametrize(("section", "name", "value"), IDENTITY)
def test_each_identity_field_changes_the_id_and_is_named(tmp_path, section, name, value):
    cache = synthetic.asked()
    asked = with_field(cache, section, name, value)
    assert asked.id != cache.id
    with pytest.raises(CacheMismatchError) as caught:
        check_identity(tmp_path, cache, asked)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 1
    assert lines[0].strip().startswith(f"{section}.{name}")


def test_encoding_changes_the_id_and_is_named_with_both_values(tmp_path):
    asked = synthetic.asked(encoding="float32")
    assert asked.id != synthetic.asked().id
    with pytest.raises(CacheMismatchError, match=r"encoding: the cache has float16, .* float32"):
        check_identity(tmp_path, synthetic.asked(), asked)


def test_mismatch_names_several_fields_with_both_values(tmp_path):
    asked = synthetic.asked(num_views=3)
    for section, name, value in IDENTITY:
        asked = with_field(asked, section, name, value)
    with pytest.raises(CacheMismatchError) as caught:
        check_identity(tmp_path, synthetic.asked(), asked)
    message = str(caught.value)
    for expected in [
        "dataset.fingerprint: the cache has ffffffffffff…, the recipe asks for eeeeeeeeeeee…",
        "dataset.classes[4]: the cache has elk, the recipe asks for fox",
        "views.seed: the cache has 3, the recipe asks for 4",
        "teacher.preprocess.std[0]: the cache has 0.25, the recipe asks for 0.5",
        "views.count: the cache has 2, the recipe asks for 3",
        "kdscale cache build",
        str(tmp_path),
    ]:
        assert expected in message


def test_mismatch_of_many_values_stays_readable(tmp_path):
    cache = with_field(synthetic.asked(), "dataset", "classes", [f"a{n}" for n in range(1000)])
    other = with_field(synthetic.asked(), "dataset", "classes", [f"b{n}" for n in range(1000)])
    fewer = with_field(synthetic.asked(), "dataset", "classes", [f"a{n}" for n in range(999)])
    with pytest.raises(CacheMismatchError, match="and 980 more"):
        check_identity(tmp_path, cache, other)
    with pytest.raises(CacheMismatchError, match=r"\(1000 entries\).*\(999 entries\)"):
        check_identity(tmp_path, cache, fewer)


@pytest.mark.parametrize("value", [{"size": None}, {}, {"size": 0.0}, {"size": False}])
def test_identities_are_equal_exactly_when_no_field_is_named(tmp_path, value):
    cache = with_field(synthetic.asked(), "teacher", "preprocess", {"size": 0})
    asked = with_field(synthetic.asked(), "teacher", "preprocess", value)
    assert cache.id != asked.id
    with pytest.raises(CacheMismatchError, match=r"teacher.preprocess.size"):
        check_identity(tmp_path, cache, asked)


def test_tuples_and_lists_are_one_identity(tmp_path):
    asked = with_field(synthetic.asked(), "dataset", "classes", synthetic.CLASSES)
    assert asked.id == synthetic.asked().id
    check_identity(tmp_path, synthetic.asked(), asked)


def test_more_views_than_requested_fit(tmp_path):
    check_identity(tmp_path, synthetic.asked(num_views=9), synthetic.asked())


# ------------------------------------------------------------------ damage


def test_every_flipped_byte_of_the_manifest_is_caught(tmp_path):
    path = tmp_path / "c.zarr"
    synthetic.build(path)
    intact = (path / "zarr.json").read_bytes()
    for position in range(len(intact)):
        for pattern in (0x01, 0x20, 0x80):
            flipped = bytearray(intact)
            flipped[position] ^= pattern
            (path / "zarr.json").write_bytes(flipped)
            with pytest.raises(CacheCorruptError):
                read_manifest(path)
    (path / "zarr.json").write_bytes(intact)
    assert read_manifest(path).complete


def test_a_truncation_of_the_manifest_is_caught(tmp_path):
    write_manifest(tmp_path, synthetic.asked())
    intact = (tmp_path / "zarr.json").read_bytes()
    for length in range(0, len(intact), 3):
        (tmp_path / "zarr.json").write_bytes(intact[:length])
        with pytest.raises(CacheCorruptError):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "3",
        "null",
        "{}",
        '{"attributes": []}',
        '{"attributes": {"kdscale": 1}}',
        '{"attributes": {"kdscale": {}}}',
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        '{"attributes": {"kdscale": {"format_version": 1, "complete": true}}}',
        '{"attributes": {"kdscale": {"checksum": NaN, "a": NaN}}}',
        "[" * 100_000,
    ],
    ids=range(13),
)
def test_what_a_user_typed_is_no_manifest_and_the_message_says_so(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CacheCorruptError, match="not written by kdscale") as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_manifest_of_another_key_or_type_is_refused_though_its_checksum_fits(tmp_path):
    for changes in [{"extra": 1}, {"dataset": 3}, {"id": "0" * 16}]:
        write_document(tmp_path, {**synthetic.asked().to_json(), **changes})
        with pytest.raises(CacheCorruptError, match="damaged"):
            read_manifest(tmp_path)


def write_document(path, table):
    """A group document with a fitting checksum, whatever the table says."""
    table = {**table, "checksum": hashlib.sha256(canonical(table)).hexdigest()}
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"kdscale": table}}
    (path / "zarr.json").write_text(json.dumps(document, indent=1))


def test_newer_format_says_so_and_not_that_it_is_damaged(tmp_path):
    newer = {"format_version": FORMAT_VERSION + 1, "something": "else"}
    write_document(tmp_path, newer)
    with pytest.raises(CacheError, match=r"format version 5, .* up to 4: update kdscale") as caught:
        read_manifest(tmp_path)
    assert not isinstance(caught.value, CacheCorruptError | CacheNotFoundError)


@pytest.mark.parametrize("more", [{"pairing": {"num_samples": 10}}, {"enumerated": True}])
def test_views_that_version_1_does_not_know_make_it_version_2(tmp_path, more):
    """Which a reader of version 1 refuses as newer; it would take it for damaged otherwise."""
    plain = synthetic.asked(bound_records=False)
    mixed = replace(plain, views={**plain.views, **more})
    assert (plain.to_json()["format_version"], mixed.to_json()["format_version"]) == (1, 2)
    assert plain.id != mixed.id
    write_manifest(tmp_path, mixed)
    assert read_manifest(tmp_path) == mixed


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "file", "below a file"])
def test_no_cache_there_says_so(tmp_path, kind):
    path = tmp_path / "c.zarr"
    if kind == "empty folder":
        path.mkdir()
    elif kind != "nothing":
        path.write_text("x")
    with pytest.raises(CacheNotFoundError, match=f"no cache at {tmp_path}"):
        read_manifest(path / "deeper" if kind == "below a file" else path)


def test_manifest_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "zarr.json").mkdir()
    with pytest.raises(CacheError, match=r"cannot read .*zarr.json"):
        read_manifest(tmp_path)


# ------------------------------------------------------------------ info, list, find


def test_describe_counts_the_bytes_on_disk(cache):
    manifest = replace(read_manifest(cache), complete=False)
    write_manifest(cache, manifest)
    (cache / ".x.tmp").write_bytes(b"12345")
    described = describe(cache, manifest)
    assert described["bytes"] == sum(map(len, synthetic.files(cache).values())) + 5
    assert described["id"] == synthetic.asked().id
    json.dumps(described, allow_nan=False)


def test_describe_survives_a_temporary_file_that_goes_away(cache, monkeypatch):
    gone = cache / ".labels.1.tmp"
    scan = os.scandir

    def vanishes(folder):
        gone.write_bytes(b"12345")
        found = scan(folder)
        listed = list(found)
        found.close()
        gone.unlink()
        return contextlib.nullcontext(listed)

    write_manifest(cache, replace(read_manifest(cache), complete=False))  # being built
    sizes = sum(map(len, synthetic.files(cache).values()))
    monkeypatch.setattr(os, "scandir", vanishes)
    assert describe(cache, read_manifest(cache))["bytes"] == sizes


def test_list_gives_manifests_and_what_is_wrong_with_others(tmp_path):
    synthetic.build(tmp_path / "b.zarr")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr/zarr.json").write_text("{}")
    (tmp_path / "images").mkdir()
    found = {path.name: what for path, what in list_caches(tmp_path)}
    assert list(found) == ["a.zarr", "b.zarr", "c.zarr"]
    assert isinstance(found["a.zarr"], CacheNotFoundError)
    assert isinstance(found["b.zarr"], Manifest)
    assert isinstance(found["c.zarr"], CacheCorruptError)
    assert list(list_caches(tmp_path / "nowhere")) == []


def test_find_prefers_finished_with_enough_views_then_the_largest(tmp_path):
    def put(name, **changes):
        manifest = synthetic.asked(**changes)
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_bytes(group_document(manifest))

    asked = synthetic.asked(num_views=3)
    assert find_cache(tmp_path, asked) is None
    put("other.zarr", encoding="float32", num_views=9, complete=True)
    assert find_cache(tmp_path, asked) is None
    put("small.zarr", num_views=2, complete=True)
    assert find_cache(tmp_path, asked) == tmp_path / "small.zarr"
    put("begun.zarr", num_views=4)
    assert find_cache(tmp_path, asked) == tmp_path / "begun.zarr"
    put("finished.zarr", num_views=3, complete=True)
    assert find_cache(tmp_path, asked) == tmp_path / "finished.zarr"


# ------------------------------------------------------------------ light


@pytest.mark.parametrize("module", ["manifest", "catalog"])
def test_reading_manifests_imports_neither_zarr_nor_numpy(cache, module):
    code = (
        f"import sys, kdscale.cache.{module}\n"
        "from pathlib import Path\n"
        "from kdscale.cache.manifest import read_manifest\n"
        "from kdscale.cache.catalog import describe\n"
        "path = Path(sys.argv[1]); describe(path, read_manifest(path))\n"
        "print(*sorted({'zarr', 'numpy', 'numcodecs', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cache], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_cache_info_imports_neither_zarr_nor_numpy(cache):
    code = (
        "import sys\nfrom kdscale.cli import cli\n"
        "cli(['cache', 'info', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print(*sorted({'zarr', 'numpy', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cache], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["complete"]
    assert done.stderr.strip() == ""


# ------------------------------------------------------------------ info


INFO_SECONDS = 1.5  # 0.3 is the aim; a loaded machine is slower


def test_info_of_50_views_answers_at_once(tmp_path):
    manifest = synthetic.build(
        tmp_path / "many.zarr", synthetic.asked(num_views=50, shard_samples=10)
    )
    assert len(synthetic.files(tmp_path / "many.zarr")) > 50 * 3
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "kdscale", "cache", "info", tmp_path / "many.zarr", "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
    assert json.loads(done.stdout)["bytes"] > manifest.build["bytes"]
    assert min(seconds) < INFO_SECONDS, f"best of three: {seconds}"


def test_finished_cache_knows_its_bytes_without_looking_at_its_files(cache):
    described = describe(cache, read_manifest(cache))
    assert described["bytes"] == sum(len(data) for data in synthetic.files(cache).values())
    shutil.rmtree(cache / "commits")
    assert describe(cache, read_manifest(cache))["bytes"] == described["bytes"]


def test_bytes_of_a_cache_that_does_not_say_them_are_counted(cache):
    """Those of earlier releases do not, nor does one that is being built."""
    manifest = read_manifest(cache)
    said = manifest.build["bytes"]
    build = {key: value for key, value in manifest.build.items() if key != "bytes"}
    for changes in ({"build": build}, {"complete": False}):
        write_manifest(cache, replace(manifest, **changes))
        (cache / "labels/extra").write_bytes(b"1234567")
        size = (cache / "zarr.json").stat().st_size
        assert describe(cache, read_manifest(cache))["bytes"] == said + size + 7


def test_what_is_no_content_does_not_count(cache):
    expected = content_bytes(cache)
    (cache / "claims").mkdir()
    (cache / "claims/manifest.0").write_bytes(b"x" * 100)
    (cache / "labels/.x.tmp").write_bytes(b"x" * 100)
    assert content_bytes(cache) == expected


def test_manifest_that_is_no_json_any_more_is_to_be_repaired(cache):
    stored = bytearray((cache / "zarr.json").read_bytes())
    stored[stored.index(b'"num_views"')] ^= 1
    (cache / "zarr.json").write_bytes(stored)
    with pytest.raises(CacheCorruptError, match="kdscale cache repair"):
        read_manifest(cache)
