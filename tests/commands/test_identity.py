"""A cache of anything else is refused: every field is named with both values, and every image."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import load_file, save_file

from kdscale.cache.manifest import read_manifest
from kdscale.cache.verify import verify
from kdscale.cache.writer import create_or_resume
from kdscale.data import image_hashes
from kdscale.data.image_dataset import load_images
from kdscale.errors import CacheMismatchError
from kdscale.experiment import required_manifest, training_images
from kdscale.target_sources.compatibility import check_compatible, with_keys


@pytest.fixture
def plain_teacher(tiny_teacher, tmp_path):
    """Weights that say nothing of preprocessing and classes, so that nothing else is refused."""
    save_file(load_file(tiny_teacher), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


@pytest.fixture
def refused(kdscale, write_recipe, plain_teacher, tiny_cache):
    """What a build and a training say of the tiny cache, asked for something else."""

    def ask(*args, **changes):
        changes["teacher"] = {"weights": str(plain_teacher), **changes.get("teacher", {})}
        recipe = write_recipe(**changes)
        said = []
        for command in (("cache", "build"), ("train", "--targets", "cache")):
            done = kdscale(*command, recipe, "--cache", tiny_cache, *args)
            assert (done.exit_code, done.stdout) == (1, ""), done.stderr
            lines = done.stderr.splitlines(keepends=True)
            said.append("".join(line for line in lines if not line.startswith("data: ")))
        assert said[0] == said[1]
        assert said[0].startswith(f"Error: {tiny_cache} holds other targets than the recipe asks")
        return said[0]

    return ask


@pytest.fixture
def edited(dataset, tmp_path):
    """The tiny data set with another training table, made by a function of its rows."""

    def edit(change):
        folder = tmp_path / "edited"
        shutil.copytree(dataset, folder)
        table = pq.read_table(folder / "train.parquet")
        rows = change(table.to_pylist())
        pq.write_table(type(table).from_pylist(rows, schema=table.schema),
                       folder / "train.parquet")  # fmt: skip
        return folder

    return edit


def png(pixels):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pixels_of(row):
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(row["image"]["bytes"])))


def one_pixel(rows):
    pixels = pixels_of(rows[17])
    pixels[3, 4] ^= 1
    rows[17]["image"] = png(pixels)
    return rows


def one_label(rows):
    rows[99]["label"] = (rows[99]["label"] + 1) % 4
    return rows


def three_more(rows):
    made = [{"image": png(np.full((8, 8), 40 * n, np.uint8)), "label": 0} for n in range(3)]
    return [*rows[:17], *made, *rows[17:]]


def fewer_and_moved(rows):
    return [*rows[60:], *rows[:20], *rows[22:60]]


FINGERPRINT = "  dataset.fingerprint: the cache has "
EDITS = {
    "one pixel": (one_pixel, [FINGERPRINT, "\n  1 image changed (first: 17)\n"]),
    "one label": (one_label, [FINGERPRINT, "\n  labels of 1 image (first: 99) changed\n"]),
    "images added": (
        three_more,
        [FINGERPRINT, "  dataset.num_samples: the cache has 128, the recipe asks for 131",
         "\n  3 images added (first: 17)\n"],
    ),
    "dropped and reordered": (
        fewer_and_moved,
        ["\n  2 images dropped (first: 20 of the cache)\n  order of images changed (first: 0)\n"],
    ),
    "reordered": (lambda rows: rows[::-1], ["\n  order of images changed (first: 0)\n"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), EDITS.values(), ids=EDITS)
def test_other_images_and_labels_are_named(refused, edited, change, expected):
    said = refused("--data", edited(change))
    for line in expected:
        assert line in said
    assert "changed\n  order" not in said


def test_class_order_is_named(refused):
    said = refused(data={"classes": ["north", "centre", "sides", "south"]})
    assert "  dataset.classes[0]: the cache has centre, the recipe asks for north\n" in said
    assert "  dataset.classes[1]: the cache has north, the recipe asks for centre\n" in said
    assert "\n  class order changed\n" in said
    assert "labels of" not in said


def test_one_bit_of_the_weights_is_named(refused, plain_teacher):
    weights = {name: values.copy() for name, values in load_file(plain_teacher).items()}
    next(iter(weights.values())).view(np.uint32).flat[5] ^= 1
    save_file(weights, plain_teacher)
    said = refused()
    assert "  teacher.weights_sha256: the cache has " in said
    assert said.count("the cache has") == 1
    ours, theirs = said.split("the cache has ")[1].split("\n")[0].split(", the recipe asks for ")
    assert ours != theirs
    assert len(ours) == len(theirs) == 13


FLIP = "random_horizontal_flip"
FIELDS = {
    "view seed": ({"views": {"seed": 7}}, "views.seed: the cache has 0, the recipe asks for 7"),
    "view setting": (
        {"views": {"operations": [{"name": "random_crop", "padding": 2}, FLIP]}},
        "views.operations[0].padding: the cache has 1, the recipe asks for 2",
    ),
    "number of views": (
        {"views": {"count": 4}}, "views.count: the cache has 3, the recipe asks for 4"
    ),
    "precision": (
        {"teacher": {"precision": "bfloat16"}},
        "teacher.precision: the cache has float32, the recipe asks for bfloat16",
    ),
    "preprocessing": (
        {"teacher": {"input": {"std": [0.5]}}},
        "teacher.preprocess.std[0]: the cache has 0.25, the recipe asks for 0.5",
    ),
    "encoding": (
        {"cache": {"encoding": "int8"}},
        "encoding: the cache has float32, the recipe asks for int8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), FIELDS.values(), ids=FIELDS)
def test_other_settings_are_named_alone(
    kdscale, write_recipe, plain_teacher, tiny_cache, changes, expected
):
    teacher = {"weights": str(plain_teacher), **changes.get("teacher", {})}
    recipe = write_recipe(**{**changes, "teacher": teacher})
    done = kdscale("train", "--targets", "cache", recipe, "--cache", tiny_cache)
    assert done.exit_code == 1
    assert f"\n  {expected}\n" in done.stderr
    assert done.stderr.count("the cache has") == 1


def test_speed_is_not_identity(
    kdscale, write_recipe, plain_teacher, tiny_cache, shared_root, tmp_path
):
    recipe = write_recipe(
        "other", teacher={"weights": str(plain_teacher), "batch_size": 8},
        cache={"shard_samples": 50}, student={"train": {"epochs": 1}},
    )  # fmt: skip
    done = kdscale("train", "--targets", "cache", recipe, "--cache", tiny_cache)
    assert done.exit_code == 0, done.stderr
    found = kdscale("cache", "build", recipe, "--cache-root", shared_root)
    assert found.stdout == f"{tiny_cache}\n"
    assert read_manifest(tiny_cache).shard_samples == 32


def test_codec_is_not_identity():
    """It stands in the arrays' metadata, of which the identity holds nothing."""
    from kdscale.cache.manifest import canonical

    golden = Path(__file__).parents[1] / "golden/cache_v1/dense-float16.zarr"
    identity = canonical(read_manifest(golden).identity).decode()
    assert not any(word in identity for word in ("codec", "zstd", "shard", "chunk", "versions"))


