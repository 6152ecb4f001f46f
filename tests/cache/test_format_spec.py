"""cache/README.md is the specification: its tables are the code's, and its example runs."""

import dataclasses
import hashlib
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
import zarr

from kdscale.cache.checked_objects import read_once
from kdscale.cache.layout import (
    Layout,
    shard_name,
    with_large_objects,
    with_plain_objects,
)
from kdscale.cache.manifest import FORMAT_VERSION, canonical, read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import COMMITTED
from kdscale.cache.verify import verify
from kdscale.encodings import ENCODINGS, TopK, create_encoding
from kdscale.models.feature_extraction import FeatureSpec, extract_features
from kdscale.target_sources.buffer import stored_codec
from kdscale.targets import DenseTargets, Head, create_codec

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
SPECIFICATION = (ROOT / "cache/README.md").read_text()
WORDS = " ".join(SPECIFICATION.split())


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


@pytest.fixture(params=[*synthetic.ENCODINGS, "keys", "features"])
def any_cache(request, tmp_path):
    """2 views in 3 shards each, of each encoding, one with keys of images, one with features."""
    others = {"keys": synthetic.keyed(), "features": synthetic.asked(features=synthetic.FEATURES)}
    manifest = others.get(request.param) or synthetic.encoded(request.param)
    synthetic.build(tmp_path / "any.zarr", manifest)
    return tmp_path / "any.zarr"


def array_rows(manifest):
    """Of the table of arrays, those of a cache; its features each have a row of their own."""
    kinds = (ENCODED[manifest.encoding], "all")
    for row in table("array"):
        if row[1] in kinds and is_there(row, manifest):
            yield row
        for feature in manifest.features if row[1] == "features" else ():
            shape = ", ".join(map(str, feature["shape"]))
            names = {1: "value", 3: "channel, row, column"}[len(feature["shape"])]
            name, _, *cells = (
                cell.replace("MODULE", feature["module"]).replace(", and of shape", f", {names}")
                for cell in row
            )
            yield [name, "", *(cell.replace("V, N, shape", f"V, N, {shape}").replace(
                "shard_samples, shape", f"shard_samples, {shape}") for cell in cells)]  # fmt: skip


