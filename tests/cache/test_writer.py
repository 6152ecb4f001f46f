import errno
import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.verify import verify
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.errors import CacheCorruptError, CacheIncompleteError, CacheMismatchError, StorageError
from kdscale.targets import Head, create_codec


def begin(path, manifest=None):
    manifest = manifest or synthetic.asked()
    return create_or_resume(path, manifest, synthetic.labels(manifest))


def assert_holds_everything(path, manifest=None):
    reader = CacheReader(path)
    for view in range(reader.manifest.num_views):
        expected = synthetic.expected_view(manifest or synthetic.asked(), view)
        got = reader.read_view(view)
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, strict=True)
    assert verify(path).ok


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("encoding", [one for one in synthetic.ENCODINGS if one != "none"])
@pytest.mark.parametrize("shard_samples", [1, 4, 64])
def test_targets_read_back_value_for_value(tmp_path, encoding, shard_samples):
    manifest = synthetic.encoded(encoding, shard_samples=shard_samples, num_views=1)
    logits = torch.randn(10, 5, generator=torch.Generator().manual_seed(1)) * 20
    logits[3] = 0.0
    inputs = logits[:, :3]
    once = synthetic.once(manifest)
    codec = create_codec(manifest.target_encoding, Head.parse(once) if once else None)
    logits = logits if codec.head is None else codec.head(inputs)
    manifest = create_or_resume(
        tmp_path / "c.zarr", manifest, synthetic.labels(manifest), once=once
    )
    writer = ShardWriter(tmp_path / "c.zarr", manifest)
    for shard in range(manifest.num_shards):
        start, stop = manifest.shard_range(shard)
        values = codec.encode(logits[start:stop], inputs[start:stop])
        values["digests"] = np.arange(start, stop).astype(np.uint64) + 1
        writer.write(0, shard, values, 0.0)
    finish(tmp_path / "c.zarr", manifest, {})
    got = CacheReader(tmp_path / "c.zarr").read_view(0)
    found, kept = codec.decode(got), codec.decode(codec.encode(logits, inputs))
    assert type(found) is type(kept)
    for values in fields(kept):
        one, other = getattr(found, values.name), getattr(kept, values.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert got["digests"].tolist() == list(range(10))


def test_values_at_the_edges_of_their_types_read_back(tmp_path):
    manifest = begin(tmp_path, synthetic.asked(num_views=1, shard_samples=10))
    values = {
        "logits": np.full((10, 5), np.finfo(np.float16).max, np.float16),
        "digests": np.full(10, 2**32, np.uint64),
    }
    values["logits"][0] = -0.0
    ShardWriter(tmp_path, manifest).write(0, 0, values, 0.0)
    finish(tmp_path, manifest, {})
    got = CacheReader(tmp_path).read_view(0)
    assert got["logits"].tobytes() == values["logits"].tobytes()
    assert (got["digests"] == 2**32 - 1).all()


def test_order_of_shards_is_irrelevant(tmp_path, cache):
    manifest = begin(tmp_path / "other.zarr")
    order = np.random.default_rng(0).permutation(synthetic.all_shards(manifest)).tolist()
    synthetic.write_shards(tmp_path / "other.zarr", manifest, order)
    finish(tmp_path / "other.zarr", manifest, {"num_processes": 1})
    assert synthetic.files(tmp_path / "other.zarr") == synthetic.files(cache)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_write_what_one_writes(tmp_path, cache, num_processes):
    path = tmp_path / "shared.zarr"
    manifest = begin(path)
    code = (
        "import sys, pathlib, synthetic\n"
        "from kdscale.cache.manifest import read_manifest\n"
        "path, first, step = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "manifest = read_manifest(path)\n"
        "shards = synthetic.all_shards(manifest)[first::step]\n"
        "synthetic.write_shards(path, manifest, shards)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, str(first), str(num_processes)], env=environment
        )
        for first in range(num_processes)
    ]
    assert [process.wait(120) for process in processes] == [0] * num_processes
    finish(path, manifest, {"num_processes": 1})
    assert synthetic.files(path) == synthetic.files(cache)


