"""What killed and failed commands leave is cleared by whoever comes next."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale import atomic_write
from kdscale.atomic_write import temporary_folder, write_durably
from kdscale.building.location import clear_abandoned
from kdscale.cache.lease import Leases
from kdscale.models import registry
from kdscale.runs import checkpoint
from kdscale.sweep import database

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
        "from kdscale.atomic_write import temporary_folder\n"
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
        "from kdscale.cache.lease import Leases\n"
        "Leases(pathlib.Path(sys.argv[1])).claim('manifest')",
        place,
    )
    shutil.copytree(place, tmp_path / "b.zarr")
    (tmp_path / "b.zarr/.zarr.json.host.1.abcd.tmp").write_bytes(b"x")
    os.utime(tmp_path / "b.zarr/.zarr.json.host.1.abcd.tmp", (1, 1))
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/notes.txt").write_text("mine")
    with Leases(tmp_path / "living.zarr") as living:
        assert living.claim("manifest")
        clear_abandoned(tmp_path)
        living.check("manifest")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["living.zarr", "mine.zarr"]
    assert everything(tmp_path / "mine.zarr") == ["notes.txt"]


def test_cache_that_was_killed_before_its_manifest_can_be_removed(kdscale, tmp_path):
    place = tmp_path / "a.zarr"
    kill(
        "from kdscale.cache.lease import Leases\n"
        "Leases(pathlib.Path(sys.argv[1])).claim('manifest')",
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


@pytest.mark.thorough
def test_killed_trainings_leave_nothing_after_the_next_one(kdscale, write_recipe, tmp_path):
    run = tmp_path / "run"
    for _ in range(20):
        kill(
            "from kdscale.cache.lease import Leases\n"
            "from kdscale.atomic_write import temporary_for\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "claims = Leases(folder)\n"
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
    living = atomic_write.temporary_for(tmp_path / "a")
    living.write_bytes(b"half")
    write_durably(tmp_path / "b", b"x")
    atomic_write.remove_abandoned(tmp_path, tmp_path / "b")
    assert living.exists()
    monkeypatch.setattr(atomic_write, "is_abandoned", lambda _: True)
    atomic_write.remove_abandoned(tmp_path, tmp_path / "b")
    assert everything(tmp_path) == ["b"]


# ------------------------------------------------------------------ decoded images


@pytest.mark.parametrize("command", [("cache", "plan"), ("cache", "build"), ("train",)])
def test_command_whose_images_cannot_be_decoded_leaves_no_folder(
    kdscale, write_recipe, write_split, make_dataset, tmp_path, command
):
    data = make_dataset(tmp_path / "data", 8, 8)
    table = pq.read_table(data / "train.parquet")
    cells = table.column("image").to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:60]
    broken = pa.array(cells, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), broken), data / "train.parquet")
    before = everything(tmp_path)
    recipe = write_recipe(data={"source": str(data)})
    done = kdscale(*command, recipe)
    assert_one_line(done)
    assert everything(tmp_path) == sorted([*before, "tiny.toml"])


def test_half_decoded_images_of_killed_commands_go_with_the_next(kdscale, write_recipe, tmp_path):
    images = tmp_path / "cache/images"
    for key in ("a" * 64, "b" * 64):
        (images / f".{key}.0123.partial").mkdir(parents=True)
        (images / f".{key}.0123.partial/pixels.npy").write_bytes(b"half")
        (images / f".{key}.lock").touch()
    with (images / f".{'b' * 64}.lock").open("a") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        done = kdscale("train", write_recipe(), "--model", "teacher", "--run", "run")
        assert done.exit_code == 0, done.stderr
    assert [path.name for path in images.glob(".*.partial")] == [f".{'b' * 64}.0123.partial"]


@pytest.mark.parametrize("file", ["", "pixels.npy", "labels.npy", "images.json"])
def test_link_in_the_place_of_decoded_images_is_refused_by_name(
    kdscale, write_recipe, tmp_path, file
):
    command = ("train", write_recipe(), "--model", "teacher", "--run")
    assert kdscale(*command, "run").exit_code == 0
    folder = next(path for path in (tmp_path / "cache/images").iterdir() if path.is_dir())
    place = folder / file
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    assert_one_line(kdscale(*command, "again"), f"{place.name} is a symbolic link")
    assert not (tmp_path / "again").exists()


# ------------------------------------------------------------------ what the system refuses


def assert_one_line(done, *parts):
    assert done.exit_code == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def sweep_recipe(write_recipe, tiny_teacher):
    return write_recipe(
        data={"validation": 0.25},
        teacher={"weights": tiny_teacher, "train": None},
        student={"train": {"epochs": 1}},
        sweep={"space": {"loss": {"temperature": [1.0]}}},
    )


@pytest.mark.parametrize("writes", [0, 3, 12, 25])
def test_full_disk_in_a_sweep_is_one_line(kdscale, sweep_recipe, tiny_cache, monkeypatch, writes):
    fsync, left = os.fsync, [writes]

    def fill(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    command = ("sweep", sweep_recipe, "--run", "s", "--cache", tiny_cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        assert_one_line(kdscale(*command), "No space left on device")
    assert left[0] < 0


def test_database_that_finds_no_space_is_one_line(kdscale, sweep_recipe, tiny_cache, monkeypatch):
    connect = database._connect

    def full(file):
        connection = connect(file)
        connection.execute("PRAGMA max_page_count=10")
        return connection

    command = ("sweep", sweep_recipe, "--run", "s", "--cache", tiny_cache)
    with monkeypatch.context() as patch:
        patch.setattr(database, "_connect", full)
        assert_one_line(kdscale(*command), "cannot write the sweep's database", "is full")
    assert kdscale(*command).exit_code == 0


def test_run_folder_that_goes_meanwhile_is_one_line(kdscale, write_recipe, tmp_path, monkeypatch):
    publish = checkpoint.publish

    def publish_nowhere(folder, step):
        if step:
            shutil.rmtree(tmp_path / "run")
        publish(folder, step)

    monkeypatch.setattr(checkpoint, "publish", publish_nowhere)
    done = kdscale("train", write_recipe(), "--model", "teacher", "--run", "run")
    assert_one_line(done, "No such file or directory")


def test_system_without_more_threads_is_one_line(kdscale, write_recipe, tmp_path, monkeypatch):
    def refuse(_self):
        raise RuntimeError("can't start new thread")

    recipe = write_recipe()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = kdscale("train", recipe, "--model", "teacher", "--run", "run")
    assert_one_line(done, "the system starts no more threads")
    assert not (tmp_path / "run").exists()


def test_torchvision_of_another_torch_is_one_line(kdscale, write_recipe, monkeypatch):
    """As `import torchvision` ends where a CPU build of torch lies beside the registry's."""

    def unusable(*_arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(registry.SOURCES, "torchvision/", unusable)
    changed = ["--set", "teacher.model=torchvision/resnet18"]
    done = kdscale("train", write_recipe(), *changed, "--model", "teacher", "--run", "run")
    assert_one_line(done, "install both from the same index")
