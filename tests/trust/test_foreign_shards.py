"""A shard belongs to its cache, its view and its place: any other one is refused by name.

Two caches of one shape, of two teachers: their digests and metadata are the same, and every object
has a sound commit record of its own. Only what the record binds tells them apart.
"""

import json
import shutil
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import sandbox
import torch

from kdscale.cache.layout import Layout, record_object, shard_name
from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.errors import CacheCorruptError, OutOfRangeError
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.memory_plan import EVERYTHING

SHARDS = list(product(range(2), range(3)))  # (view, shard)


@pytest.fixture(scope="module")
def caches(material, tmp_path_factory):
    """`ours.zarr` and `theirs.zarr`, of a teacher with other weights; and what trains from ours."""
    folder = Path(shutil.copytree(material, tmp_path_factory.mktemp("two") / "caches"))
    (folder / "root/tiny.zarr").rename(folder / "ours.zarr")
    for args in (
        ("train", "r.toml", "--model", "teacher", "--seed", "1", "--run", "other"),
        ("cache", "build", "r.toml", "--cache", "theirs.zarr",
         "--set", "teacher.weights=other/weights.safetensors"),
    ):  # fmt: skip
        done = sandbox.run_command(*args, cwd=folder)
        assert (done.exit_code, done.fault) == (0, None), done.stderr
    assert verify(folder / "ours.zarr").ok
    assert verify(folder / "theirs.zarr").ok
    assert not torch.equal(*(_logits(folder / name) for name in ("ours.zarr", "theirs.zarr")))
    return folder


def _logits(cache):
    return torch.from_numpy(CacheReader(cache).read_view(0)["logits"].copy())


@pytest.fixture
def ours(caches, tmp_path):
    return Path(shutil.copytree(caches / "ours.zarr", tmp_path / "ours.zarr"))


def _objects(cache, view, shard):
    """The files of a shard: its arrays' objects and its commit record, by array."""
    names = {path.parent.name for path in cache.glob("*/zarr.json")} - {"labels", "keys"}
    found = {}
    for name in names:
        place = cache / name / "c" / str(view) / str(shard)
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        found[name] = next(path for path in files if path.is_file())
    assert {"commits", "logits", "digests"} <= found.keys()
    return found


def _put(cache, at, source, of, only=None):
    """Copy a shard, or some of its arrays, to a place of a cache."""
    theirs, here = _objects(source, *of), _objects(cache, *at)
    for name in only or here:
        shutil.copyfile(theirs[name], here[name])


def _swap(one, at, other, of, spare):
    """Exchange two shards, which may be of one cache."""
    held = Path(shutil.copytree(one, spare))
    _put(one, at, other, of)
    _put(other, of, held, at)
    shutil.rmtree(held)


def _assert_refused(cache, *places):
    """`verify` and every reader refuse just these shards, and call them by their names."""
    verdict = verify(cache)
    names = sorted(shard_name(*place) for place in places)
    assert sorted(verdict.corrupt_shards) == names
    assert verdict.missing_shards == ()
    reader = CacheReader(cache)
    for place in SHARDS:
        if place in places:
            with pytest.raises(CacheCorruptError, match=shard_name(*place)):
                reader.read_shard(*place)
        else:
            reader.read_shard(*place)


# --------------------------------------------------------------------------- of another cache


@pytest.mark.parametrize("place", SHARDS, ids=lambda place: shard_name(*place))
def test_shard_of_another_teachers_cache_is_refused(caches, ours, place):
    _put(ours, place, caches / "theirs.zarr", place)
    _assert_refused(ours, place)


def test_every_pairwise_exchange_between_two_caches_is_refused_in_both(caches, ours, tmp_path):
    theirs = Path(shutil.copytree(caches / "theirs.zarr", tmp_path / "theirs.zarr"))
    for at, of in product(SHARDS, SHARDS):
        _swap(ours, at, theirs, of, tmp_path / "spare")
        _assert_refused(ours, at)
        _assert_refused(theirs, of)
        _swap(ours, at, theirs, of, tmp_path / "spare")
    _assert_refused(ours)
    _assert_refused(theirs)


def test_all_shards_under_another_caches_manifest_are_refused(caches, ours):
    shutil.copyfile(caches / "theirs.zarr/zarr.json", ours / "zarr.json")
    assert not verify(ours).ok
    with pytest.raises(CacheCorruptError):
        CacheReader(ours).read_view(0)


def test_cache_is_not_sound_at_any_moment_of_a_copy_onto_it(caches, ours):
    """Until the last file that differs is there."""
    source = caches / "theirs.zarr"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    differing = [
        path for path in files
        if path.read_bytes() != (ours / path.relative_to(source)).read_bytes()
    ]  # fmt: skip
    for path in differing[:-1]:
        shutil.copyfile(path, ours / path.relative_to(source))
        assert not verify(ours).ok, path
    shutil.copyfile(differing[-1], ours / differing[-1].relative_to(source))
    assert verify(ours).ok