def test_example_runs_and_reads_what_kdscale_reads(cache, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", SPECIFICATION, re.DOTALL)
    monkeypatch.chdir(cache.parent)
    names = {}
    exec(example.replace("NAME.zarr", cache.name), names)  # noqa: S102
    reader = CacheReader(cache)
    np.testing.assert_array_equal(names["logits"], reader.read_view(0)["logits"])
    np.testing.assert_array_equal(names["digests"], reader.read_view(0)["digests"])
    np.testing.assert_array_equal(names["labels"], reader.labels())


ENCODED = {name: name for name in synthetic.ENCODINGS} | {"float32": "float", "float16": "float"}


def test_table_of_arrays_is_the_codes(any_cache):
    manifest = read_manifest(any_cache)
    layouts = Layout(manifest).arrays
    values = {"V": 2, "N": 10, "C": 5, "S": 3, "shard_samples": 4, "P": 3, "K": 2, "G": 3,
              "D": 3, "R": len(shard_objects_of(any_cache)) + 4}  # fmt: skip
    values |= {str(number): number for number in range(9)}
    rows = list(array_rows(manifest))
    assert [row[0] for row in rows] == list(layouts)
    for name, _, shape, dtype, chunks, fill, dimensions in rows:
        layout, stored = layouts[name], metadata(any_cache, name)
        assert tuple(values[size] for size in shape.split(", ")) == layout.shape
        assert tuple(values[size] for size in chunks.split(", ")) == layout.chunks
        wanted = {"encoding": manifest.encoding, "id type": "uint8"}.get(dtype, dtype)
        assert wanted == layout.dtype
        fill = {"largest": "255"}.get(fill, fill)
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


def is_there(row, manifest):
    """The keys of images alone are not in every cache."""
    return row[0] != "keys" or "keys" in manifest.dataset


def test_large_objects_are_as_the_page_says(tmp_path):
    asked = with_large_objects(synthetic.asked())
    assert (asked.shard_samples, asked.chunk_samples) == (12, 4)  # three chunks hold a view
    synthetic.build(tmp_path, asked)
    stored = metadata(tmp_path, "logits")
    assert stored["chunk_grid"]["configuration"]["chunk_shape"] == [1, 12, 5]
    (codec,) = stored["codecs"]
    assert codec["name"] == "sharding_indexed"
    inside, index = codec["configuration"]["codecs"], codec["configuration"]["index_codecs"]
    assert codec["configuration"]["chunk_shape"] == [1, 4, 5]
    assert [one["name"] for one in inside] == [row[0] for row in table("codec")]
    assert [one["name"] for one in index] == ["bytes", "crc32c"]
    assert codec["configuration"]["index_location"] == "end"
    for name in ("labels", "commits"):
        assert metadata(tmp_path, name)["codecs"][0]["name"] == "bytes"
    keys = list(stored_manifest(tmp_path))
    others = {"top_k", "temperatures", "embedding_size", "features"}
    assert keys == [key for key in manifest_rows() if key not in others]
    assert stored_manifest(tmp_path)["format_version"] == 3
    assert stored_manifest(tmp_path)["id"] == synthetic.asked().id
    group = zarr.open_group(tmp_path, mode="r")
    for view in range(2):
        wanted = synthetic.expected_view(asked, view)
        np.testing.assert_array_equal(group["logits"][view], wanted["logits"])
    assert "about 8 MiB before compression" in WORDS
    wide = with_large_objects(synthetic.asked(num_classes=1000, num_samples=10**6))
    assert wide.shard_samples * 1000 * 2 == pytest.approx(8 << 20, rel=0.01)
    assert with_large_objects(wide) == wide
    assert with_plain_objects(wide).shard_samples == 4


def shard_objects_of(cache):
    return Layout(read_manifest(cache)).shard_objects(0, 0)


def test_table_of_encodings_is_the_codes():
    rows = {name: (int(version), size) for name, version, _, size in table("encoding")}
    assert list(rows) == list(synthetic.ENCODINGS)
    for name, (version, size) in rows.items():
        manifest = synthetic.encoded(name)
        assert dataclasses.replace(manifest, bound_records=False).format_version == version
        names = {"C": 5, "K": 2, "G": 3, "D": 3, "id": 1, "ceil": math.ceil}
        assert eval(size, {}, names) == manifest.target_encoding.bytes_per_target  # noqa: S307


@pytest.mark.parametrize("num_classes", [4, 5])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_are_decoded_as_the_page_says(name, num_classes):
    codec = create_codec(create_encoding(name, num_classes))
    stored = codec.encode(torch.randn(20, num_classes) * 9)
    codes = stored["codes"]
    if name == "int4":
        assert "`codes & 15` is that of class `2p`, `codes >> 4` that of class `2p + 1`" in WORDS
        codes = np.stack([codes[:, c // 2] >> 4 * (c % 2) & 15 for c in range(num_classes)], axis=1)
    assert "`offset + scale * code`" in WORDS
    expected = stored["offset"][:, None] + stored["scale"][:, None] * codes.astype(np.float32)
    np.testing.assert_array_equal(expected, codec.decode(stored).logits_BC.numpy())


def test_an_embedding_is_decoded_as_the_page_says(tmp_path):
    assert "`embedding @ head_weight.T + head_bias`, in float32" in WORDS
    manifest = synthetic.build(tmp_path, synthetic.encoded("embedding"))
    group = zarr.open_group(tmp_path, mode="r")
    expected = group["embedding"][1].astype(np.float32) @ group["head_weight"][:].T
    expected += group["head_bias"][:]
    reader = CacheReader(tmp_path)
    codec = create_codec(manifest.target_encoding, Head.parse(reader.head()))
    found = codec.decode(reader.read_view(1))
    np.testing.assert_allclose(found.logits_BC.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("side", "pool"), [(5, 2), (8, 4), (7, 3), (4, 4)])
def test_maps_are_pooled_as_the_page_says(side, pool):
    assert "from `floor(r * H / pool)` to before `ceil((r + 1) * H / pool)`" in WORDS
    maps = torch.randn(2, 3, side, side + 1)
    model = torch.nn.Sequential(torch.nn.Identity())
    with extract_features(model, [FeatureSpec("0", pool)]) as seen:
        model(maps)
    found = seen.features["0"]
    spans = [
        [slice(r * n // pool, -(-(r + 1) * n // pool)) for r in range(pool)]
        for n in (side, side + 1)
    ]
    for row, rows in enumerate(spans[0]):
        for column, columns in enumerate(spans[1]):
            mean = maps[:, :, rows, columns].mean((2, 3))
            assert torch.allclose(found[:, :, row, column], mean, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.1, 1.9, 3.3, 6.0, 8.0])
def test_tails_are_interpolated_as_the_page_says(temperature):
    assert "the cubic polynomial in `1/T` through four points" in WORDS
    grid = (1.0, 1.5, 2.0, 4.0, 8.0)
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)) * 3
    codec = create_codec(TopK(12, 4, grid))
    targets = codec.decode(codec.encode(logits))
    nodes = [0.0, *(1 / t for t in reversed(grid))]
    values = np.column_stack([np.full(6, np.log(8)), targets.tails_BG.numpy()[:, ::-1]])
    below = sum(node <= 1 / temperature for node in nodes) - 1
    first = min(max(below - 1, 0), len(nodes) - 4)
    four = slice(first, first + 4)
    cubics = [np.polynomial.Polynomial.fit(nodes[four], row[four], 3) for row in values]
    expected = [cubic(1 / temperature) for cubic in cubics]
    found = targets.bucket_logits(temperature)[:, -1].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_table_of_codecs_is_what_is_on_disk(cache):
    configurations = {
        "little endian": {"endian": "little"},
        "level 1, no checksum": {"level": 1, "checksum": False},
        "": {},
    }
    expected = [(name, configurations[text]) for name, text in table("codec")]
    for name in Layout(read_manifest(cache)).arrays:
        codecs = metadata(cache, name)["codecs"]
        assert [(c["name"], c.get("configuration", {})) for c in codecs] == expected


def test_chunks_of_one_shard_are_never_larger_than_the_data_set(tmp_path):
    synthetic.build(tmp_path, synthetic.asked(shard_samples=4096))
    assert metadata(tmp_path, "logits")["chunk_grid"]["configuration"]["chunk_shape"] == [1, 10, 5]


def test_table_of_files_is_what_is_on_disk(any_cache):
    manifest = read_manifest(any_cache)
    names = "|".join(Layout(manifest).arrays)
    patterns = [key for row in table("key") if "." in row[0] or "/" in row[0]
                 for key in row[0].split(", ")
                if is_there([key.partition("/")[0]], manifest)]  # fmt: skip
    if manifest.encoding != "embedding":
        patterns = [one for one in patterns if not one.startswith("head_")]
    assert "of tokens and maps with a `0` for each dimension" in WORDS
    numbers = {"VIEW": r"\d+", "SHARD": r"\d+(/0/0)?", "ARRAY": f"({names})", "ROWS": f"({names})"}
    for word, pattern in numbers.items():
        patterns = [re.sub(rf"\b{word}\b", lambda _, p=pattern: p, one) for one in patterns]
    files = synthetic.files(any_cache)
    for key in files:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in files), pattern


def manifest_rows():
    start = SPECIFICATION.index("## Manifest")
    found = re.findall(r"^\| `(\w+)` \| (\w+) \|", SPECIFICATION[start:], re.MULTILINE)
    return dict(found)


def test_table_of_the_manifest_is_what_is_on_disk_in_its_order(any_cache):
    types = {
        "integer": int, "string": str, "boolean": bool, "object": dict, "array": list,
    }  # fmt: skip
    stored = stored_manifest(any_cache)
    absent = {"chunk_samples"}
    absent |= {"top_k", "temperatures"} if stored["encoding"] != "topk" else set()
    absent |= {"embedding_size"} if stored["encoding"] != "embedding" else set()
    absent |= (
        {"features"} if "features.pool" not in Layout(read_manifest(any_cache)).arrays else set()
    )
    rows = {key: name for key, name in manifest_rows().items() if key not in absent}
    assert list(rows) == list(stored)
    for key, name in rows.items():
        assert type(stored[key]) is types[name], key
    assert sorted(stored["checksums"]) == sorted(Layout(read_manifest(any_cache)).fixed_keys)


def test_table_of_the_identity_is_the_codes(cache):
    rows = {name: identity for name, identity, _ in table("field | identity")}
    optional = {"views": {}, "teacher": {}}
    for section, _, field in (name.partition(".") for name in rows if rows[name] == "if present"):
        optional[section][field] = 1
    manifest = read_manifest(cache)
    views, teacher = ({**getattr(manifest, one), **optional[one]} for one in optional)
    fuller = dataclasses.replace(manifest, views=views, teacher=teacher)
    for which, words in ((manifest, ("yes",)), (fuller, ("yes", "if present"))):
        identity = which.identity
        named = {f"{section}.{name}" for section in ("dataset", "views", "teacher")
                 for name in identity[section]}  # fmt: skip
        assert {name for name, word in rows.items() if word in words} == named
    assert set(identity) == {"dataset", "views", "teacher", "encoding"}
    of_top_k = set(synthetic.encoded("topk").identity)
    assert of_top_k - set(identity) == {"top_k", "temperatures"}
    assert "so are `encoding` and, with topk, `top_k` and `temperatures`" in WORDS


def test_hashes_are_computed_as_the_page_says(any_cache):
    cache = any_cache
    stored = stored_manifest(cache)
    marked = [name.split(".") for name, identity, _ in table("field | identity")
              if identity == "yes"]  # fmt: skip
    identity = {k: stored[k] for k in ("encoding", "top_k", "temperatures") if k in stored}
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


def test_commit_records_are_as_the_page_says(any_cache):
    assert "4294967296" in SPECIFICATION
    assert int(COMMITTED) == 4294967296
    manifest = read_manifest(any_cache)
    rows = [row[0] for row in array_rows(manifest)]
    rows = rows[: rows.index("labels")]
    commits = zarr.open_group(any_cache, mode="r")["commits"]
    common = binding_of(stored_manifest(any_cache), rows)
    for view, shard in synthetic.all_shards(manifest):
        fields = [int(value) for value in commits[view, shard]]
        keys = Layout(manifest).shard_objects(view, shard)
        assert [key.split("/")[0] for key in keys] == rows
        crcs = [zlib.crc32((any_cache / key).read_bytes()) for key in keys]
        assert [value - 2**32 for value in fields[:-1]] == [*crcs, 250, view, shard]
        hashed = b"".join(value.to_bytes(8, "little") for value in fields[:-1])
        seal = hashlib.sha256(hashlib.sha256(common).digest() + hashed).digest()[:8]
        assert fields[-1] == int.from_bytes(seal, "little") | 2**32
    assert "in the order of the table of arrays, the CRC-32" in WORDS
    assert "then the milliseconds that the shard took to build, its view and its number" in WORDS


def binding_of(stored, arrays_of_a_shard):
    """As the page says: the canonical JSON that the seals of a cache's records have in common."""
    identity = {
        section: {
            name: stored[section][name]
            for row, marked, _ in table("field | identity")
            for place, _, name in [row.partition(".")]
            if place == section and marked != "no" and name in stored[section]
        }
        for section in ("dataset", "views", "teacher")
    }
    identity |= {k: stored[k] for k in ("encoding", "top_k", "temperatures") if k in stored}
    common = {
        "format": "kdscale cache",
        "version": stored["format_version"],
        "identity": identity,
        "arrays": arrays_of_a_shard,
        "features": stored.get("features", []),
        "shard_samples": stored["shard_samples"],
        "chunk_samples": stored.get("chunk_samples"),
    }
    return json.dumps(common, sort_keys=True, separators=(",", ":")).encode()


def test_records_of_earlier_versions_are_as_the_page_says(tmp_path):
    """They hold the checksums and the milliseconds alone."""
    manifest = dataclasses.replace(synthetic.asked(), bound_records=False)
    synthetic.build(tmp_path, manifest)
    stored = zarr.open_group(tmp_path, mode="r")["commits"][1, 2]
    crcs = [
        zlib.crc32((tmp_path / key).read_bytes()) for key in Layout(manifest).shard_objects(1, 2)
    ]
    assert [int(value) - 2**32 for value in stored] == [*crcs, 250]
    assert "Versions 1 and 2 end at the milliseconds" in WORDS


def test_shards_are_named_as_the_page_says():
    assert f"`{shard_name(0, 0)}`" in SPECIFICATION


# ------------------------------------------------------------------ caches of earlier releases


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.zarr")), ids=lambda path: path.stem)
def test_golden_cache_reads_as_on_the_day_it_was_written(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    assert verify(path).ok
    reader = CacheReader(path)
    assert f"cache_v{reader.manifest.format_version}" == path.parent.name
    assert reader.manifest.id == expected["id"]
    assert reader.manifest.num_views == len(expected["views"])
    features = [one["module"] for one in reader.manifest.features]
    for view, values in enumerate(expected["views"]):
        got = reader.read_view(view, features)
        assert {name: rows.tolist() for name, rows in got.items()} == values
        of_floats = {"logits": expected["encoding"], "digests": "uint32"}
        dtypes = {name: rows.dtype.name for name, rows in got.items()}
        assert dtypes == expected.get("dtypes", of_floats)
    assert reader.labels().tolist() == expected["labels"]
    assert {name: one.tolist() for name, one in reader.head().items()} == expected.get("head", {})
    if "keys" in expected:
        assert read_once(reader.store, Layout(reader.manifest), "keys").tolist() == expected["keys"]


def expected_of(path):
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(GOLDEN.glob("*/*.zarr")) if "logits" in expected_of(path)],
    ids=lambda path: path.stem,
)
def test_golden_cache_decodes_to_the_teachers_logits(path):
    """Those whose stored values are the logits themselves need no decoding: see the test above."""
    reader = CacheReader(path)
    expected = expected_of(path)
    codec = stored_codec(reader)
    for view, logits in enumerate(expected["logits"]):
        found, wanted = codec.decode(reader.read_view(view)), torch.tensor(logits)
        if isinstance(found, DenseTargets):
            step = {"int8": 0.05, "int4": 0.5}.get(codec.encoding.name, 0.01)
            assert torch.allclose(found.logits_BC, wanted, atol=step)
        else:
            best = wanted.topk(codec.encoding.top_k)
            assert torch.equal(found.ids_BK.long(), best.indices)
            assert torch.equal(found.logits_BK, best.values.half().float())


def test_there_is_a_golden_cache_of_every_encoding():
    found = {read_manifest(path).encoding for path in GOLDEN.glob("*/*.zarr")}
    assert found == set(ENCODINGS)
    assert any(read_manifest(path).features for path in GOLDEN.glob("*/*.zarr"))
