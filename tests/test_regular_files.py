import os
from pathlib import Path

import pytest

from kdscale.errors import UnsafePathError
from kdscale.regular_files import check_regular, path_inside, read_inside, read_regular


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "root/inner/file").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    return tmp_path / "root"


def test_a_regular_file_is_read_even_if_the_folder_itself_is_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert read_inside(root, "inner/file") == read_inside(tmp_path / "link", "inner/file")


@pytest.mark.parametrize(
    "relative", ["../outside", "inner/../../outside", "/etc/passwd", "", "a\0"]
)
def test_paths_out_of_the_folder_are_refused(root, relative):
    with pytest.raises(UnsafePathError, match="is not a path below"):
        path_inside(root, relative)


def test_a_link_in_any_part_of_the_path_is_refused_by_name(root, tmp_path):
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "folder").symlink_to(tmp_path)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    for relative in ("link", "folder/outside", "folder/new", "dangling"):
        with pytest.raises(UnsafePathError, match="symbolic link"):
            path_inside(root, relative)


def test_a_pipe_is_refused_without_waiting_for_a_writer(root):
    os.mkfifo(root / "pipe")
    for read in (lambda: read_inside(root, "pipe"), lambda: read_regular(root / "pipe")):
        with pytest.raises(UnsafePathError, match="pipe"):
            read()


def test_a_device_without_an_end_is_refused():
    for access in (read_regular, check_regular):
        with pytest.raises(UnsafePathError, match="device"):
            access(Path("/dev/zero"))


def test_a_file_beyond_the_limit_is_not_read(root):
    assert read_inside(root, "inner/file", limit=6) == b"inside"
    with pytest.raises(UnsafePathError, match="at most 5"):
        read_inside(root, "inner/file", limit=5)


def test_a_file_that_a_user_names_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    assert read_regular(tmp_path / "link") == b"outside"
    check_regular(tmp_path / "link")
    check_regular(tmp_path / "nothing")