def test_build_time_is_the_sum_over_shards(cache):
    build = read_manifest(cache).build
    assert (build["num_processes"], build["seconds"]) == (1, 1.5)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("logits", np.zeros((4, 5), np.float32), "logits are float32"),
        ("logits", np.zeros((1, 5), np.float16), r"wanted float16 \(4, 5\)"),
        ("logits", np.full((4, 5), np.nan, np.float16), "NaN"),
        ("digests", np.zeros(4, np.uint64), "digests hold a NaN or what stands for absence"),
        ("digests", np.ones(4, np.int64), "wanted uint64"),
    ],
)
def test_rows_that_are_not_the_shards_are_refused(tmp_path, name, values, said):
    manifest = begin(tmp_path)
    writer = ShardWriter(tmp_path, manifest)
    with pytest.raises(ValueError, match=said):
        writer.write(0, 0, {**synthetic.rows(manifest, 0, 0), name: values}, 0.0)
    assert not writer.committed().any()


@pytest.mark.parametrize(
    ("encoding", "name", "values"),
    [
        ("int8", "codes", np.full((4, 5), 255, np.uint8)),
        ("int4", "codes", np.full((4, 3), 255, np.uint8)),
        ("int8", "scale", np.full(4, np.nan, np.float32)),
        ("int8", "offset", np.full(4, np.nan, np.float32)),
        ("topk", "ids", np.full((4, 2), 255, np.uint8)),
        ("topk", "tails", np.full((4, 3), np.nan, np.float32)),
    ],
)
def test_what_stands_for_absence_is_refused(tmp_path, encoding, name, values):
    manifest = begin(tmp_path, synthetic.encoded(encoding))
    writer = ShardWriter(tmp_path, manifest)
    with pytest.raises(ValueError, match=f"{name} hold a NaN or what stands for absence"):
        writer.write(0, 0, {**synthetic.rows(manifest, 0, 0), name: values}, 0.0)
    assert not writer.committed().any()


@pytest.mark.parametrize("labels", [np.zeros(10, np.int32), np.zeros(9, np.int64), np.int64(3)])
def test_labels_of_another_shape_or_type_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"wanted int64 \(10,\)"):
        create_or_resume(tmp_path / "c.zarr", synthetic.asked(), labels)


# ------------------------------------------------------------------ resuming


def test_resume_skips_what_is_committed(tmp_path):
    manifest = begin(tmp_path)
    synthetic.write_shards(tmp_path, manifest, [(0, 1), (1, 2)])
    before = synthetic.files(tmp_path)
    manifest = begin(tmp_path)
    committed = ShardWriter(tmp_path, manifest).committed()
    assert np.argwhere(committed).tolist() == [[0, 1], [1, 2]]
    assert synthetic.files(tmp_path) == before
    synthetic.build(tmp_path)
    assert_holds_everything(tmp_path)


def test_object_without_a_record_is_written_again(tmp_path):
    manifest = begin(tmp_path)
    synthetic.write_shards(tmp_path, manifest, [(0, 0)])
    (tmp_path / "commits/c/0/0/0").unlink()
    (tmp_path / "logits/c/0/0/0").write_bytes(b"torn")
    assert not ShardWriter(tmp_path, manifest).committed().any()
    synthetic.build(tmp_path)
    assert_holds_everything(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 40])
def test_shard_with_a_damaged_record_is_written_again(tmp_path, damage):
    manifest = begin(tmp_path)
    synthetic.write_shards(tmp_path, manifest, [(0, 0), (0, 1)])
    (tmp_path / "commits/c/0/0/0").write_bytes(damage)
    assert ShardWriter(tmp_path, manifest).committed()[0].tolist() == [False, True, False]
    assert ShardWriter(tmp_path, manifest).records.read(0, 1).milliseconds == 250
    assert verify(tmp_path).corrupt_shards == ("view-00000/shard-00000",)
    synthetic.build(tmp_path)
    assert_holds_everything(tmp_path)


def test_finish_refuses_while_shards_are_missing(tmp_path):
    manifest = begin(tmp_path)
    synthetic.write_shards(tmp_path, manifest, synthetic.all_shards(manifest)[1:])
    with pytest.raises(CacheIncompleteError, match="still misses 1 of 6 shards"):
        finish(tmp_path, manifest, {})
    assert not read_manifest(tmp_path).complete


