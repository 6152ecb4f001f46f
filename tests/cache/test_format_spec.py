"""cache/README.md is the specification: its tables are the code's, and its example runs."""

import dataclasses
import hashlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import synthetic
import zarr

from kdscale.cache.layout import COMMITTED, arrays, fixed_keys, shard_name, shard_objects
from kdscale.cache.manifest import FORMAT_VERSION, canonical, read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden/cache_v1"
SPECIFICATION = (ROOT / "cache/README.md").read_text()


def table(first_column):
    """Rows of the table whose first column has this heading, without back quotes."""
    lines = iter(SPECIFICATION.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    assert rows
    return rows


def metadata(cache, name):
    return json.loads((cache / name / "zarr.json").read_bytes())


def stored_manifest(cache):
    return json.loads((cache / "zarr.json").read_bytes())["attributes"]["kdscale"]


# ------------------------------------------------------------------ the document and the code


def test_the_page_is_of_todays_version():
    assert SPECIFICATION.startswith(f"# The cache format, version {FORMAT_VERSION}\n")


def test_example_runs_and_reads_what_kdscale_reads(cache, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", SPECIFICATION, re.DOTALL)
    monkeypatch.chdir(cache.parent)
    names = {}
    exec(example.replace("NAME.zarr", cache.name), names)  # noqa: S102
    reader = CacheReader(cache)
    np.testing.assert_array_equal(names["logits"], reader.read_view(0)["logits"])
    np.testing.assert_array_equal(names["digests"], reader.read_view(0)["digests"])
    np.testing.assert_array_equal(names["labels"], reader.labels())


def test_table_of_arrays_is_the_codes(cache):
    manifest = read_manifest(cache)
    values = {"V": 2, "N": 10, "C": 5, "S": 3, "shard_samples": 4, "1": 1, "3": 3}
    layouts = arrays(manifest)
    assert [row[0] for row in table("array")] == list(layouts)
    for name, shape, dtype, chunks, fill, dimensions in table("array"):
        layout, stored = layouts[name], metadata(cache, name)
        assert tuple(values[size] for size in shape.split(", ")) == layout.shape
        assert tuple(values[size] for size in chunks.split(", ")) == layout.chunks
        assert {"encoding": manifest.encoding}.get(dtype, dtype) == layout.dtype
        assert fill == str(layout.fill_value).replace("nan", "NaN")
        assert tuple(dimensions.split(", ")) == layout.dimension_names
        # and what is on disk says the same
        assert tuple(stored["shape"]) == layout.shape
        assert tuple(stored["chunk_grid"]["configuration"]["chunk_shape"]) == layout.chunks
        assert stored["data_type"] == layout.dtype
        assert str(stored["fill_value"]) == fill
        assert tuple(stored["dimension_names"]) == layout.dimension_names
        encoding = {"name": "default", "configuration": {"separator": "/"}}
        assert stored["chunk_key_encoding"] == encoding


def test_table_of_codecs_is_what_is_on_disk(cache):
    configurations = {
        "little endian": {"endian": "little"},
        "level 1, no checksum": {"level": 1, "checksum": False},
        "": {},
    }
    expected = [(name, configurations[text]) for name, text in table("codec")]
    for name in arrays(read_manifest(cache)):
        codecs = metadata(cache, name)["codecs"]
        assert [(c["name"], c.get("configuration", {})) for c in codecs] == expected


def test_chunks_of_one_shard_are_never_larger_than_the_data_set(tmp_path):
    synthetic.build(tmp_path, synthetic.asked(shard_samples=4096))
    assert metadata(tmp_path, "logits")["chunk_grid"]["configuration"]["chunk_shape"] == [1, 10, 5]


def test_table_of_files_is_what_is_on_disk(cache):
    patterns = [key for row in table("key") if "." in row[0] or "/" in row[0]
                for key in row[0].split(", ")]  # fmt: skip
    patterns = [re.escape(p).replace("VIEW", r"\d+").replace("SHARD", r"\d+") for p in patterns]
    files = synthetic.files(cache)
    for key in files:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in files), pattern


def manifest_rows():
    start = SPECIFICATION.index("## Manifest")
    found = re.findall(r"^\| `(\w+)` \| (\w+) \|", SPECIFICATION[start:], re.MULTILINE)
    return dict(found)


def test_table_of_the_manifest_is_what_is_on_disk_in_its_order(cache):
    types = {
        "integer": int, "string": str, "boolean": bool, "object": dict,
    }  # fmt: skip
    stored = stored_manifest(cache)
    assert list(manifest_rows()) == list(stored)
    for key, name in manifest_rows().items():
        assert type(stored[key]) is types[name], key
    assert sorted(stored["checksums"]) == sorted(fixed_keys(read_manifest(cache)))


def test_table_of_the_identity_is_the_codes(cache):
    rows = {name: identity for name, identity, _ in table("field | identity")}
    optional = {name.partition(".")[2]: 1 for name, word in rows.items() if word == "if present"}
    manifest = read_manifest(cache)
    for views, words in (
        (manifest.views, ("yes",)),
        ({**manifest.views, **optional}, ("yes", "if present")),
    ):
        identity = dataclasses.replace(manifest, views=views).identity
        named = {f"{section}.{name}" for section in ("dataset", "views", "teacher")
                 for name in identity[section]}  # fmt: skip
        assert {name for name, word in rows.items() if word in words} == named
    assert set(identity) == {"dataset", "views", "teacher", "encoding"}


def test_hashes_are_computed_as_the_page_says(cache):
    stored = stored_manifest(cache)
    marked = [name.split(".") for name, identity, _ in table("field | identity")
              if identity == "yes"]  # fmt: skip
    identity = {"encoding": stored["encoding"]}
    for section, name in marked:
        identity.setdefault(section, {})[name] = stored[section][name]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == stored["id"]
    checksum = stored.pop("checksum")
    assert hashlib.sha256(canonical(stored)).hexdigest() == checksum
    for key, expected in stored["checksums"].items():
        assert hashlib.sha256((cache / key).read_bytes()).hexdigest() == expected
    document = {"zarr_format": 3, "node_type": "group",
                "attributes": {"kdscale": {**stored, "checksum": checksum}}}  # fmt: skip
    assert (cache / "zarr.json").read_text() == json.dumps(document, indent=1)


def test_examples_of_canonical_json_are_right():
    assert canonical([0.1, 1e-05, 1.0, 7]) == b"[0.1,1e-05,1.0,7]"
    assert canonical("é\U0001f600") == b'"\\u00e9\\ud83d\\ude00"'
    assert "(`0.1`, `1e-05`, `1.0`)" in SPECIFICATION


def test_table_of_commit_records_is_what_is_on_disk(cache):
    assert "4294967296" in SPECIFICATION
    assert int(COMMITTED) == 4294967296
    commits = zarr.open_group(cache, mode="r")["commits"]
    for view, shard in synthetic.all_shards(read_manifest(cache)):
        record = [int(value) - 2**32 for value in commits[view, shard]]
        keys = [f"logits/c/{view}/{shard}/0", f"digests/c/{view}/{shard}"]
        assert list(shard_objects(read_manifest(cache), view, shard)) == keys
        assert record == [*(zlib.crc32((cache / key).read_bytes()) for key in keys), 250]
    fields = re.findall(r"^\| (\d) \| (CRC-32|milliseconds)", SPECIFICATION, re.MULTILINE)
    assert [what for _, what in fields[:3]] == ["CRC-32", "CRC-32", "milliseconds"]


def test_shards_are_named_as_the_page_says():
    assert f"`{shard_name(0, 0)}`" in SPECIFICATION


# ------------------------------------------------------------------ caches of earlier releases


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.zarr")), ids=lambda path: path.stem)
def test_golden_cache_reads_as_on_the_day_it_was_written(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    assert verify(path).ok
    reader = CacheReader(path)
    assert reader.manifest.id == expected["id"]
    assert reader.manifest.num_views == len(expected["views"])
    for view, values in enumerate(expected["views"]):
        got = reader.read_view(view)
        assert got["logits"].dtype == expected["encoding"]
        assert got["logits"].tolist() == values["logits"]
        assert got["digests"].tolist() == values["digests"]
    assert reader.labels().tolist() == expected["labels"]


def test_there_is_a_golden_cache_of_every_encoding():
    found = {read_manifest(path).encoding for path in GOLDEN.glob("*.zarr")}
    assert found == {"float16", "float32"}