# --------------------------------------------------------------------------- of another place


def test_every_exchange_between_views_and_shards_of_one_cache_is_refused(ours, tmp_path):
    for at, of in combinations(SHARDS, 2):
        _swap(ours, at, ours, of, tmp_path / "spare")
        _assert_refused(ours, at, of)
        _swap(ours, at, ours, of, tmp_path / "spare")
    _assert_refused(ours)


def test_shard_copied_over_another_one_of_its_cache_is_refused(caches, ours):
    for at, of in product(SHARDS, SHARDS):
        if at != of:
            _put(ours, at, caches / "ours.zarr", of)
            _assert_refused(ours, at)
            _put(ours, at, caches / "ours.zarr", at)


def test_arrays_exchanged_within_a_shard_are_refused(caches, ours):
    """Some objects and the record of another cache's shard, in each combination."""
    names = sorted(_objects(ours, 0, 0))
    for size in range(1, len(names)):
        for only in combinations(names, size):
            if set(only) == {"digests"}:  # those are the same
                continue
            _put(ours, (1, 1), caches / "theirs.zarr", (1, 1), only)
            _assert_refused(ours, (1, 1))
            _put(ours, (1, 1), caches / "ours.zarr", (1, 1))


# --------------------------------------------------------------------------- training


def _train(caches, cache):
    return sandbox.run_command(
        "train", "r.toml", "--targets", "cache", "--cache", cache,
        "--run", cache.parent / "run", cwd=caches,
    )  # fmt: skip


def test_training_reads_the_sound_cache(caches, ours):
    done = _train(caches, ours)
    assert (done.exit_code, done.fault) == (0, None), done.stderr


@pytest.mark.parametrize("place", SHARDS, ids=lambda place: shard_name(*place))
def test_training_refuses_a_foreign_shard_by_name(caches, ours, place):
    _put(ours, place, caches / "theirs.zarr", place)
    done = _train(caches, ours)
    assert (done.exit_code, done.fault) == (1, None)
    assert shard_name(*place) in done.stderr
    assert not (ours.parent / "run/result.json").exists()


def test_training_refuses_views_that_were_exchanged(caches, ours, tmp_path):
    for shard in range(3):
        _swap(ours, (0, shard), ours, (1, shard), tmp_path / "spare")
    done = _train(caches, ours)
    assert (done.exit_code, done.fault) == (1, None)
    assert "view-00000/shard-00000" in done.stderr


# --------------------------------------------------------------------------- commands


@pytest.fixture
def recipe(write_recipe, tiny_teacher):
    return write_recipe(teacher={"weights": tiny_teacher})


def rewritten(source, path, change=lambda logits: logits, **changes):
    """A cache with the rows of another one, of another identity or format version."""
    reader = CacheReader(source)
    asked = replace(reader.manifest, complete=False, build={}, checksums={}, **changes)
    begun = create_or_resume(path, replace(asked, dataset=without_keys(asked)), reader.labels())
    writer = ShardWriter(path, begun)
    for view in range(begun.num_views):
        for shard in range(begun.num_shards):
            rows = reader.read_shard(view, shard)
            digests = rows["digests"].astype(np.uint64) + np.uint64(1)
            writer.write(view, shard, {"logits": change(rows["logits"]), "digests": digests}, 0.1)
    finish(path, begun, {"num_processes": 1})
    return path


def without_keys(manifest):
    return {name: value for name, value in manifest.dataset.items() if name != "keys"}


@pytest.fixture
def foreign(tiny_cache, tmp_path):
    """A cache of the tiny one's shape, of another teacher."""
    teacher = {**read_manifest(tiny_cache).teacher, "weights_sha256": "b" * 64}
    return rewritten(tiny_cache, tmp_path / "foreign.zarr", np.negative, teacher=teacher)


def bring(source, cache, view, shard):
    manifest = read_manifest(cache)
    for key in (*Layout(manifest).shard_objects(view, shard), record_object(view, shard)):
        shutil.copyfile(source / key, cache / key)


def train(kdscale, recipe, cache, *more):
    return kdscale("train", recipe, "--targets", "cache", "--cache", cache, "--run", "run", *more)


@pytest.mark.parametrize(("view", "shard"), [(0, 0), (1, 2), (2, 3)])
@pytest.mark.parametrize("memory", ["all", "windows"])
def test_training_refuses_a_foreign_shard_of_any_view_before_a_step(
    kdscale, recipe, cache_copy, foreign, tmp_path, view, shard, memory
):
    bring(foreign, cache_copy, view, shard)
    more = () if memory == "all" else ("--set", "cache.targets_memory=6000")
    done = train(kdscale, recipe, cache_copy, *more)
    assert done.exit_code == 1
    name = f"view-{view:05d}/shard-{shard:05d}"
    assert f"{name}: its commit record belongs to another cache" in done.stderr
    assert not list(tmp_path.glob("run/**/*.safetensors"))
    metrics = tmp_path / "run/metrics.jsonl"
    assert not metrics.exists() or '"step"' not in metrics.read_text()


