"""What lies in a data folder is read, passed over with a mention, or refused by name."""

import io
import json
import os
import re
import shutil
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdscale.data.image_dataset import describe_split, load_images
from kdscale.data.source import SourceOptions, open_source
from kdscale.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


@pytest.fixture(autouse=True)
def _own_cache_of_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def ppm(number, width=6):
    """An image that no other number gives, the same bytes with any version of Pillow."""
    pixels = bytes((7 * number + 3 * k) % 256 for k in range(width * 4 * 3))
    return b"P6 %d 4 255\n" % width + pixels


def png(number):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(ppm(number))).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, files):
    """Write files: names (an image each), or a table of names and contents."""
    contents = files if isinstance(files, dict) else {}
    for number, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = contents.get(name)
        path.write_bytes(ppm(number) if content is None else content)
    return folder


def write_table(path, labels=(0, 1), start=0, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": png(start + i), "path": None} for i in range(len(labels))]
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array(labels)})
    if names:
        about = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": about}})}
        )
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def load(folder, tmp_path, split="train", *, require_labels=True, **options):
    return load_images(
        str(folder), split=split, root=tmp_path / "root", require_labels=require_labels,
        options=SourceOptions(**options),
    )  # fmt: skip


def opened(folder, split="train", **options):
    options = SourceOptions(**options)
    return open_source(str(folder), split=split, require_labels=True, options=options)


def line_about(folder, split="train", **options):
    """The line that a command logs about a split."""
    return describe_split(opened(folder, split, **options))


PETS = ["train/cat/0.ppm", "train/dog/1.ppm", "test/cat/2.ppm", "test/dog/3.ppm"]


# --------------------------------------------------------------------------- as ever