# ------------------------------------------------------------------ keys


def test_cache_keeps_the_keys_of_its_images(tiny_cache, load_table, shared_root):
    stored = zarr.open_group(tiny_cache, mode="r")["keys"][:]
    images = training_images(load_table(), shared_root, labelled=True)
    assert np.array_equal(stored, image_hashes.pixel_keys(images.pixels))
    assert read_manifest(tiny_cache).dataset["keys"] == "pixels"
    assert read_manifest(tiny_cache).format_version == 3
    assert len(np.unique(stored)) == 128


def test_keys_are_stored_with_decoded_images_and_made_where_they_are_not(dataset, tmp_path):
    stored = load_images(str(dataset), split="train", root=tmp_path)
    assert stored.keys is not None
    (folder,) = (file.parent for file in tmp_path.glob("images/*/keys.npy"))
    (folder / "keys.npy").unlink()  # as an older kdscale leaves it
    without = load_images(str(dataset), split="train", root=tmp_path)
    assert without.keys is None
    assert np.array_equal(without.image_keys(), stored.keys)
    np.save(folder / "keys.npy", stored.keys + 1)
    assert load_images(str(dataset), split="train", root=tmp_path).keys is None


def test_shape_is_part_of_a_key():
    pixels = np.arange(64, dtype=np.uint8)
    shapes = [(1, 1, 8, 8), (1, 1, 4, 16), (1, 4, 4, 4)]
    assert len({int(image_hashes.pixel_keys(pixels.reshape(one))[0]) for one in shapes}) == 3


