"""A split that is cut in two: the same parts always, apart, whole, and with all classes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdscale.cache.manifest import read_manifest
from kdscale.data.image_dataset import load_images
from kdscale.data.source import SourceOptions
from kdscale.data.split_cut import SplitCut, choose_test_samples
from kdscale.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache_of_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


# --------------------------------------------------------------------------- choosing

samples = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(-1, 5)), min_size=1, max_size=60
)
shares = st.floats(0.01, 0.99)


def chosen(pairs, share):
    keys, labels = zip(*pairs, strict=True)
    return choose_test_samples(np.array(keys, dtype=np.uint64), np.array(labels), share)


@settings(max_examples=40, deadline=None)
@given(samples, shares, st.randoms(use_true_random=False))
def test_order_of_images_changes_no_part(pairs, share, random):
    before = {pair: bool(one) for pair, one in zip(pairs, chosen(pairs, share), strict=True)}
    random.shuffle(pairs)
    assert {
        pair: bool(one) for pair, one in zip(pairs, chosen(pairs, share), strict=True)
    } == before


@settings(max_examples=40, deadline=None)
@given(samples, shares)
def test_equal_images_are_in_one_part(pairs, share):
    doubled = [*pairs, *[(key, (label + 1) % 6) for key, label in pairs]]
    in_test = chosen(doubled, share)
    parts = {key: set() for key, _ in doubled}
    for (key, _), one in zip(doubled, in_test, strict=True):
        parts[key].add(bool(one))
    assert all(len(part) == 1 for part in parts.values())


@settings(max_examples=40, deadline=None)
@given(samples, shares)
def test_images_without_a_label_are_trained_on(pairs, share):
    in_test = chosen(pairs, share)
    unlabelled = {key for key, label in pairs if label < 0}
    assert not any(in_test[number] for number, (key, _) in enumerate(pairs) if key in unlabelled)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), shares)
def test_each_class_has_its_share_to_one_image(sizes, share):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    keys = np.random.default_rng(0).permutation(len(labels)).astype(np.uint64)
    in_test = choose_test_samples(keys, labels, share)
    assert abs(in_test.sum() - share * len(labels)) <= 0.5 + 1e-9
    for number, size in enumerate(sizes):
        assert abs(in_test[labels == number].sum() - share * size) < 1


# --------------------------------------------------------------------------- reading


def write_pictures(folder, classes, size=8, seed=0):
    """Write noise of one size, lighter in later classes: so many pictures of each."""
    random = np.random.default_rng(seed)
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 120, (size, size)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:02}.png")
    return folder


def part(folder, *, test, share=0.25, test_split="test", labelled=True):
    return load_images(
        str(folder),
        split="train",
        root=folder.parent / "root",
        require_labels=labelled,
        options=SourceOptions(cut=SplitCut(share, test, test_split)),
    )


def test_parts_are_apart_and_whole(tmp_path):
    folder = write_pictures(tmp_path / "pets", {"cat": 16, "dog": 8})
    whole = load_images(str(folder), split="train", root=tmp_path / "root")
    train, test = part(folder, test=False), part(folder, test=True)
    assert (train.split, test.split) == ("train", "train (test part)")
    assert np.bincount(test.labels).tolist() == [4, 2]
    assert not np.isin(test.keys, train.keys).any()
    assert sorted([*train.keys, *test.keys]) == sorted(whole.keys)
    assert len({whole.fingerprint, train.fingerprint, test.fingerprint}) == 3


def test_names_of_files_change_no_part(tmp_path):
    folder = write_pictures(tmp_path / "pets", {"cat": 16, "dog": 8})
    before = part(folder, test=True).keys
    for number, file in enumerate(sorted(folder.glob("*/*.png"), reverse=True)):
        file.rename(file.with_name(f"new{number:02}.png"))
    assert sorted(part(folder, test=True).keys) == sorted(before)


def test_tables_with_rows_without_a_label_train_on_those(tmp_path, write_split):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8)).astype(np.uint8)
    labels = np.where(np.arange(40) < 20, -1, np.arange(40) % 2)
    write_split(tmp_path / "set" / "train.parquet", pixels, labels, ["a", "b"])
    train = part(tmp_path / "set", test=False, labelled=False)
    test = part(tmp_path / "set", test=True)
    assert (train.num_samples, (train.labels < 0).sum()) == (35, 20)
    assert np.bincount(test.labels).tolist() in ([2, 3], [3, 2])


@pytest.mark.parametrize(
    ("classes", "share", "words"),
    [
        ({"cat": 4, "dog": 4}, 0.01, "cuts 0 of 8 images off split 'train'"),
        ({"cat": 1, "dog": 1}, 0.9, "cuts 2 of 2 images off split 'train'"),
        ({"": 8}, 0.25, "has no labels to test with"),
    ],
)
def test_part_without_an_image_is_refused(tmp_path, classes, share, words):
    folder = write_pictures(tmp_path / "pets", classes)
    with pytest.raises(DataError, match=words):
        part(folder, test=False, share=share, labelled=False)


def test_test_split_of_the_source_is_not_passed_over(tmp_path):
    for name in ("train", "valid"):
        write_pictures(tmp_path / "pets" / name, {"cat": 8, "dog": 8}, seed=len(name))
    with pytest.raises(DataError, match="has the split 'validation' to test on"):
        part(tmp_path / "pets", test=False)
    assert part(tmp_path / "pets", test=True, test_split="train").num_samples == 4


# --------------------------------------------------------------------------- commands


def test_folder_with_one_split_is_built_trained_resumed_and_evaluated(
    kdscale, write_recipe, stopped_after_step, tmp_path
):
    folder = write_pictures(tmp_path / "pets", {"cat": 24, "dog": 16})
    views = {"operations": ["random_horizontal_flip"], "count": 2}
    recipe = write_recipe(data={"source": str(folder), "test": 0.25}, views=views)
    done = kdscale("train", recipe, "--model", "teacher", "--run", "teacher")
    assert done.exit_code == 0, done.stderr
    assert "data: 30 images of 2 classes (cat, dog), split 'train' of " in done.stderr
    assert "without the 10 of its test part (data.test = 0.25)" in done.stderr
    weights = ("--set", "teacher.weights=teacher/weights.safetensors")
    cache = tmp_path / "cut.zarr"
    assert kdscale("cache", "build", recipe, *weights, "--cache", cache).exit_code == 0
    dataset = read_manifest(cache).dataset
    assert (dataset["num_samples"], dataset["split"], dataset["test"]) == (30, "train", 0.25)
    done = kdscale("cache", "show", cache, "--out", "views.png", "--samples", 2)
    assert done.exit_code == 0, done.stderr

    command = [
        "train",
        recipe,
        *weights,
        "--targets",
        "cache",
        "--cache",
        cache,
        "--run",
        "student",
    ]
    with stopped_after_step(2):
        assert kdscale(*command).exit_code == 75
    done = kdscale(*command, "--resume")
    assert done.exit_code == 0, done.stderr
    done = kdscale("evaluate", "student", "--json", "--seconds", 0)
    (found,) = json.loads(done.stdout)["runs"]
    result = json.loads((tmp_path / "student" / "result.json").read_text())
    assert (found["num_samples"], found["test_split"]) == (10, "train (test part)")
    assert found["top1_accuracy"] == result["top1_accuracy"]
    done = kdscale(*command[:-1], "other", "--set", "data.test=0.5")
    assert done.exit_code == 1
    assert "dataset.num_samples" in done.stderr


def test_other_data_with_a_test_split_are_tested_on_the_whole_of_it(
    kdscale, tmp_path, write_recipe, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, sizes in (("pets", {"cat": 8, "dog": 8}), ("copy", {"cat": 8, "dog": 8})):
        write_pictures(tmp_path / name, sizes)
    for number, split in enumerate(("train", "test")):
        write_pictures(tmp_path / "split" / split, {"cat": 6, "dog": 6}, seed=number + 1)
    recipe = write_recipe(
        "cut", data={"source": "pets", "test": 0.25}, student={"train": {"epochs": 1}}
    )
    done = kdscale("train", recipe, "--run", "student")
    assert done.exit_code == 0, done.stderr
    found = {}
    for name in ("copy", "split"):
        done = kdscale("evaluate", "student", "--data", name, "--json", "--seconds", 0)
        assert done.exit_code == 0, done.stderr
        (found[name],) = json.loads(done.stdout)["runs"]
    assert (found["copy"]["num_samples"], found["copy"]["own_test_set"]) == (4, True)
    assert (found["split"]["num_samples"], found["split"]["own_test_set"]) == (12, False)
    assert found["split"]["test_split"] == "test"
