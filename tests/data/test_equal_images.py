"""Images of equal content under two labels, or in training and test split, are named."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdscale.data.equal_images import describe_conflicts, describe_overlap
from kdscale.data.image_dataset import describe_split, load_images
from kdscale.data.source import SourceOptions, open_source
from kdscale.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache_of_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def picture(number, size=4):
    return Image.fromarray(np.full((size, size), 9 * number, dtype=np.uint8))


def write(folder, numbers, sizes=(4,)):
    """Write picture files by name; equal numbers are equal pictures."""
    for name, number in numbers.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, sizes[number % len(sizes)]).save(folder / name)
    return folder


def load(folder, split, **options):
    return load_images(str(folder), split=split, root=folder.parent / "root", **options)


TRAIN = {"train/cat/0.png": 0, "train/cat/1.png": 1, "train/dog/2.png": 2, "train/dog/3.bmp": 1}


@pytest.mark.parametrize("sizes", [(4,), (4, 5)])
def test_images_under_two_labels_are_counted_and_the_first_is_named(tmp_path, sizes):
    folder = write(tmp_path / "set", {**TRAIN, "train/dog/4.png": 1, "test/cat/9.png": 9}, sizes)
    line = describe_conflicts(load(folder, "train"))
    bmp_counts = len(sizes) == 1  # images of several sizes are compared as files
    assert line.startswith(f"{3 if bmp_counts else 2} images of split 'train' of ")
    assert "train/cat/1.png as 'cat' and " in line
    assert f"train/dog/{'3.bmp' if bmp_counts else '4.png'} as 'dog'" in line
    assert describe_conflicts(load(folder, "test", require_labels=False)) is None


def test_equal_images_of_one_label_are_no_conflict(tmp_path):
    folder = write(tmp_path / "set", {"cat/0.png": 0, "cat/1.png": 0, "dog/2.png": 2})
    assert describe_conflicts(load(folder, "train")) is None


def test_test_images_that_are_trained_on_are_counted_and_the_first_is_named(tmp_path):
    test = {"test/cat/5.png": 5, "test/cat/6.png": 1, "test/dog/7.png": 7}
    folder = write(tmp_path / "set", {**TRAIN, **test})
    train, tested = load(folder, "train"), load(folder, "test")
    line = describe_overlap(train, tested)
    assert line.startswith("1 of the 3 images of the test split 'test' are in the training split")
    assert "test/cat/6.png, which is " in line
    assert "train/cat/1.png" in line
    apart = write(tmp_path / "apart", {**TRAIN, "test/cat/5.png": 5, "test/dog/7.png": 7})
    assert describe_overlap(load(apart, "train"), load(apart, "test")) is None


def test_splits_of_the_same_images_under_two_names_are_named_as_one(tmp_path):
    twins = {name.replace("train/", "test/"): number for name, number in TRAIN.items()}
    folder = write(tmp_path / "set", {**TRAIN, **twins})
    line = describe_overlap(load(folder, "train"), load(folder, "test"))
    assert "holds the same images as the training split 'train'" in line


def test_recipe_whose_splits_are_one_is_warned_of_once(kdscale, write_recipe):
    brief = {"train": {"epochs": 1}}
    recipe = write_recipe(data={"test_split": "train"}, teacher=brief, student=brief)
    done = kdscale("train", recipe, "--targets", "none", "--run", "alone")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("holds the same images as the training split 'train'") == 1
    done = kdscale("evaluate", "alone", "--seconds", 0)
    assert "holds the images that alone was trained on" in done.stderr


# --------------------------------------------------------------------------- paths in tables


def write_table(path, cells):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, kind), "label": [0, 1, 0]}), path)


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def opened(source):
    return open_source(str(source), split="train", require_labels=True, options=SourceOptions())


@pytest.mark.parametrize("absolute", [True, False])
def test_images_that_a_table_names_are_read_from_its_folder(tmp_path, monkeypatch, absolute):
    write(tmp_path / "set/pictures", {"1.png": 1, "3.png": 3})
    (tmp_path / "set/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
    )
    base = tmp_path / "set/pictures" if absolute else Path("pictures")
    in_table = {"bytes": png(2), "path": "/only/a/name.png"}
    write_table(
        tmp_path / "set/train.parquet",
        [{"bytes": None, "path": str(base / "1.png")}, in_table, {"bytes": None, "path": None}],
    )
    monkeypatch.chdir(tmp_path)  # relative paths are not of the current folder
    encoded = opened("set")
    line = describe_split(encoded)
    assert "; 1 image in files that the table names" in line
    assert "1.png" not in line
    assert "passed over: 1 file .md; 1 other file (pictures/3.png)" in line
    assert [encoded.read_one(0), encoded.read_one(1)] == [png(1), png(2)]
    with pytest.raises(DataError, match=r"row 2 of .* holds no image"):
        encoded.read_one(2)
    assert opened("set/train.parquet").num_files == 1


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.png", "a/../../secret.png"])
@pytest.mark.parametrize("source", ["set", "set/train.parquet"])
def test_path_that_leads_outside_the_data_folder_is_refused(tmp_path, source, path):
    write(tmp_path, {"secret.png": 1})
    cells = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}]
    write_table(tmp_path / "set/train.parquet", [*cells, {"bytes": None, "path": path}])
    with pytest.raises(DataError, match=r"row 2 of split 'train' .* names .* not below") as error:
        opened(tmp_path / source)
    assert "\n" not in str(error.value)


def test_files_of_the_hub_are_read_from_the_cache_of_datasets_alone(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "elsewhere", {"1.png": 1, "2.png": 2})
    (tmp_path / "hf").symlink_to(tmp_path / "elsewhere")  # the cache of datasets
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def from_the_hub(*_, **__):
        rows = {"image": [str(folders[-1] / f"{n}.png") for n in (1, 2)], "label": [0, 1]}
        return datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features))

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    folders = []
    for folder in (tmp_path / "hf", tmp_path / "elsewhere"):
        folders.append(folder)
        assert opened("user/pictures").num_files == 2
    folders.append(write(tmp_path / "other", {"1.png": 1, "2.png": 2}))
    with pytest.raises(DataError, match=r"row 0 of split 'train' of user/pictures names"):
        opened("user/pictures")


# --------------------------------------------------------------------------- frames


@pytest.mark.parametrize("sizes", [(4,), (4, 6)])
def test_images_of_several_frames_are_counted(tmp_path, caplog, sizes):
    folder = write(tmp_path / "set", {"cat/0.png": 0, "dog/1.png": 1}, sizes)
    frames = [picture(number) for number in (2, 3, 4)]
    for name in ("cat/2.gif", "cat/3.tif", "dog/4.webp", "dog/5.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    for _ in range(2):  # decoded, then from the store
        caplog.clear()
        with caplog.at_level("INFO", "kdscale"):
            load(folder, "train")
        (line,) = [one for one in caplog.messages if "frames or pages" in one]
        assert line.startswith("data: 4 images of split 'train' of ")
