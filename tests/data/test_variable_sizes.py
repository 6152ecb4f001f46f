"""Images of several sizes: decoded when they are used, with views that are the same as ever."""

import gc
import json
import logging
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kdscale.data import decoded_store, headers, pixel_sources, source_key
from kdscale.data.decode import decode_image
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import load_images
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.torchvision_op import TorchvisionOp
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError, DataError

CPU = torch.device("cpu")
NUM_SAMPLES = 24
CLASSES = ["cat", "dog"]
CLEAN = ({"name": "center_crop", "size": 8},)
CROP = {"name": "random_resized_crop", "size": 8}
FLIP = "random_horizontal_flip"
SHIFT = {"name": "random_crop", "padding": 2}
PIPELINES = {
    "crop": [CROP],
    "crop, then more": [CROP, FLIP, SHIFT],
    "more, then crop": [FLIP, SHIFT, CROP, FLIP],
    "mixup": [CROP, "mixup", FLIP],
    "cutmix": [FLIP, CROP, SHIFT, "cutmix"],
    "torchvision's crop": [{"name": "v2.RandomCrop", "size": 8}, FLIP],
    "torchvision's flip": [{"name": "v2.RandomVerticalFlip"}, CROP],
    "no draws": [{"name": "center_crop", "size": 8}],
}


def picture(number, mode="RGB"):
    """A smooth picture of a size and a content that are its own."""
    height, width = 10 + number * 5 % 13, 9 + number * 7 % 17
    y, x, channel = np.ogrid[:height, :width, :3]
    values = 40 * number + 9 * y + 5 * x * (channel + 1)
    return Image.fromarray((values % 256).astype(np.uint8)).convert(mode)


