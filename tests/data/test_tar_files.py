"""Tars of the webdataset format are read in place; what is damaged or ambiguous is refused."""

import io
import json
import logging
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from kdscale.data.image_dataset import load_images
from kdscale.data.source import SourceOptions
from kdscale.errors import DataError, UnsafePathError


def png(number, kind="PNG", size=5):
    pixels = np.full((4, size, 3), number * 20, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members):
    """Write members (name and bytes) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, label="{}"):
    return [
        member
        for n in numbers
        for member in ((f"{n:04}.png", png(n)), (f"{n:04}.cls", label.format(n % 2).encode()))
    ]


def load(source, tmp_path, split="train", *, require_labels=True, **options):
    return load_images(
        str(source), split=split, root=tmp_path / "root", require_labels=require_labels,
        options=SourceOptions(**options),
    )  # fmt: skip


def first_pixels(images):
    return images.pixels[:, 0, 0, 0].tolist()


def test_tars_of_a_folder_are_its_splits(tmp_path, caplog):
    write_tar(tmp_path / "set" / "train-000.tar", samples([0, 1, 2]))
    write_tar(tmp_path / "set" / "train-001.tar", samples([3, 4]))
    write_tar(tmp_path / "set" / "val-000.tar", samples([5, 6]))
    train = load(tmp_path / "set", tmp_path)
    assert first_pixels(train) == [0, 20, 40, 60, 80]
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert train.classes == ("0", "1")
    assert first_pixels(load(tmp_path / "set", tmp_path, "test")) == [100, 120]
    with caplog.at_level(logging.INFO):  # one decoded copy, whatever the files are called
        moved = (tmp_path / "set").rename(tmp_path / "moved")
        assert load(moved, tmp_path).fingerprint == train.fingerprint
    assert len(list((tmp_path / "root" / "images").glob("*/pixels.npy"))) == 2


def test_images_are_those_of_a_folder_of_the_same_content(tmp_path):
    for n in range(4):
        file = tmp_path / "folder" / f"c{n % 2}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n))
    folder = load(tmp_path / "folder", tmp_path)
    tar = load(write_tar(tmp_path / "a.tar", samples([0, 2, 1, 3], label="c{}")), tmp_path)
    assert tar.fingerprint == folder.fingerprint
    assert tar.classes == ("c0", "c1")


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [("*.tar", [0, 1, 2]), ("{000..001}.tar", [0, 1]), ("{000,002}.tar", [0, 2]),
     ("00[12].tar", [1, 2])],
)  # fmt: skip
def test_pattern_names_the_tars(tmp_path, pattern, numbers):
    for n in range(3):
        write_tar(tmp_path / "set" / f"{n:03}.tar", samples([n]))
    images = load(tmp_path / "set" / pattern, tmp_path, classes=None, require_labels=True)
    assert first_pixels(images) == [20 * n for n in numbers]


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "00[78].tar", "{9,99}/*.tar"])
def test_pattern_that_stands_for_no_file_is_refused(tmp_path, pattern):
    for n in range(3):
        write_tar(tmp_path / "set" / f"{n:03}.tar", samples([n]))
    with pytest.raises(DataError, match=r"no data at .*(003|00\[78\]|9/\*)\.tar: there is no such"):
        load(tmp_path / "set" / pattern, tmp_path)


def test_range_that_never_ends_is_refused(tmp_path):
    with pytest.raises(DataError, match="more than 100,000"):
        load(tmp_path / "{0..999999999}.tar", tmp_path)


@pytest.mark.parametrize("label", [None, "json.label"])
def test_labels_of_json(tmp_path, label):
    members = [
        member
        for n, name in enumerate(["owl", "emu", "owl"])
        for member in (
            (f"d/{n}.jpg", png(n, "JPEG")),
            (f"d/{n}.json", json.dumps({"label": name, "size": [1, 2]}).encode()),
        )
    ]
    images = load(write_tar(tmp_path / "a.tar", members), tmp_path, label_column=label)
    assert [images.classes[one] for one in images.labels] == ["owl", "emu", "owl"]


def test_members_that_are_not_read_are_reported(tmp_path):
    members = [*samples([0]), ("0000.pyd", b"never unpickled"), ("README", b""), ("._x", b"")]
    members += [*samples([1]), ("0001.pyd", b"")]
    images = load(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert images.passed_over == (
        "1 member without extension", "1 member hidden or of a system", "2 members .pyd",
    )  # fmt: skip


def test_images_of_several_formats_and_sizes(tmp_path):
    members = [("a.png", png(1)), ("b.JPEG", png(2, "JPEG", size=9)), ("c.webp", png(3, "WebP"))]
    images = load(write_tar(tmp_path / "a.tar", members), tmp_path, require_labels=False)
    assert not images.labelled
    assert [images.pixels.decode(n).shape for n in range(3)] == [(3, 4, 5), (3, 4, 9), (3, 4, 5)]
    assert images.place(1) == "a.tar/b.JPEG"


def test_image_column_is_chosen_among_several(tmp_path):
    members = [("a.jpg", png(1, "JPEG")), ("a.seg.png", png(2))]
    members += [("b.jpg", png(0, "JPEG")), ("b.seg.png", png(3))]
    path = write_tar(tmp_path / "a.tar", members)
    images = load(path, tmp_path, image_column="seg.png", require_labels=False)
    assert first_pixels(images) == [40, 60]
    with pytest.raises(DataError, match=r"several columns that may be the image.*Set data\.image"):
        load(path, tmp_path, require_labels=False)


@pytest.mark.parametrize("second", [["jpeg", "seg.png"], ["seg.png"]])
def test_mask_is_not_taken_for_the_image_whose_format_changes(tmp_path, second):
    names = ["a.jpg", "a.seg.png", *(f"b.{one}" for one in second)]
    path = write_tar(tmp_path / "a.tar", [(name, png(1)) for name in names])
    with pytest.raises(DataError, match="several images of different extensions"):
        load(path, tmp_path, require_labels=False)


def test_image_that_cannot_be_decoded_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*samples([0]), ("x.png", b"\x89PNG"), ("x.cls", b"1")])
    with pytest.raises(DataError, match=r"row 1 of split 'train' of .*\(a\.tar/x\.png\)"):
        load(path, tmp_path)


REFUSED = {
    "twice": ([("a.png", png(0)), ("a.png", png(1))], r"sample a include \.png twice"),
    "apart": (
        [("a.png", png(0)), ("b.png", png(1)), ("a.cls", b"0")], "sample a do not lie side by side",
    ),
    "no image": ([*samples([0]), ("meta.json", b"{}")], r"sample meta has no image, only \.json"),
    "no sample": ([("README", b"x")], r"holds no samples KEY\.EXTENSION"),
    "label list": ([("a.png", png(0)), ("a.json", b'{"label": [1]}')], r"label \[1\], wanted"),
    "no json": ([("a.png", png(0)), ("a.json", b'{"label": ')], r"a\.json is no JSON"),
    "binary label": ([("a.png", png(0)), ("a.cls", b"\xff\xfe")], "holds no label but binary data"),
    "unlabelled": ([*samples([0]), ("b.png", png(1))], "1 of the 2 rows .* have no label"),
    "first unlabelled": ([("b.png", png(1)), *samples([0])], "1 of the 2 rows .* have no label"),
    "no label": ([("a.png", png(0))], "no column of labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tar_whose_samples_are_not_clear_is_refused(tmp_path, name):
    members, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        load(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert "damaged" not in str(caught.value)


def test_label_that_no_sample_has_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([0, 1]))
    with pytest.raises(DataError, match=r"no sample .* in 'json\.id': its members are cls, png"):
        load(path, tmp_path, label_column="json.id")


def test_link_in_a_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([0]))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"member b\.png is not a regular file"):
        load(path, tmp_path)


def damaged(content, kind):
    """A tar of three samples, damaged: 3 KiB a sample, and 10 KiB in all with its end."""
    if kind == "header":  # of the third member, which tarfile takes for the end
        return content[:2048] + b"?" + content[2049:]
    if kind == "appended":
        return content + content
    if kind == "compressed":
        import gzip

        return gzip.compress(content)
    return content[
        : {"inside": 1100, "between members": 2048, "without end": 6144, "empty": 0}[kind]
    ]


@pytest.mark.parametrize(
    "kind",
    ["inside", "between members", "without end", "empty", "header", "appended", "compressed"],
)
def test_damaged_or_cut_off_tar_is_refused_by_name(tmp_path, kind):
    whole = write_tar(tmp_path / "whole.tar", samples([0, 1, 2])).read_bytes()
    assert whole[6144:].count(0) == len(whole) - 6144
    assert whole[5632:6144].count(0) < 512
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "000.tar", samples([4]))
    (tmp_path / "set" / "001.tar").write_bytes(damaged(whole, kind))
    with pytest.raises(DataError, match=r"001\.tar is damaged or cut off"):
        load(tmp_path / "set", tmp_path)


def test_member_of_negative_size_does_not_repeat_for_ever(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples([0]))
    header = bytearray(tarfile.TarInfo("._x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (256**11 - tarfile.BLOCKSIZE).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[:2048] + header + bytes(1024))
    with pytest.raises(DataError, match=r"member \._x has -512 bytes"):
        load(path, tmp_path)


def test_pipe_in_place_of_a_tar_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for source in ("a.tar", "[a].tar"):
        with pytest.raises(UnsafePathError, match=r"a\.tar is a pipe"):
            load(tmp_path / source, tmp_path)
