"""Objects and records of another cache, view or shard are refused by name by all that read."""

import random
import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import synthetic

from kdscale.cache.layout import Layout, record_object, shard_name
from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.cache.reader import CacheReader, check_present
from kdscale.cache.repair import discard_bad_shards
from kdscale.cache.transfer import transfer
from kdscale.cache.verify import verify
from kdscale.cache.wait import Patience
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.errors import CacheCorruptError, CacheError, KdscaleError

LARGE = {"shard_samples": 8, "chunk_samples": 4}


def another(manifest):
    """The same shape, of another teacher."""
    return replace(manifest, teacher={**manifest.teacher, "weights_sha256": "b" * 64})


def build_another(path, manifest):
    """A cache of another teacher, whose answers differ from those of `synthetic.rows`."""
    begun = create_or_resume(path, another(manifest), synthetic.labels(manifest))
    writer = ShardWriter(path, begun)
    for view, shard in synthetic.all_shards(manifest):
        rows = synthetic.rows(manifest, view, shard)
        writer.write(view, shard, {**rows, "logits": rows["logits"] + np.float16(1)}, 0.25)
    return finish(path, begun, {"num_processes": 1})


@pytest.fixture(params=[{}, LARGE], ids=["plain", "large objects"])
def pair(request, tmp_path):
    """Two caches of one shape."""
    manifest = synthetic.asked(**request.param)
    synthetic.build(tmp_path / "a.zarr", manifest)
    build_another(tmp_path / "b.zarr", manifest)
    return tmp_path / "a.zarr", tmp_path / "b.zarr"


def keys_of(cache, view, shard):
    return [*Layout(read_manifest(cache)).shard_objects(view, shard), record_object(view, shard)]


def put(cache, keys, source, source_keys):
    for key, origin in zip(keys, source_keys, strict=True):
        (cache / key).write_bytes(source[origin])


def assert_refused(cache, names, reason):
    """By verify, and by each way of reading: names exactly these shards and says why."""
    verdict = verify(cache)
    assert not verdict.ok
    assert set(verdict.corrupt_shards) == set(names)
    assert verdict.missing_shards == ()
    for name in names:
        assert reason in verdict.reasons[name]
        assert f"corrupt: {name} ({verdict.reasons[name]})" in verdict.describe(cache)
    reader = CacheReader(cache)
    for name in names:
        view, shard = (int(part.rpartition("-")[2]) for part in name.split("/"))
        for read in (
            lambda v=view: reader.read_view(v),
            lambda v=view, s=shard: reader.read_shard(v, s),
        ):
            with pytest.raises(CacheCorruptError, match=name):
                read()


# ------------------------------------------------------------------ single and pairwise swaps


def test_every_shard_of_another_cache_is_refused_though_its_record_came_along(pair):
    ours, theirs = pair
    intact, foreign = synthetic.files(ours), synthetic.files(theirs)
    for view, shard in synthetic.all_shards(read_manifest(ours)):
        keys = keys_of(ours, view, shard)
        put(ours, keys, foreign, keys)
        assert_refused(ours, [shard_name(view, shard)], "belongs to another cache")
        for check in (
            lambda: CacheReader(ours).check_records(2),
            lambda: check_present(ours, read_manifest(ours)),
            lambda: transfer(ours, ours.with_name("copy.zarr")),
        ):
            with pytest.raises(CacheCorruptError, match=shard_name(view, shard)):
                check()
        put(ours, keys, intact, keys)
        shutil.rmtree(ours.with_name("copy.zarr"), ignore_errors=True)
    assert verify(ours).ok


def test_every_single_object_and_record_of_another_cache_is_refused(pair):
    ours, theirs = pair
    intact, foreign = synthetic.files(ours), synthetic.files(theirs)
    for view, shard in synthetic.all_shards(read_manifest(ours)):
        for key in keys_of(ours, view, shard):
            if intact[key] == foreign[key]:  # digests: both teachers saw the same pixels
                continue
            put(ours, [key], foreign, [key])
            reason = "another cache" if key.startswith("commits") else f"{key} is not the object"
            assert_refused(ours, [shard_name(view, shard)], reason)
            put(ours, [key], intact, [key])


