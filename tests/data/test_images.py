import errno
import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import kdscale
from kdscale.data import decoded_folder, decoded_store
from kdscale.data.decode import decode_image
from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.source import SourceOptions
from kdscale.errors import DataError, StorageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL_MNIST = Path(kdscale.__file__).parent / "assets" / "mnist-small"
CLASSES = ["cat", "dog", "frog"]


@pytest.fixture(autouse=True)
def _no_network_and_own_cache(tmp_path, monkeypatch):
    """`datasets` reads the environment when it is imported, maybe long ago."""
    datasets = pytest.importorskip("datasets")
    hub_constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "hf" / "modules")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def picture(index, mode="RGB", size=(6, 4)):
    """A picture that no other index gives, exact under PNG."""
    width, height = size
    pixels = np.arange(height * width * 3).reshape(height, width, 3) * 3 + 7 * index
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image):
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def write_table(path, images, labels=None, *, names=None, columns=("image", "label"), **extra):
    """A parquet file as the hub has them; `names` makes the labels a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [image if image is None else {"bytes": image, "path": None} for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = {columns[0]: pa.array(cells, kind)}
    features = {columns[0]: {"_type": "Image"}}
    if labels is not None:
        table[columns[1]] = pa.array(labels)
        features[columns[1]] = {"_type": "Value", "dtype": str(table[columns[1]].type)}
    if names is not None:
        features[columns[1]] = {"_type": "ClassLabel", "names": names}
    for name, values in extra.items():
        table[name] = pa.array(values)
        features[name] = {"_type": "Value", "dtype": str(table[name].type)}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path)
    return path


def write_images(folder, layout):
    """Image files by relative path."""
    for index, name in enumerate(layout):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(index)))
    return folder


@pytest.fixture
def source(tmp_path):
    """Nine rows of three classes, and three held out."""
    folder = tmp_path / "animals"
    images = [encode(picture(index)) for index in range(12)]
    labels = [index % 3 for index in range(12)]
    write_table(folder / "train-00000-of-00001.parquet", images[:9], labels[:9], names=CLASSES)
    write_table(folder / "test-00000-of-00001.parquet", images[9:], labels[9:], names=CLASSES)
    return folder


def load(source, root, split="train", *, require_labels=True, **options):
    options = SourceOptions(**options)
    return load_images(
        str(source), split=split, root=root, require_labels=require_labels, options=options
    )


def store_folders(root):
    return sorted(path for path in (root / "images").iterdir() if path.is_dir())


# --------------------------------------------------------------------------- sources


def test_importing_images_does_not_import_datasets():
    code = "import sys, kdscale.data.image_dataset; sys.exit('datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(kdscale.__file__).parents[1])


def test_parquet_folder_gives_pixels_labels_and_names(source, root):
    images = load(source, root)
    assert isinstance(images, ImageDataset)
    assert isinstance(images.pixels, np.memmap)
    assert not images.pixels.flags.writeable
    assert images.pixels.flags.c_contiguous
    assert images.pixels.dtype == np.uint8
    assert images.labels.dtype == np.int64
    assert images.classes == tuple(CLASSES)
    assert (images.num_samples, images.num_classes, images.labelled) == (9, 3, True)
    assert (images.name, images.split) == (str(source), "train")
    np.testing.assert_array_equal(images.labels, [0, 1, 2] * 3)
    expected = np.stack([pixels_of(picture(index)) for index in range(9)])
    np.testing.assert_array_equal(images.pixels, expected)


def test_single_parquet_file_takes_its_split_from_its_name(source, root):
    held_out = load(source / "test-00000-of-00001.parquet", root, split="test")
    np.testing.assert_array_equal(held_out.pixels, load(source, root, split="test").pixels)
    other = write_table(source.parent / "pets.parquet", [encode(picture(0))] * 2, [0, 1])
    assert load(other, root, split="train").classes == ("0", "1")


def test_path_with_glob_characters_is_taken_literally(tmp_path, root):
    path = write_table(tmp_path / "v[1]*" / "train.parquet", [encode(picture(0))], [0])
    folder = write_images(tmp_path / "i[1]", ["cat/0.png", "dog/1.png"])
    assert load(path, root).num_samples == 1
    assert load(folder, root).num_samples == 2


def test_saved_dataset_and_saved_splits_are_read(source, root, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = datasets.load_dataset(str(source))
    splits.save_to_disk(str(tmp_path / "saved"))
    splits["test"].save_to_disk(str(tmp_path / "saved-test"))
    expected = load(source, root, split="test")
    for folder in ("saved", "saved-test"):
        found = load(tmp_path / folder, root, split="test")
        assert found.fingerprint == expected.fingerprint


def test_image_folder_takes_classes_from_folders_of_all_splits(tmp_path, root):
    folder = write_images(
        tmp_path / "pets",
        ["train/cat/0.png", "train/dog/1.png", "train/frog/2.png", "val/frog/3.png"],
    )
    images, held_out = load(folder, root), load(folder, root, split="test")
    assert images.classes == held_out.classes == ("cat", "dog", "frog")
    assert held_out.split == "validation"
    assert held_out.labels.tolist() == [2]
    np.testing.assert_array_equal(held_out.pixels[0], pixels_of(picture(3)))


def test_image_folder_keeps_files_and_classes_named_like_splits(tmp_path, root):
    folder = write_images(
        tmp_path / "vehicles", ["bus/test_1.png", "bus/2.png", "train/val_3.png", "train/4.png"]
    )
    images = load(folder, root)
    assert images.classes == ("bus", "train")
    assert images.num_samples == 4


def test_image_folder_with_splits_and_others_is_refused(tmp_path, root):
    folder = write_images(
        tmp_path / "mixed", ["train/cat/0.png", "train/dog/1.png", "old/cat/2.png"]
    )
    with pytest.raises(DataError, match=r"both split folders \(train\) and others \(old\)"):
        load(folder, root)


def test_flat_image_folder_has_no_labels(tmp_path, root):
    folder = write_images(tmp_path / "flat", ["train/0.png", "train/1.png", "test/2.png"])
    with pytest.raises(DataError, match=r"no column of labels.*two or more class folders"):
        load(folder, root)
    images = load(folder, root, require_labels=False)
    assert images.labels.tolist() == [-1, -1]
    assert images.classes == ()
    assert not images.labelled


def test_small_mnist_asset_is_read(root, caplog):
    caplog.set_level("INFO", "kdscale")
    images = load(SMALL_MNIST, root, split="test")
    assert "passed over" not in caplog.text
    assert images.pixels.shape == (2000, 1, 28, 28)
    assert images.classes == tuple("0123456789")
    assert np.bincount(images.labels).min() >= 150
    assert sum(path.stat().st_size for path in SMALL_MNIST.iterdir()) <= 3_000_000


def test_test_split_falls_back_to_validation_and_never_back(tmp_path, root):
    write_table(tmp_path / "a" / "valid.parquet", [encode(picture(0))], [0])
    assert load(tmp_path / "a", root, split="test").split == "validation"
    assert load(tmp_path / "a", root, split="valid").split == "validation"
    write_table(tmp_path / "b" / "test.parquet", [encode(picture(0))], [0])
    with pytest.raises(DataError, match=r"no split 'validation': it has test"):
        load(tmp_path / "b", root, split="validation")


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "a/b/c", "../x/y", "x.parquet", "~/no-such"]
)
def test_missing_path_is_reported_at_once(name, root):
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"no such file or folder.*--data at a local copy"):
        load(name, root)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_hub_name_that_cannot_be_reached_tells_both_readings(name, root):
    with pytest.raises(DataError, match=r"no such file or folder in .*of the hub.*local copy"):
        load(name, root)


def test_revision_is_of_a_data_set_of_the_hub_alone(source, root, monkeypatch):
    datasets = pytest.importorskip("datasets")
    load_dataset, seen = datasets.load_dataset, []

    def from_the_hub(name, config, revision):
        seen.append((name, config, revision))
        return load_dataset("parquet", data_files=str(source / "train-*.parquet"))

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    assert load("user/animals", root, revision="v1.2").num_samples == 9
    assert seen == [("user/animals", None, "v1.2")]
    with pytest.raises(DataError, match=r"data\.revision is 'v1\.2', but .* is local"):
        load(source, root, revision="v1.2")


def test_folder_without_images_or_of_something_else_is_refused(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty folder"):
        load(tmp_path / "empty", root)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("a,label\n1,0\n")
    with pytest.raises(DataError, match=r"no images, nor tables of images: it has train\.csv"):
        load(tmp_path / "text", root)
    (tmp_path / "one.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"wanted a \.parquet, \.arrow or \.tar file"):
        load(tmp_path / "one.zip", root)


def test_damaged_parquet_is_one_clear_message(source, root):
    path = source / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be opened as a data set"):
        load(source, root)


def test_empty_split_is_refused(tmp_path, root):
    write_table(tmp_path / "t" / "train.parquet", [encode(picture(0))], [0])
    write_table(tmp_path / "t" / "test.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(DataError, match="holds a split that is empty"):
        load(tmp_path / "t", root)
    datasets = pytest.importorskip("datasets")
    nothing = datasets.Dataset.from_dict({"image": [], "label": []})
    nothing.save_to_disk(tmp_path / "a")
    datasets.DatasetDict(train=nothing).save_to_disk(tmp_path / "b")
    for folder in ("a", "b"):
        with pytest.raises(DataError, match="is empty: "):
            load(tmp_path / folder, root)


def test_full_disk_under_datasets_is_a_storage_error(source, root, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        cause = OSError(errno.ENOSPC, "No space left on device")
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from cause

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(StorageError, match=r"No space left on device.*HF_HOME"):
        load(source, root)


# --------------------------------------------------------------------------- columns and labels


def test_columns_can_be_named(tmp_path, root):
    path = write_table(
        tmp_path / "train.parquet",
        [encode(picture(0)), encode(picture(1))],
        [0, 1],
        columns=("photo", "kind"),
        kind2=["b", "a"],
    )
    with pytest.raises(DataError, match=r"no column of labels: columns are photo \(Image\), kind"):
        load(path, root)
    assert load(path, root, label_column="kind").labels.tolist() == [0, 1]
    assert load(path, root, image_column="photo", label_column="kind2").classes == ("a", "b")
    with pytest.raises(DataError, match=r"no column 'kimd'.*data\.label"):
        load(path, root, label_column="kimd")
    with pytest.raises(DataError, match=r"'kind' .*holds no encoded images"):
        load(path, root, image_column="kind")


def test_ambiguous_columns_are_listed(tmp_path, root):
    one = encode(picture(0))
    pq.write_table(pa.table({"image": [one], "label": [0], "labels": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"may be the label: .*label \(int64\), labels \(int64\)"):
        load(tmp_path / "a.parquet", root)
    table = pa.table({"left": [one], "right": [one], "label": [0]})
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"may be the image: .*left \(binary\), right \(binary\)"):
        load(tmp_path / "b.parquet", root)
    assert load(tmp_path / "b.parquet", root, image_column="left").num_samples == 1


def test_coarse_labels_do_not_compete_with_fine_ones(tmp_path, root):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=CLASSES),
        coarse_label=datasets.ClassLabel(names=["a", "b"]),
    )
    rows = {"img": [picture(0)], "fine_label": [2], "coarse_label": [0]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "c")
    assert load(tmp_path / "c", root).classes == tuple(CLASSES)
    assert load(tmp_path / "c", root, label_column="coarse_label").classes == ("a", "b")


def test_plain_labels_are_numbered_alike_in_all_splits(tmp_path, root):
    images = [encode(picture(index)) for index in range(4)]
    write_table(tmp_path / "s" / "train.parquet", images, ["d", "b", "a", "c"])
    write_table(tmp_path / "s" / "test.parquet", images[:2], ["d", "b"])
    held_out = load(tmp_path / "s", root, split="test")
    assert held_out.classes == ("a", "b", "c", "d")
    assert held_out.labels.tolist() == [3, 1]
    write_table(tmp_path / "i" / "train.parquet", images, [3, 2, 1, 0])
    write_table(tmp_path / "i" / "test.parquet", images[:2], [3, 1])
    held_out = load(tmp_path / "i", root, split="test")
    assert held_out.classes == ("0", "1", "2", "3")
    assert held_out.labels.tolist() == [3, 1]


def test_integer_labels_with_gaps_are_refused_unless_listed(tmp_path, root):
    path = write_table(tmp_path / "t.parquet", [encode(picture(i)) for i in range(3)], [1, 5, 9])
    with pytest.raises(DataError, match=r"labels .* are 1, 5, 9: wanted 0\.\.n-1"):
        load(path, root)
    images = load(path, root, classes=[9, 1])
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("9", "1")


def test_labels_of_a_useless_type_or_range_are_refused(tmp_path, root):
    path = write_table(tmp_path / "f.parquet", [encode(picture(0))], [0.5])
    with pytest.raises(DataError, match="no column of labels"):
        load(path, root)
    with pytest.raises(DataError, match="is float64, not labels"):
        load(path, root, label_column="label")
    path = write_table(tmp_path / "g.parquet", [encode(picture(0))], [3], names=CLASSES)
    with pytest.raises(DataError, match=r"row 0 .* has label 3 .*wanted 0\.\.2"):
        load(path, root)


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_unlabelled_rows_need_permission(tmp_path, root, labels):
    images = [encode(picture(0)), encode(picture(1))]
    values = pa.array(labels, pa.int64())
    path = write_table(tmp_path / "t.parquet", images, values, names=CLASSES)
    with pytest.raises(
        DataError, match=r"2 of the 2 rows .* no label .*the first of them row 0.*hard_weight"
    ):
        load(path, root)
    found = load(path, root, require_labels=False)
    assert found.labels.tolist() == [-1, -1]
    assert found.classes == tuple(CLASSES)
    assert load(path, root, require_labels=False, classes=["frog", 0]).classes == ("frog", "cat")


def test_no_label_column_takes_class_names_from_the_user(tmp_path, root):
    path = write_table(tmp_path / "t.parquet", [encode(picture(0)), encode(picture(1))])
    assert load(path, root, require_labels=False).classes == ()
    found = load(path, root, require_labels=False, classes=["a", "b", "c"])
    assert (found.num_samples, found.classes) == (2, ("a", "b", "c"))


@pytest.mark.parametrize("labels", [["cat", "", "dog"], ["cat", "\u200b ", "dog"]])
def test_empty_class_name_is_refused_with_its_row(tmp_path, root, labels):
    images = [encode(picture(number)) for number in range(3)]
    path = write_table(tmp_path / "t.parquet", images, labels)
    with pytest.raises(DataError, match=r"row 1 of .*, column 'label', has the empty class name"):
        load(path, root)
    path = write_table(tmp_path / "u.parquet", images, [0, 1, 2], names=labels)
    with pytest.raises(DataError, match=r"class 1 of .*, column 'label', has the empty class name"):
        load(path, root)


def test_class_subset_filters_and_renumbers_in_the_order_given(source, root):
    images = load(source, root, classes=["frog", "cat"])
    assert images.classes == ("frog", "cat")
    assert images.labels.tolist() == [1, 0] * 3
    expected = np.stack([pixels_of(picture(index)) for index in (0, 2, 3, 5, 6, 8)])
    np.testing.assert_array_equal(images.pixels, expected)
    assert load(source, root, classes=[2, 0]).fingerprint == images.fingerprint
    assert load(source, root, classes=[0, 2]).fingerprint != images.fingerprint


def test_wrong_class_subset_names_the_nearest(source, root):
    with pytest.raises(DataError, match=r"no class 'fog'\. Nearest: 'frog'"):
        load(source, root, classes=["fog"])
    with pytest.raises(DataError, match=r"no class 3: its labels are 0\.\.2"):
        load(source, root, classes=[3])
    with pytest.raises(DataError, match="wanted each class once"):
        load(source, root, classes=["cat", 0])


# --------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_sets_keep_one_channel(tmp_path, root, mode):
    grey = [picture(index, mode) for index in range(3)]
    images = load(write_table(tmp_path / "t.parquet", map(encode, grey), [0, 1, 2]), root)
    expected = np.stack([pixels_of(image.convert("L")) for image in grey])
    np.testing.assert_array_equal(images.pixels, expected)


def test_16_bit_grey_keeps_its_upper_bits(tmp_path, root):
    deep = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    path = write_table(tmp_path / "t.parquet", [encode(Image.fromarray(deep))], [0])
    assert load(path, root).pixels.tolist() == [[[[0, 0, 1], [128, 254, 255]]]]


def test_palette_of_greys_is_grey_and_of_colours_is_rgb(tmp_path, root):
    grey = picture(0, "L").convert("RGB").quantize(256)
    path = write_table(tmp_path / "g.parquet", [encode(grey), encode(picture(1, "L"))], [0, 1])
    images = load(path, root)
    assert images.pixels.shape[1] == 1
    np.testing.assert_array_equal(images.pixels[0], pixels_of(grey.convert("L")))
    colour = picture(0).quantize(256)
    images = load(write_table(tmp_path / "c.parquet", [encode(colour)], [0]), root)
    np.testing.assert_array_equal(images.pixels[0], pixels_of(colour.convert("RGB")))


def test_grey_images_inside_a_colour_set_are_repeated(tmp_path, root):
    first = [encode(picture(index, "L")) for index in range(3)]
    path = write_table(tmp_path / "t.parquet", [*first, encode(picture(3))], [0, 1, 2, 3])
    images = load(path, root)
    assert images.pixels.shape == (4, 3, 4, 6)
    for channel in range(3):
        np.testing.assert_array_equal(images.pixels[0, channel], np.asarray(picture(0, "L")))


def test_transparent_parts_are_laid_on_white():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    clear.putpixel((1, 0), (10, 20, 30, 0))
    expected = [[[10, 255]], [[20, 255]], [[30, 255]]]
    assert decode_image(encode(clear), 3).tolist() == expected
    assert decode_image(encode(clear.quantize(4)), 3).tolist() == expected
    grey = clear.getchannel("R").convert("LA")
    grey.putpixel((1, 0), (10, 0))
    assert decode_image(encode(grey), 3).tolist() == [[[10, 255]]] * 3
    keyed = Image.fromarray(np.array([[10, 20]], dtype=np.uint8))
    assert decode_image(encode(keyed, transparency=20), 1).tolist() == [[[10, 255]]]


def test_cmyk_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = decode_image(encode(red, "JPEG", quality=100), 3)
    np.testing.assert_allclose(pixels[:, 0, 0], [255, 0, 0], atol=3)


def test_exif_orientation_is_applied():
    upright = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(turned, 3), pixels_of(upright))


def test_sizes_that_differ_leave_the_set_encoded(tmp_path, root):
    images = [encode(picture(0)), encode(picture(1)), encode(picture(2, size=(5, 4)))]
    found = load(write_table(tmp_path / "t.parquet", images, [0, 1, 2]), root)
    assert not found.one_size
    assert found.pixels.headers.sizes == ((4, 4), (5, 6))
    np.testing.assert_array_equal(found.pixels.decode(2), pixels_of(picture(2, size=(5, 4))))
    assert store_folders(root) == []


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_unusable_image_is_named_by_its_row_in_the_split(tmp_path, root, mode, damage):
    images = [encode(picture(index, mode, (40, 30))) for index in range(6)]
    images[4] = {"truncated": images[4][:60], "text": b"not an image", "empty": b""}.get(damage)
    path = write_table(tmp_path / "t.parquet", images, [0, 1] * 3)
    with pytest.raises(DataError, match="row 4 of split 'train' of "):
        load(path, root, classes=[0])
    assert not (root / "images").exists() or store_folders(root) == []


def test_missing_image_file_is_named(tmp_path, root):
    folder = write_images(tmp_path / "pets", ["cat/0.png", "dog/1.png"])
    load(folder, root)
    (folder / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"row 1 of split 'train'"):
        load(folder, root)


def test_tiff_of_floats_is_refused(tmp_path, root):
    deep = Image.fromarray(np.ones((4, 4), dtype=np.float32))
    path = write_table(tmp_path / "t.parquet", [encode(deep, "TIFF")], [0])
    with pytest.raises(DataError, match=r"grey levels 1\.\.1: set data\.grey_range"):
        load(path, root)


# --------------------------------------------------------------------------- store


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often a split is decoded."""
    calls, decode = [], decoded_folder.decode

    def counted(encoded, *rest):
        calls.append(encoded.split)
        return decode(encoded, *rest)

    monkeypatch.setattr(decoded_folder, "decode", counted)
    return calls