def test_finished_cache_is_left_alone(cache):
    before = synthetic.files(cache)
    assert begin(cache).complete
    assert begin(cache, synthetic.asked(num_views=1)).num_views == 2
    assert synthetic.files(cache) == before


def test_begun_cache_retains_its_views_and_shards_when_others_are_requested(tmp_path):
    begin(tmp_path, synthetic.asked(num_views=3))
    taken_up = begin(tmp_path, synthetic.asked(num_views=1, shard_samples=2))
    assert (taken_up.num_views, taken_up.shard_samples) == (3, 4)


def test_manifest_that_asks_says_complete_and_the_cache_does_not(tmp_path):
    assert not begin(tmp_path / "a.zarr", synthetic.asked(complete=True)).complete


# ------------------------------------------------------------------ more views


def with_count(num_views, **changes):
    views = {**synthetic.asked().views, "count": num_views}
    return synthetic.asked(num_views=num_views, views=views, **changes)


def test_grown_cache_equals_one_built_at_once(tmp_path):
    for num_views in (1, 2, 4):
        synthetic.build(tmp_path / "grown.zarr", with_count(num_views))
    synthetic.build(tmp_path / "whole.zarr", with_count(4))
    assert synthetic.files(tmp_path / "grown.zarr") == synthetic.files(tmp_path / "whole.zarr")
    assert read_manifest(tmp_path / "grown.zarr").views["count"] == 4
    assert_holds_everything(tmp_path / "grown.zarr")


def test_growing_keeps_id_shard_size_and_stored_shards(cache):
    before = synthetic.files(cache)
    grown = synthetic.build(cache, synthetic.asked(num_views=3, shard_samples=10))
    assert (grown.id, grown.shard_samples) == (synthetic.asked().id, 4)
    after = synthetic.files(cache)
    assert {key: after[key] for key in before if "/c/" in key} == {
        key: data for key, data in before.items() if "/c/" in key
    }


def test_growing_records_what_built_last(cache):
    grown = begin(cache, synthetic.asked(num_views=3, versions={"zarr": "9"}, fidelity={"k": 1.0}))
    assert (grown.versions, grown.fidelity) == ({"zarr": "9"}, {"k": 1.0})


def test_reader_reports_that_a_growing_cache_is_incomplete(cache):
    opened_before = CacheReader(cache)
    begin(cache, synthetic.asked(num_views=3))
    with pytest.raises(CacheIncompleteError, match="wait for its build"):
        CacheReader(cache)
    for view in range(2):  # one that had opened it goes on
        expected = synthetic.expected_view(synthetic.asked(), view)
        np.testing.assert_array_equal(opened_before.read_view(view)["logits"], expected["logits"])


def test_reader_between_any_two_writes_of_growing_reports_it(cache, monkeypatch):
    states = []

    def write_and_look(self, key, data, check=None):
        write(self, key, data)
        with pytest.raises(CacheIncompleteError):
            CacheReader(cache)
        verdict = verify(cache)
        states.append((verdict.complete, verdict.corrupt_shards))

    write = LocalFolder.write
    monkeypatch.setattr(LocalFolder, "write", write_and_look)
    begin(cache, synthetic.asked(num_views=3))
    assert states == [(False, ())] * 4  # manifest, logits, digests, commits; labels stay


def test_reader_that_opens_just_when_growing_begins_reports_it(cache, monkeypatch):
    before = read_manifest(cache)
    begin(cache, synthetic.asked(num_views=3))
    stale = iter([before])  # read just before, the metadata just after
    monkeypatch.setattr(
        "kdscale.cache.reader.read_manifest", lambda path: next(stale, None) or read_manifest(path)
    )
    with pytest.raises(CacheIncompleteError):
        CacheReader(cache)


# ------------------------------------------------------------------ what else may lie there