def test_every_pair_of_shards_swapped_within_a_cache_is_refused(pair):
    """Between views and between shards of a view, each with its record or without."""
    ours, _ = pair
    intact = synthetic.files(ours)
    for one, other in combinations(synthetic.all_shards(read_manifest(ours)), 2):
        keys, others = keys_of(ours, *one), keys_of(ours, *other)
        put(ours, [*keys, *others], intact, [*others, *keys])
        verdict = verify(ours)
        assert verdict.reasons == {
            shard_name(*one): f"its commit record is that of {shard_name(*other)}",
            shard_name(*other): f"its commit record is that of {shard_name(*one)}",
        }
        assert_refused(ours, [shard_name(*one), shard_name(*other)], "its commit record is that of")
        put(ours, [*keys, *others], intact, [*keys, *others])
        put(ours, keys[-1:] + others[-1:], intact, others[-1:] + keys[-1:])
        assert_refused(ours, [shard_name(*one), shard_name(*other)], "its commit record is that of")
        put(ours, [*keys, *others], intact, [*keys, *others])
        put(ours, keys[:-1] + others[:-1], intact, others[:-1] + keys[:-1])
        assert_refused(ours, [shard_name(*one), shard_name(*other)], "is not the object")
        put(ours, [*keys, *others], intact, [*keys, *others])


def test_every_pair_of_shards_swapped_between_caches_is_refused(pair):
    """Each into the other cache, at its own place or at the other's."""
    ours, theirs = pair
    intact, foreign = synthetic.files(ours), synthetic.files(theirs)
    shards = synthetic.all_shards(read_manifest(ours))
    for one in shards:
        for other in shards:
            keys, others = keys_of(ours, *one), keys_of(ours, *other)
            put(ours, keys, foreign, others)
            put(theirs, others, intact, keys)
            assert_refused(ours, [shard_name(*one)], "belongs to another cache")
            assert_refused(theirs, [shard_name(*other)], "belongs to another cache")
            put(ours, keys, intact, keys)
            put(theirs, others, foreign, others)


def test_shards_of_one_cache_below_the_manifest_of_another_are_refused(pair):
    ours, theirs = pair
    shutil.copyfile(theirs / "zarr.json", ours / "zarr.json")
    names = [shard_name(*one) for one in synthetic.all_shards(read_manifest(ours))]
    assert_refused(ours, names, "belongs to another cache")


def test_shard_of_another_layout_of_the_same_cache_is_refused(tmp_path):
    """The first object of either holds samples from 0 on."""
    ours, theirs = tmp_path / "a.zarr", tmp_path / "b.zarr"
    synthetic.build(ours)
    synthetic.build(theirs, synthetic.asked(shard_samples=5))
    keys = keys_of(ours, 0, 0)
    put(ours, keys, synthetic.files(theirs), keys)
    assert_refused(ours, [shard_name(0, 0)], "another layout of this one")


def test_records_edited_with_zarr_are_refused(pair):
    """Checksums of a foreign shard in a record of ours: the seal covers them too."""
    import zarr

    ours, theirs = pair
    commits = zarr.open_group(ours, mode="r+")["commits"]
    record = zarr.open_group(theirs, mode="r")["commits"][0, 0]
    for fields in (slice(0, 1), slice(0, 3), slice(0, None)):
        before = commits[0, 0]
        commits[0, 0, fields] = record[fields]
        assert_refused(ours, [shard_name(0, 0)], "belongs to another cache")
        commits[0, 0] = before
    assert verify(ours).ok


# ------------------------------------------------------------------ copies under way


@pytest.mark.parametrize("order", ["sorted", "reversed", *range(4)])
def test_a_cache_that_another_is_copied_over_is_refused_at_every_moment(pair, order):
    ours, theirs = pair
    before, after = synthetic.files(ours), synthetic.files(theirs)
    assert before.keys() == after.keys()
    keys = sorted(after, reverse=order == "reversed")
    if isinstance(order, int):
        random.Random(order).shuffle(keys)
    now = dict(before)
    for key in keys:
        (ours / key).write_bytes(after[key])
        now[key] = after[key]
        whole = now in (before, after)
        assert verify(ours).ok == whole, key
        if not whole:
            with pytest.raises(CacheError):
                [CacheReader(ours).read_view(view) for view in range(2)]
    assert verify(ours).ok


# ------------------------------------------------------------------ builders and repair