def test_store_is_reused_and_known_by_content(source, root, decodings, tmp_path):
    first = load(source, root)
    copy = tmp_path / "elsewhere"
    source.rename(copy)
    second = load(copy, root)
    assert decodings == ["train"]
    assert second.fingerprint == first.fingerprint
    assert second.name == str(copy)
    np.testing.assert_array_equal(second.pixels, first.pixels)


def test_changed_source_is_decoded_anew(tmp_path, root, decodings):
    images = [encode(picture(index)) for index in range(3)]
    prints = set()
    for name, rows, labels, names in (
        ("a", images, [0, 1, 2], CLASSES),
        ("b", images[::-1], [0, 1, 2], CLASSES),
        ("c", images, [0, 1, 1], CLASSES),
        ("d", images, [0, 1, 2], ["a", "b", "c"]),
    ):
        path = write_table(tmp_path / f"{name}.parquet", rows, labels, names=names)
        prints.add(load(path, root).fingerprint)
    assert len(prints) == len(decodings) == 4


def test_fingerprint_is_of_pixels_not_of_files(tmp_path, root, decodings):
    prints = set()
    for level in (0, 9):
        images = [encode(picture(index), compress_level=level) for index in range(2)]
        path = write_table(tmp_path / f"{level}.parquet", images, [0, 1])
        prints.add(load(path, root).fingerprint)
    assert len(prints) == 1
    assert len(decodings) == 2