def test_cache_of_another_identity_is_not_touched(cache):
    before = synthetic.files(cache)
    with pytest.raises(CacheMismatchError, match="encoding"):
        begin(cache, synthetic.asked(encoding="float32"))
    assert synthetic.files(cache) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "labels/0.png", "logits/zarr.json", ".git", "work.tmp"]
)
def test_folder_of_something_else_is_not_touched(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=r"is not a cache .*: name another --cache"):
        begin(tmp_path)
    assert list(synthetic.files(tmp_path)) == [name] or name.endswith(".tmp")


def test_shards_whose_manifest_is_gone_are_not_taken_for_another_teachers(cache):
    (cache / "zarr.json").unlink()
    teacher = {**synthetic.asked().teacher, "weights_sha256": "b" * 64}
    with pytest.raises(StorageError, match="is not a cache"):
        begin(cache, synthetic.asked(teacher=teacher))


def test_file_in_the_place_of_a_cache_is_not_touched(tmp_path):
    (tmp_path / "c.zarr").write_text("mine")
    with pytest.raises(StorageError, match="is not a cache"):
        begin(tmp_path / "c.zarr")


def test_zarr_group_of_something_else_is_not_touched(tmp_path):
    text = '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CacheCorruptError, match="not written by kdscale"):
        begin(tmp_path)
    assert (tmp_path / "zarr.json").read_text() == text


def test_start_that_was_killed_before_its_manifest_is_taken_up(tmp_path):
    (tmp_path / ".zarr.json.0123456789abcdef.tmp").write_bytes(b"{")
    synthetic.build(tmp_path)
    assert_holds_everything(tmp_path)


def test_metadata_that_a_killed_start_left_out_is_written(tmp_path):
    begin(tmp_path)
    for key in ("labels/c/0", "commits/zarr.json", "logits/zarr.json"):
        (tmp_path / key).unlink()
        assert verify(tmp_path).corrupt_shards == ()
        assert key in verify(tmp_path).missing_shards
    synthetic.build(tmp_path)
    assert_holds_everything(tmp_path)


def test_finish_removes_abandoned_temporary_files_and_leaves_those_of_writers(tmp_path):
    manifest = begin(tmp_path)
    synthetic.write_shards(tmp_path, manifest, synthetic.all_shards(manifest))
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    here, dead, alive = socket.gethostname(), int(done.stdout), os.getpid()
    names = {
        "old": "elsewhere.1.0123abcd",
        "dead": f"{here}.{dead}.0123abcd",
        "alive": f"{here}.{alive}.0123abcd",
        "elsewhere": f"elsewhere.{dead}.0123abcd",
    }
    files = {what: tmp_path / f"logits/c/0/.0.{name}.tmp" for what, name in names.items()}
    for file in files.values():
        file.write_bytes(b"torn")
    os.utime(files["old"], (0, 0))
    finish(tmp_path, manifest, {})
    assert [what for what, file in files.items() if file.exists()] == ["alive", "elsewhere"]
    assert_holds_everything(tmp_path)


# ------------------------------------------------------------------ disks


def test_full_disk_at_every_flush_is_a_storage_error_and_loses_nothing(tmp_path, monkeypatch):
    asked = synthetic.asked(num_views=1, shard_samples=10)
    fsync, flushed = os.fsync, 0

    def full(descriptor):
        nonlocal flushed
        flushed += 1
        if flushed == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "c.zarr"
    for fails_at in range(1, 1000):
        flushed = 0
        try:
            synthetic.build(path, asked)
        except StorageError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
            assert "free space" in str(error)  # noqa: PT017
            assert not list(path.rglob("*.tmp"))
        if flushed < fails_at:
            break
    assert fails_at > 8
    assert_holds_everything(path, asked)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_disk_that_refuses_writes_is_a_storage_error(tmp_path, monkeypatch, number):
    manifest = begin(tmp_path)
    open_file = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if "w" in mode:
            raise OSError(number, os.strerror(number), str(self))
        return open_file(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=os.strerror(number)):
        synthetic.write_shards(tmp_path, manifest, [(0, 0)])
    with pytest.raises(StorageError, match=os.strerror(number)):
        write_manifest(tmp_path, replace(manifest, complete=True))
    assert not read_manifest(tmp_path).complete
