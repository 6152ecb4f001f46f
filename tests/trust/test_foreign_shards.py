"""A shard belongs to its cache, its view and its place: any other one is refused by name.

Two caches of one shape, of two teachers: their digests and metadata are the same, and every object
has a sound commit record of its own. Only what the record binds tells them apart.
"""

import shutil
from itertools import combinations, product
from pathlib import Path

import pytest
import sandbox
import torch

from kdscale.cache.layout import shard_name
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.errors import CacheCorruptError

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
