import errno
import os
import threading
from pathlib import Path

import pytest

from kdscale.durable import is_abandoned, write_durably
from kdscale.errors import StorageError


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


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_durably(pipe, b"words")
    reader.join(10)
    assert heard == [b"words"]
    assert pipe.is_fifo()


def test_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_durably(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