KINDS = {
    ".jpg": {"quality": 95},
    ".png": {},
    ".webp": {"lossless": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of two classes, three formats and many sizes."""
    folder = tmp_path_factory.mktemp("variable") / "set"
    for number in range(NUM_SAMPLES):
        suffix = list(KINDS)[number % 3]
        path = folder / "train" / CLASSES[number % 2] / f"{number:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, **KINDS[suffix])
    return folder


@pytest.fixture(scope="module")
def image_set(folder, tmp_path_factory):
    return load_images(str(folder), split="train", root=tmp_path_factory.mktemp("root"))


@pytest.fixture
def images(image_set):
    return device_images(image_set)


def device_images(image_set, clean=CLEAN):
    """The set's images, with a clean crop."""
    return DeviceImages(replace(image_set, clean=clean), CPU)


def decoded(image_set, sample):
    """One whole image, [1, C, H, W]."""
    return torch.from_numpy(image_set.pixels.decode(sample))[None]


def pipeline_of(name):
    return Pipeline.parse(PIPELINES[name], seed=7, pairing=MixPairs(NUM_SAMPLES))


def one_by_one(image_set, pipeline, view, index):
    """Views by the definition: each sample decoded and rendered alone, in this thread."""

    def rendered(plan):
        views, samples = plan.images.view, plan.images.index
        whole = [decoded(image_set, int(sample)) for sample in samples]
        made = [
            pipeline.apply(one, view[None], sample[None], 0, pipeline.leading)
            for one, view, sample in zip(whole, views, samples, strict=True)
        ]
        return pipeline.render(torch.cat(made), plan, pipeline.leading).pixels

    views = torch.as_tensor(view).expand(len(index))
    return torch.cat([rendered(plan) for plan in pipeline.plan(views, index, 1)])


# --------------------------------------------------------------------------- views


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("view", [3, torch.arange(9) % 4], ids=["one view", "several views"])
def test_views_are_those_of_each_image_alone(image_set, images, name, view):
    index = torch.tensor([5, 0, 23, 7, 8, 20, 1, 13, 2])
    pipeline = pipeline_of(name)
    found = images.render_views(pipeline, view, index)
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.equal(one_by_one(image_set, pipeline, view, index))
    assert found.labels.tolist() == image_set.labels[index.numpy()].tolist()


@pytest.mark.parametrize("name", PIPELINES)
def test_views_do_not_depend_on_batch_or_order(images, name):
    pipeline, everyone = pipeline_of(name), torch.arange(NUM_SAMPLES)
    whole = images.render_views(pipeline, 1, everyone).pixels
    for index in (everyone.flip(0), *everyone.split(5), everyone[3:4]):
        assert images.render_views(pipeline, 1, index).pixels.equal(whole[index])


def test_view_of_a_crop_alone_is_the_pipeline_on_the_decoded_image(image_set, images):
    pipeline = pipeline_of("more, then crop")
    for sample in range(6):
        whole = decode_image(image_set.pixels.split.read_one(sample), 3)
        index = torch.tensor([sample])
        expected = pipeline(torch.from_numpy(whole.copy())[None], 2, index)
        assert images.render_views(pipeline, 2, index).pixels.equal(expected)


def test_clean_images_are_of_one_size(image_set, images):
    index = torch.tensor([4, 2, 9])
    found, labels = images.gather(index)
    assert found.equal(one_by_one(image_set, Pipeline.parse(CLEAN), 0, index))
    assert labels.tolist() == image_set.labels[index.numpy()].tolist()
    in_turn = list(images.gather_each(torch.arange(NUM_SAMPLES), 5))
    assert torch.cat([part for part, _ in in_turn])[index].equal(found)
    assert [len(part) for part, _ in in_turn] == [5, 5, 5, 5, 4]


def test_no_samples_are_no_images_of_the_clean_size(images):
    found, labels = images.gather(torch.arange(0))
    assert found.shape == (0, 3, 8, 8)
    assert len(labels) == 0


def test_clean_operations_apply_to_sets_of_one_size_too(tmp_path):
    for number in range(4):
        (tmp_path / "set" / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(1).save(tmp_path / "set" / CLASSES[number % 2] / f"{number}.png")
    found = load_images(str(tmp_path / "set"), split="train", root=tmp_path / "root")
    assert found.one_size
    index = torch.tensor([2, 0])
    expected = Pipeline.parse(CLEAN)(torch.from_numpy(found.pixels[index.numpy()]), 0, index)
    assert device_images(found).gather(index)[0].equal(expected)


def test_views_without_a_size_are_refused(image_set, images):
    heights = "heights 10..22, widths 9..25"
    with pytest.raises(ConfigError, match=rf"images differ in size \({heights} pixels\)"):
        images.render_views(Pipeline.parse([FLIP]), 0, torch.arange(2))
    with pytest.raises(ConfigError, match="no operation of the pipeline gives them one"):
        device_images(image_set, ()).gather(torch.arange(2))


def test_an_operation_that_does_not_keep_its_word_is_refused(images):
    broken = TorchvisionOp(lambda image: image, "mine", fixes_size=True)
    with pytest.raises(ConfigError, match=r"made views of 10x9 and 20x23 \(height x width\)"):
        images.render_views(Pipeline((broken,)), 0, torch.arange(2))


# --------------------------------------------------------------------------- loader


def loader(images, name="crop, then more", **options):
    return BatchLoader(
        images,
        torch.arange(1, NUM_SAMPLES),
        pipeline_of(name),
        ViewSchedule(3, 0, options.pop("shift_every", None)),
        **{"seed": 0, "global_batch_size": 6} | options,
    )


@pytest.mark.parametrize("name", ["crop, then more", "mixup", "torchvision's crop"])
@pytest.mark.parametrize("shift_every", [None, 4])
def test_loader_shows_what_the_pipeline_defines(image_set, images, name, shift_every):
    found = loader(images, name, shift_every=shift_every)
    for step in range(2 * found.steps_per_epoch + 1):
        batch = found.batch(step)
        assert batch.index.equal(found.index(step))
        expected = one_by_one(image_set, found.pipeline, batch.view, batch.index)
        assert batch.pixels.equal(expected)


@pytest.mark.parametrize("name", ["crop, then more", "mixup"])
def test_processes_together_show_the_pixels_of_one(images, name):
    alone = loader(images, name)
    parts = [loader(images, name, process=(k, 2)) for k in range(2)]
    for step in range(alone.steps_per_epoch + 2):
        batches = [part.batch(step) for part in parts]
        indices = torch.cat([batch.index for batch in batches])
        view = alone.schedule.view(step // alone.steps_per_epoch, indices)
        expected = images.render_views(alone.pipeline, view, indices)
        assert torch.cat([batch.pixels for batch in batches]).equal(expected.pixels)


def test_resumed_step_and_any_order_of_steps_show_the_same(images):
    whole = [loader(images).batch(step).pixels for step in range(9)]
    resumed = loader(images)
    assert [resumed.batch(step).pixels.equal(whole[step]) for step in range(5, 9)] == [True] * 4
    jumping = loader(images)
    for step in (7, 0, 1, 8, 2, 2):
        assert jumping.batch(step).pixels.equal(whole[step])


@pytest.fixture
def decodings(monkeypatch):
    """The samples that were decoded, in the order of their turns."""
    samples = []

    def counted(self, sample):
        samples.append(sample)
        return original(self, sample)

    original = EncodedImages.decode
    monkeypatch.setattr(EncodedImages, "decode", counted)
    return samples


def test_each_image_of_a_batch_is_decoded_once(images, decodings):
    found = loader(images, "mixup", global_batch_size=NUM_SAMPLES)
    batch = found.batch(0)
    del found
    together = set(batch.index.tolist()) | set(batch.mix.index_B.tolist())
    first = decodings[: len(together)]
    assert sorted(first) == sorted(together)


def test_next_steps_are_decoded_while_one_computes(images, decodings):
    found = loader(images)
    found.batch(0)
    expected = {
        i for step in range(1 + images.prefetch_depth(6)) for i in found.index(step).tolist()
    }
    wait_until(lambda: set(decodings) == expected)
    time.sleep(0.05)
    assert set(decodings) == expected  # no more than that: memory is bounded
    assert len(decodings) == sum(len(found.index(s)) for s in range(1 + images.prefetch_depth(6)))


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --------------------------------------------------------------------------- errors and threads


def test_what_is_not_waited_for_is_called_off_and_its_threads_end(image_set, monkeypatch):
    begun, gate = [], threading.Event()

    def slow(_, sample):
        begun.append(sample)
        gate.wait(5)
        raise DataError("late")

    monkeypatch.setattr(pixel_sources, "_num_cores", lambda: 2)
    monkeypatch.setattr(EncodedImages, "decode", slow)
    before, images = set(threading.enumerate()), device_images(image_set)
    crop = pipeline_of("crop")
    coming = images.prefetch(crop, crop.plan(0, torch.arange(NUM_SAMPLES))[0])
    wait_until(lambda: len(begun) == 2)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    del coming, images
    gc.collect()
    gate.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(begun) == 2


def test_error_of_a_decoder_names_the_sample(tmp_path):
    for number in range(6):
        (tmp_path / "set" / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "set" / CLASSES[number % 2] / f"{number}.jpg")
    path = tmp_path / "set" / "dog" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-40])  # the header is sound
    found = load_images(str(tmp_path / "set"), split="train", root=tmp_path / "root")
    place = r"row 4 of split 'train' of .*set \(.*3\.jpg\) cannot be decoded: .*Repair or remove it"
    images = device_images(found)
    for _ in range(2):
        with pytest.raises(DataError, match=place):
            images.gather(torch.arange(6))
    assert images.gather(torch.tensor([0, 5]))[0].shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=place):
        next(images.gather_each(torch.tensor([4]), 1))
    path.unlink()
    with pytest.raises(DataError, match=r"row 4 .* cannot be read: .*3\.jpg: No such file"):
        images.gather(torch.tensor([4]))


def test_broken_header_is_named_before_anything_is_trained(tmp_path):
    for number in range(4):
        (tmp_path / "set" / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "set" / CLASSES[number % 2] / f"{number}.png")
    (tmp_path / "set" / "cat" / "2.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"row 1 of split 'train' of .* not one of BMP"):
        load_images(str(tmp_path / "set"), split="train", root=tmp_path / "root")


def test_random_state_and_number_of_threads_of_the_caller_are_left_alone(images):
    before = torch.get_rng_state(), torch.get_num_threads()
    images.render_views(pipeline_of("torchvision's crop"), 0, torch.arange(9))
    assert torch.get_rng_state().equal(before[0])
    assert torch.get_num_threads() == before[1]


# --------------------------------------------------------------------------- what a set is


def write_all(folder, pictures):
    """One image a file, of two classes; each is (picture, suffix, options)."""
    for number, (image, suffix, options) in enumerate(pictures):
        path = folder / CLASSES[number % 2] / f"{number:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    return folder


def load(folder, root):
    return load_images(str(folder), split="train", root=root)


def turned(image):
    """The picture on its side, with the orientation that puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return image.transpose(Image.Transpose.ROTATE_90), exif


def test_all_modes_and_formats_are_decoded_by_the_same_rules(tmp_path):
    side, exif = turned(picture(5))
    transparent = picture(3).convert("RGBA")
    transparent.putalpha(picture(3, "L"))
    deep = Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000)
    folder = write_all(
        tmp_path / "set",
        [
            (picture(0), ".jpg", {}),
            (picture(1), ".webp", {"lossless": True}),
            (picture(2).convert("CMYK"), ".jpg", {}),
            (transparent, ".png", {}),
            (picture(4).quantize(16), ".png", {}),
            (side, ".png", {"exif": exif}),
            (picture(6, "L"), ".png", {}),
            (deep, ".png", {}),
        ],
    )
    found = load(folder, tmp_path / "root")
    assert not found.one_size
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # by class, as folders are read
    sizes = [tuple(decoded(found, order.index(k)).shape) for k in range(7)]
    assert sizes == [(1, 3, picture(k).height, picture(k).width) for k in range(7)]
    upright = decoded(found, order.index(5))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(upright, np.asarray(picture(5)))
    grey = decoded(found, order.index(6))[0]
    assert grey[0].equal(grey[1])
    expected = torch.from_numpy(np.asarray(deep) >> 8).to(torch.uint8).expand(3, 6, 10)
    assert decoded(found, order.index(7))[0].equal(expected)
    assert device_images(found, [{"name": "center_crop", "size": 6}]).gather(torch.arange(8))[
        0
    ].shape == (
        8,
        3,
        6,
        6,
    )


@pytest.mark.parametrize("mode", ["L", "1"])
def test_set_of_greys_keeps_one_channel(tmp_path, mode):
    pictures = [(picture(number, mode), ".png", {}) for number in range(4)]
    found = load(write_all(tmp_path / "set", pictures), tmp_path / "root")
    assert found.pixels.headers.channels == 1
    assert device_images(found).gather(torch.arange(4))[0].shape == (4, 1, 8, 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_sizes_are_those_of_upright_images(tmp_path, suffix):
    side, exif = turned(picture(0))
    same = [(picture(0), suffix, {}), (side, suffix, {"exif": exif})]
    assert load(write_all(tmp_path / "same", same), tmp_path / "root").one_size
    plain = [(picture(0), suffix, {}), (side, suffix, {})]
    assert not load(write_all(tmp_path / "plain", plain), tmp_path / "root").one_size


def test_sizes_that_only_decoding_shows_are_noticed(tmp_path, monkeypatch):
    """An orientation after a PNG's pixels is not in its header."""
    monkeypatch.setattr(headers, "_upright_size", lambda _: (9, 9))
    pictures = [(picture(number), ".png", {}) for number in range(4)]
    folder = write_all(tmp_path / "set", pictures)
    assert not load(folder, tmp_path / "root").one_size
    assert not load(folder, tmp_path / "root").one_size
    assert [path.suffix for path in stored(tmp_path / "root")] == [".json"]


def stored(root):
    """What is stored of a set, beside locks and the images' keys."""
    found = (root / "images").iterdir()
    return [path for path in found if not path.name.startswith(".") and path.suffix != ".keys"]


@pytest.fixture
def scans(monkeypatch):
    """Counts how often headers are read."""
    calls = []

    def counted(encoded):
        calls.append(encoded.split)
        return headers.read_headers(encoded)

    monkeypatch.setattr(decoded_store, "read_headers", counted)
    return calls


def test_headers_are_read_once(folder, tmp_path, scans):
    first = load(folder, tmp_path)
    again = load(folder, tmp_path)
    assert scans == ["train"]
    assert again.fingerprint == first.fingerprint
    assert again.pixels.headers == first.pixels.headers
    assert not first.labels.flags.writeable


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"channels": 3}'])
def test_damaged_note_is_written_anew(folder, tmp_path, scans, damage):
    first = load(folder, tmp_path)
    (note,) = stored(tmp_path)
    note.write_text(damage)
    assert load(folder, tmp_path).pixels.headers == first.pixels.headers
    assert len(scans) == 2
    assert json.loads(note.read_text())["channels"] == 3


def test_identity_is_of_content_not_of_files(folder, tmp_path):
    first = load(folder, tmp_path / "root").fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    renamed = moved / "train" / "cat" / "00.jpg"
    renamed.rename(renamed.with_name("000.jpg"))
    assert load(moved, tmp_path / "other").fingerprint == first
    (moved / "train" / "cat").rename(moved / "train" / "bat")
    assert load(moved, tmp_path / "other").fingerprint != first


def test_identity_changes_with_pixels_and_rules(folder, tmp_path, monkeypatch):
    first = load(folder, tmp_path / "root").fingerprint
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    picture(1).save(changed / "train" / "cat" / "00.jpg", quality=95)
    assert load(changed, tmp_path / "root").fingerprint != first
    monkeypatch.setattr(source_key, "VERSION", source_key.VERSION + 1)
    assert load(folder, tmp_path / "root").fingerprint != first


def test_set_of_several_sizes_is_not_stored(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(folder, tmp_path)
    assert [path.suffix for path in stored(tmp_path)] == [".json"]
    assert len(list(tmp_path.glob("images/*.keys"))) == 1
    assert caplog.text == ""