def test_builder_writes_a_foreign_shard_anew_and_says_so(pair):
    ours, theirs = pair
    manifest = read_manifest(ours)
    write_manifest(ours, replace(manifest, complete=False, build={}))
    keys = keys_of(ours, 1, 0)
    put(ours, keys, synthetic.files(theirs), keys)
    writer = ShardWriter(ours, read_manifest(ours))
    assert np.argwhere(~writer.committed()).tolist() == [[1, 0]]
    assert "another cache" in writer.refused[shard_name(1, 0)]
    assert not writer.records.is_committed(1, 0)
    synthetic.build(ours, manifest)
    assert verify(ours).ok


def test_extending_keeps_the_binding_and_rebuilds_a_foreign_shard_alone(pair):
    ours, theirs = pair
    keys = keys_of(ours, 0, 1)
    put(ours, keys, synthetic.files(theirs), keys)
    kept = {key: data for key, data in synthetic.files(ours).items() if "/c/" in key}
    manifest = read_manifest(ours)
    synthetic.build(
        ours, replace(synthetic.asked(num_views=4), shard_samples=manifest.shard_samples)
    )
    assert verify(ours).ok
    assert read_manifest(ours).num_views == 4
    changed = {key for key, data in kept.items() if (ours / key).read_bytes() != data}
    assert changed <= set(keys)


def test_a_reader_beside_a_build_refuses_a_foreign_shard(pair):
    ours, theirs = pair
    write_manifest(ours, replace(read_manifest(ours), complete=False, build={}))
    keys = keys_of(ours, 1, 0)
    put(ours, keys, synthetic.files(theirs), keys)
    reader = CacheReader(ours, Patience())
    reader.read_view(0)
    with pytest.raises(CacheCorruptError, match=r"view-00001/shard-00000 .*another cache"):
        reader.read_view(1)


def test_repair_takes_out_the_foreign_shard_alone(pair):
    ours, theirs = pair
    intact = synthetic.files(ours)
    keys = keys_of(ours, 1, 1)
    put(ours, keys, synthetic.files(theirs), keys)
    manifest = read_manifest(ours)
    assert discard_bad_shards(ours, synthetic.labels(manifest)).corrupt_shards == (
        shard_name(1, 1),
    )
    assert verify(ours).missing_shards == (shard_name(1, 1),)
    synthetic.build(ours, manifest)
    assert verify(ours).ok
    assert {k: v for k, v in synthetic.files(ours).items() if k != "zarr.json"} == {
        k: v for k, v in intact.items() if k != "zarr.json"
    }


# ------------------------------------------------------------------ earlier versions


EARLIER = {"version 1": {}, "version 2": {"encoding": "int8", "bytes_per_target": 13}}


@pytest.mark.parametrize("version", EARLIER)
def test_cache_of_an_earlier_version_says_what_cannot_be_checked(tmp_path, version):
    synthetic.build(tmp_path, synthetic.asked(bound_records=False, **EARLIER[version]))
    verdict = verify(tmp_path)
    assert verdict.ok
    assert verdict.unverifiable.startswith(f"format {version}: shards are not bound to their cache")
    lines = verdict.describe(tmp_path).splitlines()
    assert len(lines) == 2
    assert lines[1] == f"  not checked: {verdict.unverifiable}"


@pytest.mark.parametrize("version", EARLIER)
def test_cache_of_an_earlier_version_stays_one(tmp_path, version):
    """When extended, repaired or copied: nothing can vouch for its shards afterwards."""
    path = tmp_path / "old.zarr"
    old = synthetic.build(path, synthetic.asked(bound_records=False, **EARLIER[version]))
    extended = synthetic.build(path, synthetic.asked(num_views=3, **EARLIER[version]))
    assert extended.format_version == old.format_version == int(version[-1])
    (path / "digests/c/2/1").unlink()
    discard_bad_shards(path, synthetic.labels(old))
    assert synthetic.build(path, extended).format_version == old.format_version
    transfer(path, tmp_path / "copy.zarr")
    assert read_manifest(tmp_path / "copy.zarr").format_version == old.format_version
    for cache in (path, tmp_path / "copy.zarr"):
        assert verify(cache).ok
        for view in range(3):
            wanted = synthetic.expected_view(extended, view)
            for name, values in CacheReader(cache).read_view(view).items():
                np.testing.assert_array_equal(values, wanted[name])


def test_a_manifest_of_an_earlier_version_cannot_disown_the_binding(cache):
    """Records of version 3 below a manifest that says 1, signed anew, are refused."""
    write_manifest(cache, replace(read_manifest(cache), bound_records=False))
    assert not verify(cache).ok
    with pytest.raises(KdscaleError, match=r"commits/zarr\.json"):
        CacheReader(cache)
