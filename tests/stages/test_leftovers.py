"""What killed and failed commands leave is cleared by whoever comes next."""

import os
import shutil
import subprocess
import sys

import pytest

from kdscale import durable
from kdscale.cache.claims import Claims
from kdscale.durable import temporary_folder, write_durably
from kdscale.engine.builders.places import clear_abandoned

KILLED = "import os, pathlib, sys\n{}\nos.kill(os.getpid(), 9)"


def kill(code, *arguments):
    """Run Python code in a process that then kills itself."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(code), *map(str, arguments)], check=False
    )
    assert done.returncode == -9


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_temporary_folder_of_a_killed_process_goes_with_the_next(tmp_path):
    kill(
        "from kdscale.durable import temporary_folder\n"
        "where = temporary_folder(pathlib.Path(sys.argv[1]), 'export')\n"
        "(where.__enter__() / 'half').write_bytes(b'x')",
        tmp_path,
    )
    old, fresh = tmp_path / ".kdscale-export-old", tmp_path / ".kdscale-export-fresh"
    for one in (old, fresh):  # as earlier versions called them: nobody knows whose they are
        one.mkdir()
    os.utime(old, (1, 1))
    assert len(everything(tmp_path)) == 4
    with temporary_folder(tmp_path, "export") as ours, temporary_folder(tmp_path, "export"):
        assert ours.is_dir()
    assert everything(tmp_path) == [fresh.name]


def test_caches_that_were_killed_before_their_manifest_go_with_the_next_build(tmp_path):
    place = tmp_path / "a.zarr"
    kill(
        "from kdscale.cache.claims import Claims\n"
        "Claims(pathlib.Path(sys.argv[1])).claim('manifest')",
        place,
    )
    shutil.copytree(place, tmp_path / "b.zarr")
    (tmp_path / "b.zarr/.zarr.json.host.1.abcd.tmp").write_bytes(b"x")
    os.utime(tmp_path / "b.zarr/.zarr.json.host.1.abcd.tmp", (1, 1))
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/notes.txt").write_text("mine")
    with Claims(tmp_path / "living.zarr") as living:
        assert living.claim("manifest")
        clear_abandoned(tmp_path)
        living.check("manifest")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["living.zarr", "mine.zarr"]
    assert everything(tmp_path / "mine.zarr") == ["notes.txt"]


def test_cache_that_was_killed_before_its_manifest_can_be_removed(kdscale, tmp_path):
    place = tmp_path / "a.zarr"
    kill(
        "from kdscale.cache.claims import Claims\n"
        "Claims(pathlib.Path(sys.argv[1])).claim('manifest')",
        place,
    )
    done = kdscale("cache", "remove", place, "--yes")
    assert done.exit_code == 0, done.stderr
    assert not place.exists()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_training_that_could_not_begin_leaves_no_folder(kdscale, write_recipe, tmp_path, role):
    recipe = write_recipe()
    changes = ["--set", "data.validation=0.0001"]
    done = kdscale("train", recipe, "--model", role, "--run", "new/deep/run", *changes)
    assert done.exit_code != 0
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    assert kdscale("train", recipe, "--model", role, "--run", "mine", *changes).exit_code != 0
    assert (tmp_path / "mine").is_dir()


def test_run_that_could_not_begin_leaves_no_folder(kdscale, write_recipe, tmp_path):
    done = kdscale("run", write_recipe(), "--run", "new/run", "--set", "data.validation=0.0001")
    assert done.exit_code != 0
    assert not (tmp_path / "new").exists()


def test_killed_trainings_leave_nothing_after_the_next_one(kdscale, write_recipe, tmp_path):
    run = tmp_path / "run"
    for _ in range(20):
        kill(
            "from kdscale.cache.claims import Claims\n"
            "from kdscale.durable import temporary_for\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "claims = Claims(folder)\n"
            "while not claims.claim('run'): pass\n"
            "temporary_for(folder / 'run.json').write_bytes(b'half')",
            run,
        )
    recipe = write_recipe(teacher={"train": {"epochs": 1}})
    done = kdscale("train", recipe, "--model", "teacher", "--run", "run")
    assert done.exit_code == 0, done.stderr
    left = everything(run)
    assert "result.json" in left
    assert not [name for name in left if "claims" in name or name.endswith(".tmp")]


def test_link_in_a_run_folder_is_refused_before_anything_is_written(
    kdscale, write_recipe, tmp_path
):
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "outside")
    done = kdscale("train", write_recipe(), "--model", "teacher", "--run", "run")
    assert done.exit_code == 1
    assert "run/checkpoints is a symbolic link" in done.stderr
    assert everything(tmp_path / "outside") == []
    assert everything(tmp_path / "run") == ["checkpoints"]


def test_temporary_file_of_a_living_writer_stays(tmp_path, monkeypatch):
    living = durable.temporary_for(tmp_path / "a")
    living.write_bytes(b"half")
    write_durably(tmp_path / "b", b"x")
    durable.remove_abandoned(tmp_path, tmp_path / "b")
    assert living.exists()
    monkeypatch.setattr(durable, "is_abandoned", lambda _: True)
    durable.remove_abandoned(tmp_path, tmp_path / "b")
    assert everything(tmp_path) == ["b"]