def test_verify_names_a_foreign_shard_and_repair_rebuilds_it_alone(
    kdscale, recipe, cache_copy, foreign, tiny_cache
):
    bring(foreign, cache_copy, 1, 2)
    name = "view-00001/shard-00002"
    done = kdscale("cache", "verify", cache_copy, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["corrupt_shards"], found["missing_shards"]) == ([name], [])
    assert "another cache" in found["reasons"][name]
    before = {file: file.stat().st_mtime_ns for file in cache_copy.glob("*/c/**/*")}
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"rebuilt: {name}"
    assert verify(cache_copy).ok
    written = {
        str(file.relative_to(cache_copy)) for file in cache_copy.glob("*/c/**/*")
        if file.is_file() and file.stat().st_mtime_ns != before.get(file)
    }  # fmt: skip
    assert written <= {"logits/c/1/2/0", "digests/c/1/2", "commits/c/1/2/0"} | {
        key for key in written if key.startswith(("labels", "keys"))
    }
    for view in range(3):
        ours, theirs = (
            CacheReader(cache_copy).read_view(view),
            CacheReader(tiny_cache).read_view(view),
        )
        np.testing.assert_array_equal(ours["logits"], theirs["logits"])


@pytest.mark.parametrize("verb", ["build", "extend"])
def test_a_finished_cache_with_a_foreign_shard_is_neither_reused_nor_extended(
    kdscale, recipe, cache_copy, foreign, verb
):
    bring(foreign, cache_copy, 2, 0)
    before = (cache_copy / "zarr.json").read_bytes()
    if verb == "build":
        done = kdscale("cache", "build", recipe, "--cache", cache_copy)
    else:
        done = kdscale("cache", "extend", cache_copy, "--views", 4, "--recipe", recipe)
    assert done.exit_code == 1
    assert "view-00002/shard-00000: its commit record belongs to another cache" in done.stderr
    assert "kdscale cache repair" in done.stderr
    assert (cache_copy / "zarr.json").read_bytes() == before


def test_a_build_that_goes_on_builds_a_foreign_shard_anew_and_says_so(
    kdscale, recipe, cache_copy, foreign
):
    write_manifest(cache_copy, replace(read_manifest(cache_copy), complete=False))
    bring(foreign, cache_copy, 0, 1)
    done = kdscale("cache", "build", recipe, "--cache", cache_copy)
    assert done.exit_code == 0, done.stderr
    said = "view-00000/shard-00001 is built anew: its commit record belongs to another cache"
    assert said in done.stderr
    assert verify(cache_copy).ok


def test_training_on_an_earlier_version_says_once_what_cannot_be_checked(
    kdscale, recipe, tiny_cache, tmp_path
):
    old = rewritten(tiny_cache, tmp_path / "old.zarr", bound_records=False)
    assert read_manifest(old).format_version == 2  # for the options of its teacher
    done = train(kdscale, recipe, old)
    assert done.exit_code == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "not bound to their cache" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{old}: format version 2")
    done = kdscale("cache", "verify", old)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2


def test_info_and_verify_of_a_signed_manifest_with_wrong_fields_end_in_one_line(
    kdscale_process, cache_copy
):
    write_manifest(cache_copy, replace(read_manifest(cache_copy), num_views=-1))
    done = kdscale_process("cache", "info", cache_copy)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "num_views is -1, wanted an integer from 1" in done.stderr
    done = kdscale_process("cache", "verify", cache_copy)
    assert done.returncode == 1
    assert "num_views is -1" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("memory", [EVERYTHING, 6000])
def test_targets_beyond_the_cache_are_reported_with_the_range(tiny_cache, memory):
    source = CachedTargets.open(Path(tiny_cache), memory=memory)
    source.start_epoch(0)
    last = source.manifest.num_samples - 1
    for view, index, said in (
        (3, [0], r"view 3: .* has views 0\.\.2"),
        (-1, [0], r"view -1: .* has views 0\.\.2"),
        (0, [last + 1], rf"sample {last + 1}: .* has samples 0\.\.{last}"),
        (0, [-1, 0], rf"sample -1: .* has samples 0\.\.{last}"),
    ):
        with pytest.raises(OutOfRangeError, match=said):
            source.read(view, torch.tensor(index))
    source.close()


def test_opening_for_training_looks_at_the_views_that_are_used(tiny_cache, foreign, tmp_path):
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "mixed.zarr"))
    bring(foreign, cache, 2, 0)
    CachedTargets.open(cache, num_views=2).close()
    with pytest.raises(CacheCorruptError, match="view-00002/shard-00000"):
        CachedTargets.open(cache)