def test_cache_without_keys_is_refused_as_before_and_grows_without_them(
    kdscale, write_recipe, plain_teacher, tiny_cache, edited, load_table, shared_root, tmp_path
):
    images = training_images(load_table(), shared_root, labelled=True)
    old = read_manifest(tiny_cache)
    dataset = {name: value for name, value in old.dataset.items() if name != "keys"}
    old = replace(old, dataset=dataset, build={}, checksums={}, complete=False)
    path = tmp_path / "old.zarr"
    create_or_resume(path, old, images.labels)
    recipe = write_recipe(teacher={"weights": str(plain_teacher)})
    assert kdscale("cache", "build", recipe, "--cache", path).exit_code == 0
    assert "keys" not in read_manifest(path).dataset
    assert not (path / "keys").exists()
    assert verify(path).ok
    done = kdscale("cache", "build", recipe, "--cache", path, "--data", edited(one_pixel))
    assert "dataset.fingerprint: the cache has " in done.stderr
    assert "image changed" not in done.stderr


def test_damaged_keys_do_not_hide_the_refusal(cache_copy, load_table, shared_root, edited):
    (cache_copy / "keys/c/0").write_bytes(b"?")
    other = load_images(str(edited(one_pixel)), split="train", root=shared_root)
    found = read_manifest(cache_copy)
    asked = replace(found, dataset={**found.dataset, "fingerprint": other.fingerprint})
    with pytest.raises(CacheMismatchError, match=r"dataset\.fingerprint"):
        check_compatible(cache_copy, found, asked, other)


def test_damaged_keys_and_manifest_are_repaired(kdscale, write_recipe, tiny_teacher, cache_copy):
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    intact = {file: file.read_bytes() for file in cache_copy.rglob("*") if file.is_file()}
    (cache_copy / "keys/c/0").write_bytes(b"?")
    done = kdscale("cache", "verify", cache_copy, "--json")
    assert json.loads(done.stdout)["corrupt_shards"] == ["keys/c/0"]
    assert kdscale("cache", "repair", cache_copy, "--recipe", recipe).exit_code == 0
    document = bytearray((cache_copy / "zarr.json").read_bytes())
    document[-40] ^= 1
    (cache_copy / "zarr.json").write_bytes(document)
    assert kdscale("cache", "repair", cache_copy, "--recipe", recipe).exit_code == 0
    assert verify(cache_copy).ok
    assert (cache_copy / "keys/c/0").read_bytes() == intact[cache_copy / "keys/c/0"]


def test_images_of_several_sizes_are_distinguished_by_their_files(load_table, tiny_cache, tmp_path):
    from PIL import Image

    for name in ("before", "now"):
        for split, number in (("train", 6), ("test", 2)):
            for image in range(number):
                place = tmp_path / name / split / ("ant", "bee")[image % 2]
                place.mkdir(parents=True, exist_ok=True)
                grey = 200 if (name, split, image) == ("now", "train", 3) else image
                size = (12 + image, 10)
                Image.new("L", size, grey).save(place / f"{image}.png")
    resize = [{"name": "resize", "size": [8, 8]}]
    found = []
    for name in ("before", "now"):
        data = {"source": str(tmp_path / name), "clean": resize}
        recipe = load_table(data=data, views={"operations": resize, "count": 1})
        found.append(training_images(recipe, tmp_path, labelled=True))
    assert not found[0].one_size
    again = training_images(recipe, tmp_path, labelled=True)
    assert again.keys is not None
    assert np.array_equal(again.keys, image_hashes.encoded_keys(again.pixels.split))
    for file in tmp_path.glob("images/*.keys"):
        file.write_bytes(bytes(len(file.read_bytes())))
    assert training_images(recipe, tmp_path, labelled=True).keys is None
    teacher = read_manifest(tiny_cache).teacher
    asked = [required_manifest(recipe, images, teacher) for images in found]
    cache, once = with_keys(asked[0], found[0])
    cache = create_or_resume(tmp_path / "c.zarr", cache, found[0].labels, once=once)
    assert cache.dataset["keys"] == "encoded"
    with pytest.raises(CacheMismatchError, match=r"1 image changed \(first: \d\)"):
        check_compatible(tmp_path / "c.zarr", cache, asked[1], found[1])