# Computed by kdscale 0.1, which let `datasets` enumerate the files: caches name these fingerprints.
GOLDEN = {
    "splits": (
        ["train/cat/10.ppm", "train/cat/2.ppm", "train/cat/b.PPM", "train/a b/1.ppm",
         "train/a/1.ppm", "train/a-b/0.ppm", "train/A/0.ppm", "train/é/0.ppm", "test/cat/1.ppm",
         "test/a/9.ppm"],
        {"train": ("3ba22f74844e9d08", [0, 2, 3, 1, 4, 4, 4, 5]),
         "test": ("63bb8f451a454318", [1, 4])},
    ),
    "no splits": (
        ["dog/1.ppm", "dog/0.ppm", "cat/x.y.ppm", "Cat/z.ppm", "cat/é.ppm"],
        {"train": ("7895fec18582e984", [0, 1, 1, 2, 2])},
    ),
    "other names": (
        ["Training/b/0.ppm", "Training/a/0.ppm", "val/c/0.ppm", "val/a/1.ppm", "unlabeled/0.ppm"],
        {"train": ("340692dccdabfc94", [0, 1]), "test": ("52a68230c2ac2b52", [0, 2]),
         "unlabeled": ("42ebe90030e6f0bb", [-1])},
    ),
    "flat beside classes": (
        ["train/1.ppm", "train/0.ppm", "test/b/0.ppm", "test/a/1.ppm"],
        {"train": ("d4de58ad6fe7a512", [-1, -1]), "test": ("d66cd8a72fecab8f", [0, 1])},
    ),
    "flat": (["1.ppm", "0.ppm", "10.ppm"], {"train": ("ddf69877f606fa16", [-1, -1, -1])}),
    "one folder": (["x/1.ppm", "x/0.ppm"], {"train": ("d4de58ad6fe7a512", [-1, -1])}),
    "class named like a split": (
        ["bus/test_1.ppm", "bus/2.ppm", "train/val_3.ppm", "train/4.ppm"],
        {"train": ("d6beaae1e6465527", [0, 0, 1, 1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_well_formed_folder_is_read_as_ever(tmp_path, name):
    files, expected = GOLDEN[name]
    write(tmp_path / "set", files)
    for split, (fingerprint, labels) in expected.items():
        found = load(tmp_path / "set", tmp_path, split, require_labels=False)
        assert found.fingerprint.startswith(fingerprint)
        assert found.labels.tolist() == labels


def test_images_of_several_sizes_are_identified_as_ever(tmp_path):
    names = ["train/b/0.ppm", "train/a/1.ppm", "train/a/0.ppm", "test/a/0.ppm", "test/b/0.ppm"]
    write(tmp_path / "set", {name: ppm(i, 6 + i % 2) for i, name in enumerate(names)})
    assert load(tmp_path / "set", tmp_path).fingerprint.startswith("0457885bff442c9f")


def test_metadata_that_lists_all_images_is_read_as_ever(tmp_path):
    write(tmp_path / "set", ["train/a/0.ppm", "train/a/1.ppm", "train/b/2.ppm"])
    listed = "file_name,label\nb/2.ppm,dog\na/1.ppm,cat\na/0.ppm,dog\n"
    (tmp_path / "set" / "train" / "metadata.csv").write_text(listed)
    found = load(tmp_path / "set", tmp_path)
    assert found.fingerprint.startswith("3849597fec3c939f")
    assert found.classes == ("cat", "dog")


# --------------------------------------------------------------------------- read, or reported

READ_BY_CONTENT = {
    "without suffix": "train/dog/picture",
    "another suffix": "train/dog/picture.avif",
    "a suffix in capitals": "train/dog/picture.PNG",
    "a suffix less usual": "train/dog/picture.jfif",
}


@pytest.mark.parametrize("name", READ_BY_CONTENT.values(), ids=READ_BY_CONTENT)
def test_image_is_read_whatever_its_name(tmp_path, name):
    write(tmp_path / "set", PETS)
    write(tmp_path / "set", {name: png(9)})
    found = load(tmp_path / "set", tmp_path)
    assert found.labels.tolist() == [0, 1, 1]  # the name comes behind "1.ppm"
    expected = np.asarray(Image.open(io.BytesIO(png(9)))).transpose(2, 0, 1)
    np.testing.assert_array_equal(found.pixels[2], expected)


PASSED_OVER = {
    "train/cat/.DS_Store": r"1 hidden or system file \(\.DS_Store\)",
    "train/cat/Thumbs.db": r"1 hidden or system file \(Thumbs\.db\)",
    "train/._cat": r"1 hidden or system file \(\._cat\)",
    "__MACOSX/train/cat/0.ppm": r"1 hidden or system file \(__MACOSX\)",
    ".ipynb_checkpoints/0.ppm": r"1 hidden or system file",
    "train/cat/@eaDir/0.ppm": r"1 hidden or system file \(@eaDir\)",
    "train/cat/0.txt": r"1 file \.txt",
    "train/cat/0.json": r"1 file \.json",
    "train/dog/1.xml": r"1 file \.xml",
    "README.md": r"1 file \.md",
    "LICENSE": r"1 file LICENSE",
    "make.py": r"1 other file \(make\.py\)",
    "labels.npy": r"1 other file \(labels\.npy\)",
    "train.zip": r"1 other file \(train\.zip\)",
    "set.tar.gz": r"1 other file \(set\.tar\.gz\)",
    "train/cat.zip": r"1 other file \(train/cat\.zip\)",
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_companion_is_passed_over_and_reported(tmp_path, name):
    write(tmp_path / "set", PETS)
    write(tmp_path / "set", {name: b"something"})
    line = line_about(tmp_path / "set")
    assert line.startswith("data: 2 images of 2 classes (cat, dog), split 'train' of ")
    assert re.search(f"passed over: {PASSED_OVER[name]}", line)


def test_link_to_an_image_or_a_class_is_followed(tmp_path):
    write(tmp_path / "elsewhere", ["dog/1.ppm", "2.ppm"])
    write(tmp_path / "set", ["train/cat/0.ppm"])
    (tmp_path / "set/train/dog").symlink_to(tmp_path / "elsewhere/dog")
    (tmp_path / "set/train/cat/2.ppm").symlink_to(tmp_path / "elsewhere/2.ppm")
    assert load(tmp_path / "set", tmp_path).labels.tolist() == [0, 0, 1]


# --------------------------------------------------------------------------- refused by name

REFUSED = {
    "class folders in class folders": (
        ["train/cat/indoor/0.ppm", "train/cat/outdoor/1.ppm", "train/dog/indoor/2.ppm"],
        r"3 folders inside class folders \(train/cat/indoor, .*directly below its split",
    ),
    "one class folder in a class folder": (
        [*PETS, "train/cat/more/9.ppm"], r"1 folder inside class folders \(train/cat/more\)",
    ),
    "images pointed at from one level too high": (
        [f"pets/{name}" for name in PETS], r"inside class folders.*point --data at \S*/set/pets",
    ),
    "an image in no class": ([*PETS, "train/9.ppm"], r"1 image \(train/9\.ppm\) beside class"),
    "a file that is no image": (
        {**dict.fromkeys(PETS), "train/cat/0.heic": b"heic"}, r"1 file \(train/cat/0\.heic\)",
    ),
    "a film": ({**dict.fromkeys(PETS), "test/cat/0.mp4": b"film"}, r"\(test/cat/0\.mp4\)"),
    "a class of files that are not read": (
        {**dict.fromkeys(PETS), "train/owl/0.avif": b"\0\0\0\x1cftypavif"},
        r"1 class folder without an image .*\(train/owl\); 1 file \(train/owl/0\.avif\)",
    ),
    "an empty class": (
        {**dict.fromkeys(PETS), "train/owl/.keep": b""}, r"1 class folder .*\(train/owl\)",
    ),
    "two folders of one split": (
        [*PETS, "training/cat/9.ppm"], "train and training .* both name the split 'train'",
    ),
    "a split in capitals too": ([*PETS, "Test/cat/9.ppm"], "Test and test .* both name"),
    "validation twice": (
        ["train/cat/0.ppm", "val/cat/1.ppm", "dev/cat/2.ppm"], "dev and val .* both name",
    ),
    "folders that seem to be splits": (
        ["train_images/0.ppm", "test_images/1.ppm"],
        r"folders test_images, train_images .* rename them to test and train",
    ),
    "an archive nobody unpacked": (
        {**dict.fromkeys(PETS), "archive.zip": b"PK"}, r"1 archive \(archive\.zip\)",
    ),
    "an archive of a class": (
        {**dict.fromkeys(PETS), "train/owl.tar.gz": b"gz"}, r"1 archive \(train/owl\.tar\.gz\)",
    ),
    "classes that differ in case between splits": (
        ["train/cat/0.ppm", "train/dog/1.ppm", "test/Cat/2.ppm", "test/dog/3.ppm"],
        "classes 'Cat' and 'cat' .* differ only in case",
    ),
    "classes with a space behind": (
        ["train/cat/0.ppm", "train/cat /1.ppm"], "classes 'cat' and 'cat ' .* look alike",
    ),
    "metadata that lists some": (
        {**dict.fromkeys(PETS), "train/metadata.csv": b"file_name,label\ncat/0.ppm,a\n",
         "test/metadata.csv": b"file_name,label\ncat/2.ppm,a\ndog/3.ppm,b\n"},
        r"1 of 4 images \(train/dog/1\.ppm\) are in no metadata file",
    ),
    "metadata of one split": (
        {**dict.fromkeys(PETS),
         "train/metadata.csv": b"file_name,label\ncat/0.ppm,a\ndog/1.ppm,b\n"},
        r"2 of 4 images \(test/cat/2\.ppm, test/dog/3\.ppm\) are in no metadata",
    ),
    "metadata that lists one twice": (
        {"train/cat/0.ppm": None, "train/dog/1.ppm": None,
         "train/metadata.csv": b"file_name,label\ncat/0.ppm,a\ncat/0.ppm,a\ndog/1.ppm,b\n"},
        r"1 image \(train/cat/0\.ppm\) listed twice",
    ),
    "metadata beside the splits": (
        {**dict.fromkeys(PETS), "metadata.csv": b"file_name,label\ntrain/cat/0.ppm,a\n"},
        r"metadata\.csv lies beside the folders of the splits",
    ),
    "a pointer of Git LFS": (
        {**dict.fromkeys(PETS), "train/cat/9.png": POINTER}, r"9\.png.*Git LFS pointer.*lfs pull",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_among_images_is_refused_by_name(tmp_path, name):
    files, message = REFUSED[name]
    write(tmp_path / "set", files)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / "set", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "test")])
def test_classes_in_two_unicode_forms_are_refused(tmp_path, splits):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    names = [f"{split}/{form}/0.ppm" for split, form in zip(splits, forms, strict=True)]
    write(tmp_path / "set", [*names, "train/dog/1.ppm"])
    with pytest.raises(DataError, match=r"caf\\xe9.* and .*look alike|caf.*look alike"):
        load(tmp_path / "set", tmp_path)


def test_letters_in_both_cases_are_classes(tmp_path):
    write(tmp_path / "set", ["train/A/0.ppm", "train/a/1.ppm", "test/A/2.ppm"])
    assert load(tmp_path / "set", tmp_path).classes == ("A", "a")


def test_class_is_found_in_either_unicode_form(tmp_path):
    nfd = unicodedata.normalize("NFD", "café")
    write(tmp_path / "set", [f"{nfd}/0.ppm", "dog/1.ppm"])
    found = load(tmp_path / "set", tmp_path, classes=["dog", unicodedata.normalize("NFC", nfd)])
    assert found.classes == ("dog", nfd)


def test_link_to_nothing_a_pipe_and_a_circle_are_refused(tmp_path):
    write(tmp_path / "set", PETS)
    entry = tmp_path / "set/train/cat/x.png"
    entry.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"train/cat/x\.png is a link to nothing"):
        load(tmp_path / "set", tmp_path)
    entry.unlink()
    os.mkfifo(entry)
    with pytest.raises(DataError, match=r"x\.png is not a regular file"):
        load(tmp_path / "set", tmp_path)
    entry.unlink()
    entry.symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match=r"x\.png is a link to a folder around it"):
        load(tmp_path / "set", tmp_path)


@pytest.mark.parametrize("link", ["train/alias", "test", "train/dog/inner"])
def test_folder_that_a_link_lists_twice_is_refused(tmp_path, link):
    write(tmp_path / "set", ["train/cat/0.ppm", "train/dog/1.ppm"])
    (tmp_path / "set" / link).symlink_to(tmp_path / "set/train" / ("cat" if "/" in link else ""))
    with pytest.raises(DataError, match=r"are one folder, by a link"):
        load(tmp_path / "set", tmp_path)


# --------------------------------------------------------------------------- tables


def test_splits_of_tables_are_those_of_their_names(tmp_path):
    for number, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "mnist_test"]):
        write_table(tmp_path / "set" / f"{name}.parquet", start=10 * number)
    assert load(tmp_path / "set", tmp_path).num_samples == 4
    assert load(tmp_path / "set", tmp_path, "test").num_samples == 2
    write_table(tmp_path / "one" / "pictures.parquet")
    assert load(tmp_path / "one", tmp_path).num_samples == 2
    write_table(tmp_path / "hub" / "data" / "extra-00000-of-00001.parquet")
    write_table(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    assert load(tmp_path / "hub", tmp_path, "extra").num_samples == 2


TABLES = {
    "a shard is missing": (["train-00000-of-00002", "test"], "1 of the 2 shards of train; missing:"
                           " train-00001-of-00002"),
    "the first shard is missing": (["train-00001-of-00002"], "missing: train-00000-of-00002"),
    "two are missing": (["train-00001-of-00003"], "missing: train-00000-of-00003 and others"),
    "shards with a hash": (["train-00000-of-00002-0123456789abcdef"], "1 of the 2 shards"),
    "shards of two copies": (
        ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
        "shards of 1 and of 2 of train",
    ),
    "a split that is no one's": (["train", "test", "pictures"], "pictures.parquet names no split"),
    "two splits in one name": (["train_test", "train"], "names several splits"),
    "a copy beside": (["train", "train_old"], "no shards of one another"),
    "a downloaded twice": (["train", "train (1)"], "no shards of one another"),
    "two data sets": (["a/train", "b/train"], "no shards of one another"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_which_some_would_be_dropped_or_mixed_are_refused(tmp_path, name):
    files, message = TABLES[name]
    for file in files:
        write_table(tmp_path / "set" / f"{file}.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", tmp_path)


def test_single_file_that_is_one_shard_of_two_is_refused(tmp_path):
    write_table(tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="1 of the 2 shards"):
        load(tmp_path / "train-00000-of-00002.parquet", tmp_path)


TWO_SPLITS = "---\nconfigs:\n- config_name: default\n  data_files:\n"
TWO_SPLITS += (
    "".join(f"  - split: {s}\n    path: {s}.parquet\n" for s in ("train", "test")) + "---\n"
)


@pytest.mark.parametrize("others", [["dog", "cat"], ["plane", "ship"], ["bird", "cat", "dog"]])
@pytest.mark.parametrize(
    ("files", "card"),
    [
        (("train.parquet", "test.parquet"), None),
        (("train.parquet", "test.parquet"), TWO_SPLITS),
        (("train.arrow", "test.arrow"), None),
        (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"), None),
    ],
    ids=["parquet", "by card", "arrow", "shards of one split"],
)
def test_table_files_that_number_classes_differently_are_refused_by_name(
    tmp_path, files, card, others
):
    for file, names in zip(files, (["cat", "dog"], others), strict=True):
        write_table(tmp_path / "set" / file, names=names)
    if card:
        (tmp_path / "set" / "README.md").write_text(card)
    for split in {file.split("-")[0].split(".")[0] for file in files}:
        with pytest.raises(DataError, match="one number would mean two classes") as refused:
            load(tmp_path / "set", tmp_path, split)
        assert all(file in str(refused.value) for file in files)
        assert ", ".join(others) in str(refused.value)


@pytest.mark.parametrize(
    "path", ["../other/train.parquet", "/etc/train.parquet", "http://127.0.0.1:9/t.parquet",
             "data/../../x.parquet", "zip://x.parquet::http://127.0.0.1:9/t.zip"],
)  # fmt: skip
def test_card_that_names_files_elsewhere_is_refused_by_name(tmp_path, path):
    write_table(tmp_path / "other" / "train.parquet", names=["cat", "dog"])
    write_table(tmp_path / "set" / "train.parquet", names=["cat", "dog"])
    (tmp_path / "set" / "README.md").write_text(TWO_SPLITS.replace("train.parquet", path))
    with pytest.raises(DataError, match="is not below that folder") as refused:
        load(tmp_path / "set", tmp_path)
    assert path in str(refused.value)


def test_control_characters_in_names_of_classes_and_files_are_escaped(tmp_path):
    write(tmp_path / "set", {"train/a\x1b[31m\nb/0.ppm": ppm(0), "train/c/1.ppm": ppm(1)})
    assert r"(a\x1b[31m\nb, c)" in line_about(tmp_path / "set")
    write(tmp_path / "set", {"train/c/x\n\x1b[2J.png": b"no image"})
    with pytest.raises(DataError) as refused:
        load(tmp_path / "set", tmp_path)
    assert str(refused.value).isprintable()


def test_images_beside_tables_are_refused_either_way(tmp_path):
    write_table(tmp_path / "set" / "train.parquet")
    write(tmp_path / "set", {"cat/0.png": png(0), "dog/1.png": png(1)})
    with pytest.raises(DataError, match=r"both images \(cat/0\.png.*tables \(train\.parquet\)"):
        load(tmp_path / "set", tmp_path)


def test_several_formats_of_tables_are_refused(tmp_path):
    write_table(tmp_path / "set" / "train.parquet")
    (tmp_path / "set" / "train.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"several formats \(train\.arrow, train\.parquet\)"):
        load(tmp_path / "set", tmp_path)


def test_files_beside_tables_are_reported(tmp_path):
    write_table(tmp_path / "set" / "train.parquet")
    write(tmp_path / "set", {"notes.txt": b"", "extra.zip": b"PK", "a.json": b"", "b.json": b""})
    line = line_about(tmp_path / "set")
    assert "2 files .json" in line
    assert "1 other file (extra.zip)" in line


def test_pointer_of_git_lfs_is_named(tmp_path):
    write(tmp_path / "set", {"train.parquet": POINTER})
    for source in (tmp_path / "set", tmp_path / "set" / "train.parquet"):
        with pytest.raises(DataError, match=r"train\.parquet is a Git LFS pointer.*git lfs pull"):
            load(source, tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "images", "metadata"])
def test_replaced_file_of_the_same_time_and_size_is_read_anew(tmp_path, kind):
    path = tmp_path / "set" / "train.parquet"
    if kind in ("images", "metadata"):
        path = tmp_path / "set" / "train" / "cat" / "0.ppm"
        write(tmp_path / "set", ["train/cat/0.ppm", "train/dog/1.ppm"])
    if kind == "metadata":
        path = tmp_path / "set" / "train" / "metadata.csv"
        path.write_text("file_name,label\ncat/0.ppm,a\ndog/1.ppm,b\n")
    if kind in ("file", "folder"):
        write_table(path, labels=[0, 1])
    source = path if kind == "file" else tmp_path / "set"
    before, status = load(source, tmp_path), path.stat()
    if kind == "images":
        path.write_bytes(ppm(9))
    elif kind == "metadata":
        path.write_text("file_name,label\ncat/0.ppm,b\ndog/1.ppm,a\n")
    else:
        write_table(path, labels=[1, 0])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert load(source, tmp_path).fingerprint != before.fingerprint


def test_saved_set_with_a_file_too_many_or_too_few_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_table(tmp_path / "set" / "train.parquet", labels=[0, 1, 0, 1])
    rows = datasets.load_dataset(str(tmp_path / "set"))["train"]
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    assert load(tmp_path / "saved", tmp_path).num_samples == 4
    shard = tmp_path / "saved" / "data-00001-of-00002.arrow"
    shutil.copy(shard, tmp_path / "saved" / "data-00002-of-00003.arrow")
    with pytest.raises(DataError, match=r"not part of .*data-00002-of-00003\.arrow"):
        load(tmp_path / "saved", tmp_path)
    (tmp_path / "saved" / "data-00002-of-00003.arrow").unlink()
    shard.unlink()
    with pytest.raises(DataError, match=r"misses 1 of its 2 files \(data-00001-of-00002\.arrow\)"):
        load(tmp_path / "saved", tmp_path)


# --------------------------------------------------------------------------- configurations

CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train.parquet}
- config_name: large
  data_files:
  - {split: train, path: large/train.parquet}
---
# Two of them
"""


def test_one_of_several_configurations_is_chosen(tmp_path):
    write_table(tmp_path / "set" / "small" / "train.parquet")
    write_table(tmp_path / "set" / "large" / "train.parquet", labels=[0, 1, 0], start=5)
    (tmp_path / "set" / "README.md").write_text(CARD)
    with pytest.raises(DataError, match=r"several configurations: it has small, large\. Set data"):
        load(tmp_path / "set", tmp_path)
    with pytest.raises(DataError, match=r"no configuration 'huge': it has small, large"):
        load(tmp_path / "set", tmp_path, config="huge")
    assert load(tmp_path / "set", tmp_path, config="large").num_samples == 3
    line = line_about(tmp_path / "set", config="small")
    assert "2 images" in line
    assert "1 other file (large/train.parquet)" in line


def test_configuration_where_there_are_none_is_refused(tmp_path):
    write_table(tmp_path / "set" / "train.parquet")
    write(tmp_path / "pets", PETS)
    for folder in ("set", "pets"):
        with pytest.raises(DataError, match=r"data\.config is 'small'"):
            load(tmp_path / folder, tmp_path, config="small")


def test_files_that_the_card_puts_into_two_splits_are_refused(tmp_path):
    write_table(tmp_path / "set" / "all.parquet")
    splits = "".join(f"  - {{split: {one}, path: all.parquet}}\n" for one in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    with pytest.raises(DataError, match=r"all\.parquet would be read as part of two splits"):
        load(tmp_path / "set", tmp_path)


def test_card_without_configurations_names_the_classes(tmp_path):
    write_table(tmp_path / "set" / "train.parquet")
    card = (
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
        "    dtype:\n      class_label:\n        names: {'0': cat, '1': dog}\n---\n"
    )
    (tmp_path / "set" / "README.md").write_text(card)
    assert load(tmp_path / "set", tmp_path).classes == ("cat", "dog")


# --------------------------------------------------------------------------- labels

NUMBERED = {
    "a name of another label": (["1", "2", "10"], [1, 2], "label 1 is '10': write .* \"1\""),
    "a name beyond the labels": (["1", "2", "10"], [2, 10], "label 2 is '2'|write the name"),
    "no name at all": (["1", "2", "10"], [0, 5], "no class named 0: it has 1, 10, 2"),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_number_that_may_be_a_name_is_refused(tmp_path, name):
    folders, classes, message = NUMBERED[name]
    write(tmp_path / "set", [f"{folder}/{i}.ppm" for i, folder in enumerate(folders)])
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", tmp_path, classes=classes)


def test_number_is_a_label_where_it_is_its_own_name_or_none(tmp_path):
    write(tmp_path / "digits", [f"{digit}/{digit}.ppm" for digit in range(4)])
    assert load(tmp_path / "digits", tmp_path, classes=[3, 1]).classes == ("3", "1")
    write(tmp_path / "pets", ["cat/0.ppm", "dog/1.ppm"])
    assert load(tmp_path / "pets", tmp_path, classes=[1, 0]).classes == ("dog", "cat")
    write(tmp_path / "set", [f"{folder}/0.ppm" for folder in ("1", "2", "10")])
    assert load(tmp_path / "set", tmp_path, classes=["1", "2"]).classes == ("1", "2")


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary", "uint8", "bool_"])
def test_labels_of_any_type_of_text_or_integers_are_read(tmp_path, kind):
    labels = ["b", "a"] if kind not in ("uint8", "bool_") else [1, 0]
    column = pa.array(labels)
    column = (
        column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pa, kind)())
    )
    write_table(tmp_path / "train.parquet", column)
    assert load(tmp_path / "train.parquet", tmp_path).labels.tolist() == [1, 0]


def test_images_as_binary_view_are_read(tmp_path):
    for kind in (pa.binary_view(), pa.large_binary()):
        table = pa.table({"image": pa.array([png(0), png(1)], kind), "label": [0, 1]})
        pq.write_table(table, tmp_path / "train.parquet")
        found = load(tmp_path / "train.parquet", tmp_path)
        assert found.pixels.shape == (2, 3, 4, 6)


def test_labels_beyond_all_integers_are_one_line(tmp_path):
    write_table(tmp_path / "train.parquet", pa.array([2**63, 2**63 + 1], pa.uint64()))
    with pytest.raises(DataError, match=r"numbers up to 9223372036854775809, too large") as error:
        load(tmp_path / "train.parquet", tmp_path)
    assert "\n" not in str(error.value)


def test_text_labels_that_look_alike_are_refused(tmp_path):
    write_table(tmp_path / "train.parquet", ["café", unicodedata.normalize("NFD", "café")])
    with pytest.raises(DataError, match="look alike"):
        load(tmp_path / "train.parquet", tmp_path)


def test_split_without_labels_may_have_folders_of_any_depth(tmp_path):
    write(tmp_path / "set", ["train/a/b/0.ppm", "train/c/1.ppm", "train/2.ppm",
                             "test/cat/3.ppm", "test/dog/4.ppm"])  # fmt: skip
    with pytest.raises(DataError):
        load(tmp_path / "set", tmp_path, require_labels=False)
    train = load(tmp_path / "set", tmp_path, require_labels=False, unlabelled=("train",))
    assert train.labels.tolist() == [-1, -1, -1]
    assert train.classes == ()
    test = load(tmp_path / "set", tmp_path, "test", unlabelled=("train",))
    assert test.classes == ("cat", "dog")
    (tmp_path / "set" / "train" / "c" / "film.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/c/film\.mp4"):
        load(tmp_path / "set", tmp_path, require_labels=False, unlabelled=("train",))


def test_column_of_labels_is_not_read_of_a_split_without_labels(tmp_path):
    write_table(tmp_path / "set" / "train.parquet", labels=(0, 7))
    images = load(tmp_path / "set", tmp_path, require_labels=False, unlabelled=("train",))
    assert images.labels.tolist() == [-1, -1]