def test_fingerprint_is_frozen(source, root):
    """A change breaks every cache that names it: raise source_key.VERSION only knowingly."""
    assert load(source, root).fingerprint.startswith("3e1d033c0cff9b7f")


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES = ["pixel", "header", "label", "json", "pixels-short", "labels-short", "json-short"]
DAMAGES += ["pixels-empty", "labels-gone", "json-list"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "pixels.npy", -1),
        lambda folder: flip(folder / "pixels.npy", 20),
        lambda folder: flip(folder / "labels.npy", -8),
        lambda folder: flip(folder / "images.json", 30),
        lambda folder: truncate(folder / "pixels.npy"),
        lambda folder: truncate(folder / "labels.npy"),
        lambda folder: truncate(folder / "images.json"),
        lambda folder: (folder / "pixels.npy").write_bytes(b""),
        lambda folder: (folder / "labels.npy").unlink(),
        lambda folder: (folder / "images.json").write_text("[]"),
    ],
    ids=DAMAGES,
)
def test_damaged_store_is_decoded_again_with_a_warning(source, root, decodings, caplog, damage):
    first = load(source, root)
    expected = np.array(first.pixels)
    damage(store_folders(root)[0])
    with caplog.at_level(logging.WARNING):
        second = load(source, root)
    assert "are damaged" in caplog.text
    assert len(decodings) == 2
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.pixels, expected)
    np.testing.assert_array_equal(second.labels, first.labels)
    caplog.clear()
    load(source, root)
    assert len(decodings) == 2
    assert caplog.text == ""


