import json
import os

import pytest
import synthetic

from kdscale.cache.layout import Layout
from kdscale.cache.manifest import FORMAT_VERSION, Manifest, read_manifest, write_manifest
from kdscale.cache.verify import verify
from kdscale.cache.writer import create_or_resume
from kdscale.errors import CacheError, CacheNotFoundError

FIXED = [
    "commits/zarr.json",
    "digests/zarr.json",
    "labels/c/0",
    "labels/zarr.json",
    "logits/zarr.json",
    "zarr.json",
]


OTHERS = {"keys": synthetic.keyed(), "features": synthetic.asked(features=synthetic.FEATURES)}


@pytest.fixture(params=[*OTHERS, *(name for name in synthetic.ENCODINGS if name != "float16")])
def other_cache(request, tmp_path):
    """Like `cache`, with keys of images, with features, and of each other encoding."""
    manifest = OTHERS.get(request.param) or synthetic.encoded(request.param)
    synthetic.build(tmp_path / "other.zarr", manifest)
    return tmp_path / "other.zarr"


def name_of(key):
    """What `verify` calls the object: its key, or the shard it belongs to."""
    if key.endswith("zarr.json") or key.startswith(("labels", "keys", "head_")):
        return key
    view, shard = key.split("/")[2:4]
    return f"view-{int(view):05d}/shard-{int(shard):05d}"


def changed(verdict):
    """Missing and corrupt names; a verdict that has any is not ok."""
    assert verdict.ok == (verdict.complete and not verdict.missing_shards + verdict.corrupt_shards)
    return verdict.missing_shards, verdict.corrupt_shards


def test_sound_cache_is_ok(cache):
    verdict = verify(cache)
    assert verdict.to_json() == {
        "ok": True,
        "complete": True,
        "num_shards": 6,
        "missing_shards": [],
        "corrupt_shards": [],
        "reasons": {},
        "unverifiable": None,
        "unknown": [],
    }
    assert "ok, 6 shards" in verdict.describe(cache)


def test_the_cache_has_the_files_that_these_tests_damage(cache):
    keys = set(synthetic.files(cache))
    assert keys.issuperset(FIXED)
    assert len(keys) == len(FIXED) + 3 * 6


def test_one_flipped_byte_in_any_file_is_found_and_named(cache):
    assert_flips_are_found(cache)


def test_one_flipped_byte_is_found_whatever_the_encoding(other_cache):
    """Checksums know nothing of encodings; all bytes of a shard are flipped below."""
    assert_flips_are_found(other_cache, patterns=(0x01,))


