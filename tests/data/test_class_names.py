"""Names of classes from a file."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdscale.data.source import SourceOptions, open_source
from kdscale.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache_of_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path, classes):
    for number, name in enumerate(classes):
        file = path / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    return path


def table(path, labels):
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [png()] * len(labels), "label": labels}), path)
    return path.parent


def opened(source, names, *, labelled=True, **options):
    options = SourceOptions(class_names=str(names), **options)
    return open_source(str(source), split="train", require_labels=labelled, options=options)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [("n.txt", "ant\nbee\n cat \ndog\n"), ("n.json", ["ant", "bee", "cat", "dog"]),
     ("n.json", {"0": "ant", "1": "bee", "2": "cat", "3": "dog"})],
)  # fmt: skip
def test_numbers_are_named_in_their_order(tmp_path, file, content):
    source = table(tmp_path / "set" / "train.parquet", [3, 0, 3, 1])  # none of class 2
    split = opened(source, write(tmp_path / file, content))
    assert split.classes == ("ant", "bee", "cat", "dog")
    assert split.labels.tolist() == [3, 0, 3, 1]
    chosen = opened(source, tmp_path / file, classes=["dog", "ant"])
    assert chosen.labels.tolist() == [0, 1, 0]


def test_present_names_are_replaced(tmp_path):
    source = folder(tmp_path / "set", ["n02", "n01"])
    split = opened(source, write(tmp_path / "n.json", {"n01": "tench", "n02": "shark", "n03": "x"}))
    assert split.classes == ("tench", "shark")
    assert split.labels.tolist() == [0, 1]


def test_images_without_labels_get_the_classes(tmp_path):
    source = folder(tmp_path / "set", ["."])
    split = opened(source, write(tmp_path / "n.txt", "ant\nbee\n"), labelled=False)
    assert split.classes == ("ant", "bee")
    assert split.labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.txt", "ant\n", r"has the label 3, and data\.class_names names 1 class"),
        ("n.txt", "ant\n\nbee\n", "name 1 is empty"),
        ("n.txt", "ant\nant\nbee\ncat\n", "has the name 'ant' twice"),
        ("n.json", "[1, 2", r"no class names can be read from .*n\.json"),
        ("n.json", [1, 2], "holds no class names"),
        ("n.json", "7", "holds no class names"),
        ("n.txt", "", "holds no class names"),
        ("n.json", '{"0": "ant", "1": "bee", "2": "cat", "2": "dog"}', "names '2' twice"),
        ("n.json", {"0": "ant", "2": "cat", "3": "dog", "4": "emu"}, "no name for class 1"),
        ("n.json", {"0": "ant", "1": "bee", "2": "cat", "03": "dog"}, "for class 3, and names 03"),
        ("n.json", "[" * 100_000, "no class names can be read"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, file, content, message):
    source = table(tmp_path / "set" / "train.parquet", [3, 0, 3, 1])
    with pytest.raises(DataError, match=message):
        opened(source, write(tmp_path / file, content))


def test_named_classes_are_not_renamed_by_position(tmp_path):
    source = folder(tmp_path / "set", ["n02", "n01"])
    with pytest.raises(DataError, match=r"have names .*write a JSON object"):
        opened(source, write(tmp_path / "n.txt", "tench\nshark\n"))
    with pytest.raises(DataError, match="no name for n02"):
        opened(source, write(tmp_path / "n.json", {"n01": "tench"}))
    with pytest.raises(DataError, match="no class names can be read"):
        opened(source, tmp_path / "nothing.txt")