def test_leftovers_of_killed_runs_are_removed(source, root):
    load(source, root)
    (folder,) = store_folders(root)
    leftover = folder.parent / f".{folder.name}.0123.partial"
    folder.rename(leftover)
    load(source, root)
    assert store_folders(root) == [folder]


def test_failed_decoding_leaves_nothing_and_can_be_repeated(source, root, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoded_folder, "_flush", full)
    with pytest.raises(StorageError, match=r"No space left on device.*--cache-root"):
        load(source, root)
    assert not root.exists()
    monkeypatch.undo()
    assert load(source, root).num_samples == 9


def test_root_that_cannot_be_a_folder_is_a_storage_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the decoded images"):
        load(source, tmp_path / "file")


def test_finished_store_is_read_without_writing(source, root, monkeypatch):
    expected = load(source, root)
    monkeypatch.setattr(decoded_store, "_decode_into", None)
    assert load(source, root).fingerprint == expected.fingerprint


def test_store_works_where_locks_do_not(source, root, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    lockless = SimpleNamespace(
        flock=unsupported, LOCK_EX=0, LOCK_NB=0
    )  # only here, not in datasets
    monkeypatch.setattr(decoded_store, "fcntl", lockless)
    assert load(source, root).num_samples == 9
    assert len(store_folders(root)) == 1


def test_loser_of_a_race_uses_the_copy_of_the_winner(source, root, monkeypatch):
    publish = decoded_store._publish

    def lose(partial, folder):
        publish(partial, folder)  # as if the other process had just done so
        partial.mkdir()
        (partial / "late").write_text("")
        publish(partial, folder)

    monkeypatch.setattr(decoded_store, "_publish", lose)
    assert load(source, root).num_samples == 9
    assert [path.name for path in store_folders(root)[0].glob("late")] == []
    assert len(store_folders(root)) == 1


@pytest.mark.thorough
def test_processes_may_decode_at_once(source, root, tmp_path):
    code = (
        "import sys, pathlib; from kdscale.data.image_dataset import load_images as load;"
        "print(load(sys.argv[1], split='train', root=pathlib.Path(sys.argv[2])).fingerprint)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(kdscale.__file__).parents[1],
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({printed for printed, _ in outputs}) == 1
    assert all(len(printed.split()) == 1 for printed, _ in outputs)  # no bars on stdout
    assert len(store_folders(root)) == 1
    assert load(source, root).fingerprint == outputs[0][0].strip()


# --------------------------------------------------------------------------- real sets


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split", "shape", "found"),
    [
        ("mnist", "test", (10_000, 1, 28, 28), "test"),
        ("cifar10", "test", (10_000, 3, 32, 32), "test"),
        ("tiny-imagenet", "test", (10_000, 3, 64, 64), "validation"),
    ],
)
def test_real_sets_are_read(name, split, shape, found, root):
    images = load(SHARED / name, root, split=split)
    assert images.pixels.shape == shape
    assert images.split == found
    assert images.labelled
    assert set(np.unique(images.labels)) == set(range(images.num_classes))


@pytest.mark.shared
def test_second_opening_of_cifar10_is_quick(root):
    load(SHARED / "cifar10", root)
    start = time.perf_counter()
    load(SHARED / "cifar10", root)
    assert time.perf_counter() - start < 1.5


@pytest.mark.shared
def test_small_mnist_is_the_first_rows_of_mnist(root):
    small, whole = load(SMALL_MNIST, root), load(SHARED / "mnist", root)
    np.testing.assert_array_equal(small.pixels, whole.pixels[:10_000])
    np.testing.assert_array_equal(small.labels, whole.labels[:10_000])


def test_flat_training_folder_beside_class_folders_is_unlabelled(tmp_path, root):
    source = tmp_path / "set"
    names = [f"train/{n}.png" for n in range(4)] + [f"test/{'ab'[n % 2]}/{n}.png" for n in range(4)]
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(source / name)
    train = load(source, root, require_labels=False)
    test = load(source, root, split="test")
    assert train.labels.tolist() == [-1] * 4
    assert test.classes == ("a", "b")
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1]
