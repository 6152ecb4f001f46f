"""Damage is told, repaired, and nothing else is touched; the teacher is asked again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.layout import Layout
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.verify import verify
from kdscale.cache.writer import ShardWriter


@pytest.fixture
def recipe(write_recipe, tiny_teacher):
    return write_recipe(teacher={"weights": tiny_teacher})


@pytest.fixture
def broken(cache_copy, tiny_cache):
    """Asserts that a repair brought everything back; tells which files it wrote."""
    before = {}

    def note():
        before.update({p: p.stat().st_mtime_ns for p in cache_copy.rglob("*") if p.is_file()})

    def check():
        assert verify(cache_copy).ok
        ours, theirs = CacheReader(cache_copy), CacheReader(tiny_cache)
        assert ours.manifest.id == theirs.manifest.id
        assert np.array_equal(ours.labels(), theirs.labels())
        for view in range(3):
            for name, array in ours.read_view(view).items():
                assert np.array_equal(array, theirs.read_view(view)[name])
        assert not (cache_copy / "claims").exists()
        files = {p: p.stat().st_mtime_ns for p in cache_copy.rglob("*") if p.is_file()}
        return {str(p.relative_to(cache_copy)) for p in files if files[p] != before.get(p)}

    check.note = note
    return check


def flip(file, position=None, pattern=0x10):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if position is None else position] ^= pattern
    file.write_bytes(data)


def shard_files(view, shard):
    return {
        f"logits/c/{view}/{shard}/0",
        f"digests/c/{view}/{shard}",
        f"commits/c/{view}/{shard}/0",
    }


# ------------------------------------------------------------------ repair


def test_sound_cache_is_left_alone(kdscale, recipe, cache_copy, broken):
    broken.note()
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe)
    assert done.exit_code == 0
    assert "is sound: nothing to repair" in done.stderr
    assert broken() == set()
    told = json.loads(kdscale("cache", "repair", cache_copy, "--recipe", recipe, "--json").stdout)
    assert told == {"path": str(cache_copy), "ok": True, "rebuilt": []}


@pytest.mark.parametrize("key", sorted(shard_files(1, 2)))
@pytest.mark.parametrize("damage", ["flipped", "gone", "empty", "folder"])
def test_bad_shard_is_built_again_and_nothing_else(
    kdscale, recipe, cache_copy, broken, key, damage
):
    if damage == "flipped":
        flip(cache_copy / key)
    elif damage == "empty":
        (cache_copy / key).write_bytes(b"")
    else:
        (cache_copy / key).unlink()
    if damage == "folder":
        (cache_copy / key).mkdir()
    assert not verify(cache_copy).ok
    broken.note()
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe)
    assert done.exit_code == 0
    assert done.stdout == f"rebuilt: view-00001/shard-00002\n{cache_copy}: ok\n"
    assert broken() - {"zarr.json"} == shard_files(1, 2)


@pytest.mark.parametrize("key", ["commits/zarr.json", "logits/zarr.json", "labels/c/0"])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_bad_metadata_is_written_again_and_nothing_else(
    kdscale, recipe, cache_copy, broken, key, damage
):
    flip(cache_copy / key) if damage == "flipped" else (cache_copy / key).unlink()
    broken.note()
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe)
    assert done.exit_code == 0
    assert f"rebuilt: {key}" in done.stdout
    assert broken() - {"zarr.json"} == {key}


def test_shards_behind_a_bad_index_of_records_are_judged_too(kdscale, recipe, cache_copy, broken):
    flip(cache_copy / "commits/zarr.json")
    flip(cache_copy / "logits/c/0/3/0")
    broken.note()
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe, "--json")
    told = json.loads(done.stdout)
    assert told["rebuilt"] == ["commits/zarr.json", "view-00000/shard-00003"]
    assert broken() - {"zarr.json"} == {"commits/zarr.json", *shard_files(0, 3)}


@pytest.mark.parametrize("key", ["labels/c/0", "logits/c/1/2/0", "commits/zarr.json", "logits"])
def test_link_in_a_cache_is_named_and_what_it_leads_to_stays(
    kdscale, recipe, cache_copy, tmp_path, key
):
    outside = tmp_path / "outside"
    (cache_copy / key).rename(outside)
    if key != "logits":
        flip(outside)
    (cache_copy / key).symlink_to(outside)
    before = {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()}
    for command in (["repair", cache_copy, "--recipe", recipe], ["verify", cache_copy]):
        done = kdscale("cache", *command)
        assert done.exit_code == 1
        assert f"{cache_copy / key} is a symbolic link" in done.stderr
        assert "Traceback" not in done.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_cache_of_links_does_not_keep_the_others_from_being_listed(kdscale, recipe, tmp_path):
    assert kdscale("cache", "build", recipe).exit_code == 0
    (tmp_path / "cache/a.zarr").mkdir()
    (tmp_path / "cache/a.zarr/zarr.json").symlink_to("/dev/zero")
    listed = kdscale("cache", "list")
    assert listed.exit_code == 0
    assert "a.zarr/zarr.json is a symbolic link" in listed.stderr
    assert "tiny.zarr" in listed.stdout
    assert "reused" in kdscale("cache", "build", recipe).stderr


@pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 0.6, 0.8, 0.99, "id"])
@pytest.mark.parametrize("pattern", [0x01, 0x80])
def test_damaged_manifest_is_made_anew_and_no_shard_is_built(
    kdscale, recipe, cache_copy, broken, share, pattern
):
    stored = (cache_copy / "zarr.json").read_bytes()
    at = stored.index(b'"id": ') + 9 if share == "id" else int(share * len(stored))
    flip(cache_copy / "zarr.json", at, pattern)
    assert verify(cache_copy).corrupt_shards == ("zarr.json",)
    broken.note()
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"rebuilt: zarr.json\n{cache_copy}: ok\n"
    assert broken() == {"zarr.json"}
    assert read_manifest(cache_copy).teacher["top1_accuracy"] > 0.8


def test_damaged_manifest_of_another_recipe_is_refused(kdscale, recipe, cache_copy):
    flip(cache_copy / "zarr.json")
    before = (cache_copy / "zarr.json").read_bytes()
    command = ("cache", "repair", cache_copy, "--recipe", recipe)
    done = kdscale(*command, "--set", "views.seed=7")
    assert done.exit_code == 1
    assert "does not name what the recipe asks for" in done.stderr
    flip(cache_copy / "commits/zarr.json")
    done = kdscale(*command)
    assert done.exit_code == 1
    assert "manifest and metadata" in done.stderr
    assert (cache_copy / "zarr.json").read_bytes() == before


def test_cache_of_another_recipe_is_not_repaired_with_this_one(kdscale, recipe, cache_copy):
    flip(cache_copy / "logits/c/0/3/0")
    files = {p: p.read_bytes() for p in cache_copy.rglob("*") if p.is_file()}
    done = kdscale("cache", "repair", cache_copy, "--recipe", recipe, "--set", "views.seed=7")
    assert done.exit_code == 1
    assert "views.seed: the cache has 0, the recipe asks for 7" in done.stderr
    assert {p: p.read_bytes() for p in cache_copy.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("count", [2, 5])
def test_repair_keeps_the_views_that_the_cache_has(kdscale, recipe, cache_copy, broken, count):
    flip(cache_copy / "logits/c/0/3/0")
    kdscale("cache", "repair", cache_copy, "--recipe", recipe, "--set", f"views.count={count}")
    broken.note()
    assert broken() == set()
    assert read_manifest(cache_copy).num_views == 3


def test_nowhere_there_is_nothing_to_repair(kdscale, recipe):
    done = kdscale("cache", "repair", "nowhere", "--recipe", recipe)
    assert done.exit_code == 1
    assert "no cache at nowhere" in done.stderr
    assert kdscale("cache", "repair", "nowhere").exit_code == 2


@pytest.mark.parametrize("encoding", ["float16", "int8", "int4", "topk"])
def test_every_encoding_is_repaired_and_confirmed_by_the_teacher(kdscale, recipe, encoding):
    changes = ["--set", f"cache.encoding={encoding}", "--set", "views.count=2"]
    if encoding == "topk":  # of 4 classes
        changes += ["--set", "cache.top_k=2", "--set", "cache.temperatures=[1, 2, 4]"]
    path = Path(kdscale("cache", "build", recipe, *changes).stdout.strip())
    manifest = read_manifest(path)
    layout = Layout(manifest)
    keys = [key for view in range(2) for s in range(4) for key in layout.shard_objects(view, s)]
    shards = {key: (path / key).read_bytes() for key in keys}
    for shard, name in enumerate(layout.shard_arrays):  # one array of each, the last is gone
        key = next(k for k in layout.shard_objects(0, shard) if k.startswith(name))
        flip(path / key) if name != "digests" else (path / key).unlink()
    flip(path / "labels/c/0")
    command = ("cache", "repair", path, "--recipe", recipe, *changes)
    done = kdscale(*command)
    assert done.stdout.startswith("rebuilt: "), done.stderr
    flip(path / "zarr.json")  # now the manifest alone, from which nothing is known of the encoding
    assert kdscale(*command).stdout == f"rebuilt: zarr.json\n{path}: ok\n"
    assert read_manifest(path).id == manifest.id
    assert {key: (path / key).read_bytes() for key in keys} == shards
    status, told = ask(kdscale, path, recipe, *changes, "--teacher", "999")
    assert (status, told["teacher"]["num_pairs"]) == (0, 2 * 128)
    assert 0 < told["teacher"]["largest_difference"] < told["teacher"]["tolerance"]


@pytest.mark.parametrize("stated", ["top_k", "temperatures"])
def test_manifest_that_names_other_settings_of_topk_is_not_made_anew(kdscale, recipe, stated):
    changes = ["--set", "cache.encoding=topk", "--set", "cache.top_k=2", "--set", "views.count=1"]
    changes += ["--set", "cache.temperatures=[1, 2, 4]"]
    path = Path(kdscale("cache", "build", recipe, *changes).stdout.strip())
    flip(path / "zarr.json")
    other = {"top_k": "cache.top_k=1", "temperatures": "cache.temperatures=[1, 2, 3]"}[stated]
    done = kdscale("cache", "repair", path, "--recipe", recipe, *changes, "--set", other)
    assert done.exit_code == 1
    assert "does not name what the recipe asks for" in done.stderr


# ------------------------------------------------------------------ who else notices


@pytest.mark.parametrize("key", ["logits/c/1/2/0", "commits/c/1/2/0", "labels/c/0", "zarr.json"])
def test_build_and_training_tell_to_repair_a_damaged_cache(
    kdscale, recipe, tiny_cache, tmp_path, key
):
    path = tmp_path / "cache" / "tiny.zarr"
    shutil.copytree(tiny_cache, path)
    flip(path / key) if key == "zarr.json" else (path / key).unlink()
    for command in (("cache", "build"), ("train", "--targets", "cache", "--run", "run")):
        done = kdscale(*command, recipe)
        assert done.exit_code == 1
        assert f"kdscale cache repair {path.relative_to(tmp_path)} --recipe" in done.stderr
    assert not list((tmp_path / "cache").glob("tiny-*.zarr"))
    assert kdscale("cache", "repair", path, "--recipe", recipe).exit_code == 0
    assert "reused" in kdscale("cache", "build", recipe).stderr


def test_verify_says_how_to_repair(kdscale, cache_copy):
    flip(cache_copy / "logits/c/1/2/0")
    said = kdscale("cache", "verify", cache_copy).stdout
    assert f"kdscale cache repair {cache_copy} --recipe RECIPE" in said


# ------------------------------------------------------------------ verify with the teacher


def ask(kdscale, path, recipe, *more):
    done = kdscale("cache", "verify", path, "--teacher", "64", "--recipe", recipe, "--json", *more)
    return done.exit_code, json.loads(done.stdout)


def rewrite(path, view, shard, row, **changes):
    """Store other values of a sample, with a record that vouches for them."""
    manifest = read_manifest(path)
    values = CacheReader(path).read_shard(view, shard)
    values["digests"] = values["digests"].astype(np.uint64) + 1
    for name, change in changes.items():
        values[name][row] += np.asarray(change, Layout(manifest).arrays[name].dtype)
    ShardWriter(path, manifest).write(view, shard, values, 0.0)


def test_teacher_that_runs_again_agrees(kdscale, recipe, tiny_cache):
    status, told = ask(kdscale, tiny_cache, recipe)
    assert (status, told["ok"], told["teacher"]["ok"]) == (0, True, True)
    assert told["teacher"]["num_pairs"] == 64
    assert told["teacher"]["tolerance"] == 1e-4
    assert told["teacher"]["largest_difference"] < 1e-5
    said = kdscale("cache", "verify", tiny_cache, "--teacher", "5", "--recipe", recipe).stdout
    assert "5 views run again (--seed " in said
    assert ": ok, largest difference " in said


def test_other_batches_and_half_precision_are_within_the_tolerance(kdscale, recipe):
    changes = ("--set", "cache.encoding=float16", "--set", "teacher.batch_size=7")
    built = kdscale("cache", "build", recipe, *changes)
    status, told = ask(kdscale, built.stdout.strip(), recipe, *changes[:2])
    assert (status, told["teacher"]["tolerance"]) == (0, pytest.approx(6e-4))
    assert 0 < told["teacher"]["largest_difference"] < 6e-4


@pytest.mark.parametrize("changes", [{"logits": 0.01}, {"digests": 1}])
def test_what_the_teacher_does_not_confirm_is_named_with_exit_code_1(
    kdscale, recipe, cache_copy, changes
):
    rewrite(cache_copy, 1, 2, 5, **changes)
    assert verify(cache_copy).ok  # every byte is as it was written
    status, told = ask(kdscale, cache_copy, recipe, "--teacher", "999")
    assert (status, told["ok"], told["teacher"]["num_pairs"]) == (1, False, 3 * 128)
    named = ["view-00001/sample-69"]
    field = "other_logits" if "logits" in changes else "other_pixels"
    assert (told["teacher"][field], told["corrupt_shards"]) == (named, [])
    command = ("cache", "verify", cache_copy, "--teacher", "999", "--recipe", recipe)
    said = kdscale(*command).stdout
    assert f"  {field.replace('_', ' ')}: view-00001/sample-69" in said
    allowed = kdscale(*command, "--tolerance", "0.5")
    assert allowed.exit_code == ("digests" in changes)


@pytest.mark.parametrize(
    ("stored", "change"),
    [
        ({"encoding": "int8"}, {"offset": 1.0}),
        ({"encoding": "int4"}, {"offset": 2.0}),
        ({"encoding": "topk", "top_k": 2, "temperatures": [1, 2, 4]}, {"logits": 0.5}),
        ({"encoding": "topk", "top_k": 2, "temperatures": [1, 2, 4]}, {"tails": 0.5}),
    ],
)
def test_teacher_denies_what_is_wrong_whatever_the_encoding(kdscale, recipe, stored, change):
    changes = [part for key, value in stored.items() for part in ("--set", f"cache.{key}={value}")]
    path = Path(kdscale("cache", "build", recipe, *changes).stdout.strip())
    rewrite(path, 1, 2, 5, **change)
    status, told = ask(kdscale, path, recipe, *changes, "--teacher", "999")
    assert (status, told["teacher"]["other_logits"]) == (1, ["view-00001/sample-69"])
    assert told["teacher"]["other_pixels"] == []


def test_same_seed_asks_about_the_same_views(kdscale, recipe, tiny_cache):
    first, again = (ask(kdscale, tiny_cache, recipe, "--seed", "3")[1] for _ in range(2))
    assert first == again
    assert first["teacher"]["seed"] == 3


def test_teacher_does_not_run_on_a_cache_that_is_not_sound(kdscale, recipe, cache_copy):
    flip(cache_copy / "logits/c/1/2/0")
    status, told = ask(kdscale, cache_copy, recipe)
    assert (status, told["ok"]) == (1, False)
    assert "teacher" not in told


def test_teacher_and_recipe_go_together(kdscale, recipe, tiny_cache):
    for arguments in (("--teacher", "3"), ("--recipe", recipe), ("--teacher", "0")):
        assert kdscale("cache", "verify", tiny_cache, *arguments).exit_code == 2


def test_another_recipe_is_refused_before_the_teacher_runs(kdscale, recipe, tiny_cache):
    done = kdscale("cache", "verify", tiny_cache, "--teacher", "3", "--recipe", recipe,
                   "--set", "views.seed=7")  # fmt: skip
    assert done.exit_code == 1
    assert "views.seed: the cache has 0, the recipe asks for 7" in done.stderr
