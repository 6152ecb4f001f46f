"""Links, pipes and devices in a run, a cache, decoded images or a sweep are refused by name.

They are neither read nor written through, wherever they lead, and no command waits for one.
"""

import json
import os
import shutil

import pytest
import sandbox

CACHED = ("--targets", "cache", "--cache", "root/tiny.zarr")
EVALUATE = ("evaluate", "student", "--seconds", "0")


def _link_to_a_copy(path, outside):
    """To a file outside that holds the very same."""
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def _pipe(path, _):
    path.unlink()
    os.mkfifo(path)


def _endless(path, _):
    path.unlink()
    path.symlink_to("/dev/zero")


SPECIAL = {"a link": _link_to_a_copy, "a pipe": _pipe, "an endless device": _endless}

RESUME = ("train", "r.toml", *CACHED, "--run", "unfinished", "--resume")
REPORT = ("report", "student", "--markdown", "-")
READ = {
    "student/recipe.toml": (EVALUATE, REPORT),
    "student/result.json": (EVALUATE, REPORT),
    "student/content.json": (EVALUATE,),
    "student/metrics.jsonl": (REPORT,),
    "student/evaluation.json": (REPORT,),
    "student/weights.safetensors": (EVALUATE, ("export", "student", "--format", "safetensors")),
    "student/best.safetensors": ((*EVALUATE, "--weights", "best"),),
    "unfinished/run.json": (RESUME,),
    "unfinished/metrics.jsonl": (RESUME,),
    "unfinished/checkpoints/*/state.json": (RESUME,),
    "unfinished/checkpoints/*/model.safetensors": (RESUME,),
    "root/tiny.zarr/zarr.json": (("cache", "verify", "root/tiny.zarr"),
                                 ("cache", "info", "root/tiny.zarr")),
    "root/tiny.zarr/logits/zarr.json": (("cache", "verify", "root/tiny.zarr"),),
    "root/tiny.zarr/logits/c/0/1/0": (("cache", "verify", "root/tiny.zarr"),
                                      ("train", "r.toml", *CACHED, "--run", "new")),
    "root/tiny.zarr/commits/c/0/1/0": (("cache", "verify", "root/tiny.zarr"),),
    "root/images/*/pixels.npy": (("train", "r.toml", "--run", "new"),),
    "root/images/*/images.json": (("train", "r.toml", "--run", "new"),),
    "root/predictions/*": (EVALUATE,),
    "sweep/sweep.json": (("sweep", "status", "sweep"),),
}  # fmt: skip
"""Files, and commands that read each."""


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("pattern", READ)
def test_special_file_is_refused_by_name(box, tmp_path, pattern, special):
    for number, args in enumerate(READ[pattern]):
        folder, outside = box(f"box{number}"), tmp_path / f"outside{number}"
        outside.mkdir()
        if pattern.startswith("sweep"):
            _begin_sweep(folder)
        paths = sorted(folder.glob(pattern))
        for path in paths:
            SPECIAL[special](path, outside)
        before = sandbox.listing(outside)
        done = sandbox.run_command(*args, cwd=folder)
        assert done.fault is None, done.fault
        assert sandbox.listing(outside) == before
        said = done.stderr + done.stdout
        assert any(path.name in said or path.parent.name in said for path in paths), said
        told = ("damaged", "a symbolic link", "a pipe", "a device", "follows no links")
        assert done.exit_code in (1, 2) or any(word in said for word in told), said


def _begin_sweep(folder):
    (folder / "sweep").mkdir()
    table = {"version": 1, "study": "tiny-00000000", "storage": "sweep.db", "recipe": {}}
    (folder / "sweep/sweep.json").write_text(json.dumps(table))


WRITTEN = {
    "unfinished/checkpoints": RESUME,
    "root/predictions": EVALUATE,
    "root/images": ("train", "r.toml", "--run", "new"),
    "root/tiny.zarr/logits": ("cache", "repair", "root/tiny.zarr", "--recipe", "r.toml",
                              "--set", "teacher.weights=teacher/weights.safetensors"),
    "root/tiny.zarr/commits": ("cache", "remove", "root/tiny.zarr", "--yes"),
    "root/tiny.zarr/labels/c": ("cache", "remove", "root/tiny.zarr", "--yes"),
}  # fmt: skip
"""Folders, and a command that writes or removes something below each."""


@pytest.mark.parametrize("place", WRITTEN)
def test_nothing_is_written_or_removed_behind_a_linked_folder(box, tmp_path, place):
    folder, outside = box(), tmp_path / "outside"
    path = folder / place
    path.rename(outside)
    path.symlink_to(outside)
    if place in ("root/predictions", "root/images"):  # made anew where they are missing
        shutil.rmtree(outside)
        outside.mkdir()
    if place == "root/tiny.zarr/logits":
        (outside / "c/0/1/0").write_bytes(b"damaged")
    before = sandbox.listing(outside)
    done = sandbox.run_command(*WRITTEN[place], cwd=folder)
    assert done.fault is None, done.fault
    assert sandbox.listing(outside) == before


@pytest.mark.parametrize(
    "place",
    ["student/evaluation.json", "unfinished/metrics.jsonl", "unfinished/claims/run.0",
     "root/tiny.zarr/claims/manifest.0", "unfinished/checkpoints/writing/state.json"],
)  # fmt: skip
def test_nothing_is_written_through_a_linked_file(box, tmp_path, place):
    folder, victim = box(), tmp_path / "outside/victim.txt"
    victim.parent.mkdir()
    victim.write_text("as it was")
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    for args in (EVALUATE, WRITTEN["unfinished/checkpoints"], WRITTEN["root/tiny.zarr/commits"]):
        done = sandbox.run_command(*args, cwd=folder)
        assert done.fault is None, done.fault
        assert victim.read_text() == "as it was"
