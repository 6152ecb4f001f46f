import errno
import os
import threading
from pathlib import Path

import pytest

from kdscale.atomic_write import is_abandoned, write_durably, write_output
from kdscale.errors import StorageError, UnsafePathError


def test_file_is_written_and_replaced(tmp_path):
    for data in (b"first", b"second, longer", b""):
        write_durably(tmp_path / "a.bin", data)
        assert (tmp_path / "a.bin").read_bytes() == data
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_folders_are_created_and_each_is_flushed_into_the_one_above(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def record(descriptor):
        flushed.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_durably(tmp_path / "a/b/c.bin", b"x")
    folders = [path for path in flushed if not path.endswith(".tmp")]
    assert folders == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
    assert flushed.index(str(tmp_path / "a/b")) == len(flushed) - 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, number):
    write_durably(tmp_path / "a.bin", b"old")

    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        write_durably(tmp_path / "a.bin", b"new")
    assert os.strerror(number) in str(caught.value)
    assert str(tmp_path / "a.bin") in str(caught.value)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_interrupted_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    write_durably(tmp_path / "a.bin", b"old")

    def interrupt(_self, _target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_writers_of_one_file_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    names = []
    replace = Path.replace

    def record(self, target):
        names.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", record)
    for _ in range(2):
        write_durably(tmp_path / "a.bin", b"x")
    assert len(set(names)) == 2
    assert all(name.startswith(".a.bin.") and name.endswith(".tmp") for name in names)


@pytest.mark.parametrize("below", ["file/a.bin", "file/deeper/a.bin"])
def test_file_in_the_place_of_a_folder_is_a_storage_error(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_durably(tmp_path / below, b"x")


def test_temporary_file_of_a_running_process_is_not_abandoned(tmp_path, monkeypatch):
    states = []
    replace = Path.replace

    def look(self, target):
        states.append(is_abandoned(self))
        monkeypatch.setattr(os, "kill", refuse(ProcessLookupError))
        states.append(is_abandoned(self))
        monkeypatch.setattr(os, "kill", refuse(PermissionError))
        states.append(is_abandoned(self))
        return replace(self, target)

    def refuse(error):
        def kill(_number, _signal):
            raise error

        return kill

    monkeypatch.setattr(Path, "replace", look)
    write_durably(tmp_path / "a.bin", b"x")
    assert states == [False, True, False]


@pytest.mark.parametrize("name", [".x.tmp", ".a.bin.some.where.x.y.tmp", "tmp"])
def test_other_names_are_not_abandoned(name):
    assert not is_abandoned(Path(name))


def test_pipe_that_a_user_names_is_written_to_and_not_replaced(tmp_path):
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"words")
    reader.join(10)
    assert heard == [b"words"]
    assert pipe.is_fifo()


def test_link_that_a_user_names_stays_and_what_it_leads_to_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_output(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_link_or_pipe_in_a_folder_of_kdscale_is_refused_and_nothing_is_written(tmp_path, kind):
    folder, target = tmp_path / "folder", tmp_path / "target"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "a.bin")
    else:
        (folder / "a.bin").symlink_to(target)
    if kind == "link":
        target.write_bytes(b"old")
    with pytest.raises(UnsafePathError, match=r"a\.bin is a (symbolic link|pipe)"):
        write_durably(folder / "a.bin", b"new")
    assert [path.name for path in folder.iterdir()] == ["a.bin"]
    assert not target.exists() or target.read_bytes() == b"old"


def test_link_in_the_place_of_a_folder_below_the_root_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/inner").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePathError, match="inner is a symbolic link"):
        write_durably(tmp_path / "root/inner/new/a.bin", b"x", root=tmp_path / "root")
    assert list((tmp_path / "outside").iterdir()) == []