def assert_flips_are_found(cache, patterns=(0x01, 0x80)):
    for key, intact in synthetic.files(cache).items():
        last = len(intact) - 1
        for position in sorted({0, 1, last // 3, last // 2, last - 4, last - 1, last}):
            for pattern in patterns:
                flipped = bytearray(intact)
                flipped[position] ^= pattern
                (cache / key).write_bytes(flipped)
                found = changed(verify(cache))
                assert found == ((), (name_of(key),)), f"{key}, byte {position}"
        (cache / key).write_bytes(intact)
    assert verify(cache).ok


def test_every_flipped_byte_of_one_shard_is_found(cache):
    for key in ("logits/c/0/2/0", "digests/c/0/2", "commits/c/0/2/0"):
        intact = (cache / key).read_bytes()
        for position in range(len(intact)):
            flipped = bytearray(intact)
            flipped[position] ^= 0xFF
            (cache / key).write_bytes(flipped)
            assert changed(verify(cache)) == ((), ("view-00000/shard-00002",))
        (cache / key).write_bytes(intact)
    assert verify(cache).ok


def test_every_flipped_byte_of_one_shard_is_found_whatever_the_encoding(other_cache):
    manifest = read_manifest(other_cache)
    for key in Layout(manifest).shard_objects(0, 2):
        intact = (other_cache / key).read_bytes()
        for position in range(len(intact)):
            flipped = bytearray(intact)
            flipped[position] ^= 0xFF
            (other_cache / key).write_bytes(flipped)
            assert changed(verify(other_cache)) == ((), ("view-00000/shard-00002",))
        (other_cache / key).write_bytes(intact)
    assert verify(other_cache).ok


def test_any_truncated_or_lengthened_file_is_found_and_named(cache):
    for key, intact in synthetic.files(cache).items():
        for other in (b"", intact[:1], intact[: len(intact) // 2], intact[:-1], intact + b"\0"):
            (cache / key).write_bytes(other)
            assert changed(verify(cache)) == ((), (name_of(key),)), f"{key}, {len(other)} bytes"
        (cache / key).write_bytes(intact)


def test_any_deleted_file_is_found_and_named(cache):
    for key, intact in synthetic.files(cache).items():
        (cache / key).unlink()
        if key == "zarr.json":
            with pytest.raises(CacheNotFoundError):
                verify(cache)
        else:
            assert changed(verify(cache)) == ((name_of(key),), ())
        (cache / key).write_bytes(intact)


@pytest.mark.parametrize("array", ["logits", "digests", "commits"])
def test_chunks_swapped_between_shards_are_found(cache, array):
    rest = "" if array == "digests" else "/0"
    one, other = cache / f"{array}/c/0/0{rest}", cache / f"{array}/c/1/1{rest}"
    swapped = one.read_bytes(), other.read_bytes()
    one.write_bytes(swapped[1])
    other.write_bytes(swapped[0])
    assert changed(verify(cache)) == ((), ("view-00000/shard-00000", "view-00001/shard-00001"))


def test_record_without_its_objects_and_objects_without_a_record_are_missing(cache):
    (cache / "logits/c/0/0/0").unlink()
    (cache / "digests/c/0/1").unlink()
    (cache / "commits/c/1/0/0").unlink()
    assert changed(verify(cache)) == (
        ("view-00000/shard-00000", "view-00000/shard-00001", "view-00001/shard-00000"),
        (),
    )


def test_several_faults_are_all_named(cache):
    (cache / "logits/c/0/0/0").write_bytes(b"x")
    (cache / "labels/c/0").write_bytes(b"x")
    (cache / "digests/c/1/2").unlink()
    verdict = verify(cache)
    assert changed(verdict) == (
        ("view-00001/shard-00002",),
        ("labels/c/0", "view-00000/shard-00000"),
    )
    text = verdict.describe(cache)
    assert "NOT ok" in text
    assert "missing: view-00001/shard-00002" in text
    assert "corrupt: labels/c/0" in text
    assert json.loads(json.dumps(verdict.to_json()))["ok"] is False


def test_shard_that_is_a_folder_is_corrupt(cache):
    (cache / "logits/c/0/0/0").unlink()
    (cache / "logits/c/0/0/0").mkdir()
    assert changed(verify(cache)) == ((), ("view-00000/shard-00000",))


def test_stale_temporary_files_are_harmless(cache):
    for place in ("", "logits/", "logits/c/0/0/", "commits/c/1/2/", "labels/c/"):
        (cache / f"{place}.0.0123456789abcdef.tmp").write_bytes(b"torn")
    assert verify(cache).ok


def test_what_is_not_of_the_cache_is_named_and_not_read(cache):
    os.mkfifo(cache / "logits" / "pipe")
    (cache / "logits/c/0/link").symlink_to("/dev/zero")
    (cache / "notes.txt").write_text("mine")
    (cache / "claims").mkdir()
    (cache / "claims" / "stray").write_text("")
    verdict = verify(cache)
    assert verdict.ok
    assert verdict.unknown == ("claims/stray", "logits/c/0/link", "logits/pipe", "notes.txt")
    assert "not read: claims/stray, logits/c/0/link, logits/pipe" in verdict.describe(cache)
    for number in range(20):
        (cache / f"n{number}").write_text("")
    assert "14 more" in verify(cache).describe(cache)


def test_unfinished_cache_lists_what_is_missing(tmp_path):
    manifest = synthetic.asked()
    manifest = create_or_resume(tmp_path, manifest, synthetic.labels(manifest))
    synthetic.write_shards(tmp_path, manifest, synthetic.all_shards(manifest)[:5])
    verdict = verify(tmp_path)
    assert changed(verdict) == (("view-00001/shard-00002",), ())
    assert not verdict.complete
    assert "not complete: run the same" in verdict.describe(tmp_path)


def test_cache_that_grows_meanwhile_is_judged_as_it_is_then(cache, monkeypatch):
    before = read_manifest(cache)
    create_or_resume(cache, synthetic.asked(num_views=3), synthetic.labels(synthetic.asked()))
    stale = iter([before])
    monkeypatch.setattr(
        "kdscale.cache.verify.read_manifest", lambda path: next(stale, None) or read_manifest(path)
    )
    verdict = verify(cache)
    assert (verdict.complete, verdict.corrupt_shards, len(verdict.missing_shards)) == (False, (), 3)


def test_no_cache_and_what_is_no_cache_are_distinguished(tmp_path):
    with pytest.raises(CacheNotFoundError):
        verify(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    assert verify(tmp_path).corrupt_shards == ("zarr.json",)


def test_newer_format_is_not_called_corrupt(cache, monkeypatch):
    monkeypatch.setattr(Manifest, "format_version", FORMAT_VERSION + 1)
    write_manifest(cache, synthetic.asked())
    monkeypatch.undo()
    with pytest.raises(CacheError, match=f"format version {FORMAT_VERSION + 1}"):
        verify(cache)
