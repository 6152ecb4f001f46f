"""A cache of any model on any data set, from Python; and a data set of both, for any loader."""

import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import kdscale
from kdscale.cache.manifest import read_manifest
from kdscale.errors import CacheMismatchError, ConfigError, DataError

INPUT = {"mean": [0.5], "std": [0.25]}
FLIP_AND_CROP = [{"name": "random_crop", "padding": 1}, "random_horizontal_flip"]
SAMPLES = 24


class Teacher(nn.Module):
    """A linear model with dropout: what it says depends on its mode."""

    def __init__(self, channels=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * channels, 4))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Teacher()


def pixels(count=SAMPLES, channels=1):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


class Arrays:
    """A map-style data set of grey arrays and labels."""

    classes = ["a", "b", "c", "d"]  # noqa: RUF012

    def __init__(self, kind=lambda array: array[:, :, 0]):
        self.images, self.kind = pixels(), kind

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.kind(self.images[index]), index % 4


def build(teacher, dataset, tmp_path, views=FLIP_AND_CROP, **changes):
    settings = {"num_views": 2, "cache": {"encoding": "float32"}, "input": INPUT}
    return kdscale.build_cache(teacher, dataset, views, tmp_path / "one.zarr", **settings | changes)


def opened(tmp_path, dataset, **changes):
    return kdscale.CachedDataset(tmp_path / "one.zarr", dataset, **changes)


@torch.no_grad()
def answers(teacher, images):
    teacher.eval()
    return teacher((images.float() / 255 - 0.5) / 0.25)


# --------------------------------------------------------------------------- building


def test_logits_are_those_of_the_teacher_on_the_same_pixels(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    dataset = opened(tmp_path, Arrays())
    assert len(dataset) == SAMPLES
    assert dataset.class_names == ("a", "b", "c", "d")
    seen = set()
    for epoch in range(2):
        dataset.set_epoch(epoch)
        images, labels, logits = zip(*(dataset[i] for i in range(SAMPLES)), strict=True)
        assert [int(one) for one in labels] == [i % 4 for i in range(SAMPLES)]
        assert images[0].dtype == torch.uint8
        torch.testing.assert_close(torch.stack(logits), answers(teacher, torch.stack(images)))
        seen.add(torch.stack(images).numpy().tobytes())
    assert len(seen) == 2  # views differ by epoch


def test_teacher_is_left_as_it_was(teacher, tmp_path):
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    build(teacher, Arrays(), tmp_path)
    assert teacher.training
    assert teacher.layers[1].training
    assert all(one.requires_grad for one in teacher.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())


KINDS = {
    "array [H, W]": lambda array: array[:, :, 0],
    "array [H, W, C]": lambda array: array,
    "tensor [C, H, W]": lambda array: torch.tensor(array).permute(2, 0, 1),
    "Pillow": lambda array: Image.fromarray(array[:, :, 0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_the_same_in_whatever_form_they_come(kind, teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    other = opened(tmp_path, Arrays(KINDS[kind]))  # refused if a pixel differed
    assert other[3][0].shape == (1, 8, 8)


def test_paths_and_mappings_are_read_too(teacher, tmp_path):
    for number, array in enumerate(pixels()):
        Image.fromarray(array[:, :, 0]).save(tmp_path / f"{number}.png")
    samples = [{"image": tmp_path / f"{i}.png", "label": i % 4} for i in range(SAMPLES)]
    build(teacher, Arrays(), tmp_path)
    images = kdscale.images_of(samples, class_names=Arrays.classes, root=tmp_path)
    paths = kdscale.build_cache(
        teacher, images, FLIP_AND_CROP, tmp_path / "paths.zarr", input=INPUT, num_views=2,
        cache={"encoding": "float32"},
    )  # fmt: skip
    assert opened(tmp_path, samples)[5][2].equal(kdscale.CachedDataset(paths, images)[5][2])


def test_command_line_reads_it_and_a_second_build_finds_it(teacher, tmp_path, kdscale):
    path = build(teacher, Arrays(), tmp_path)
    before = (path / "zarr.json").stat().st_mtime_ns
    build(teacher, Arrays(), tmp_path)
    assert (path / "zarr.json").stat().st_mtime_ns == before
    assert kdscale("cache", "verify", path).exit_code == 0


def test_another_teacher_is_refused_by_field(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    with torch.no_grad():
        teacher.layers[2].weight[0, 0] += 1
    with pytest.raises(CacheMismatchError, match="weights_sha256"):
        build(teacher, Arrays(), tmp_path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "is empty"),
        ([(np.zeros((8, 8), np.float32), 0)] * 4, "float32 pixels, wanted uint8"),
        ([(torch.zeros(8, 8, 3, dtype=torch.uint8), 0)] * 4, r"wanted \[C, H, W\]"),
        ([(3, 0)] * 4, "is a int, wanted a Pillow image"),
        ([(np.zeros((8, 8), np.uint8), "cat")] * 4, "has the label 'cat'"),
        ([(np.zeros((8, 8), np.uint8), 0), (np.zeros((8, 8), np.uint8),)] * 4, "have no label"),
        ([{"foto": 1}], "has the keys foto"),
        ([(np.zeros((8, 8), np.uint8), 0.7)] * 4, "has the label 0.7"),
        ([(np.zeros((8, 8), np.uint8), -5)] * 4, "has the label -5"),
        ([{"image": np.zeros((8, 8), np.uint8), "coarse": 3}], "numbers under coarse"),
        ([(Image.new("HSV", (8, 8)), 0)] * 4, "sample 0 of one cannot be read"),
    ],
)
def test_samples_that_are_no_images_are_refused_by_name(samples, message, teacher, tmp_path):
    with pytest.raises(DataError, match=message):
        build(teacher, samples, tmp_path)
    assert not (tmp_path / "one.zarr").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": {"mean": [0.5]}}, "kdscale.build_cache: 'teacher.input.std' is missing"),
        ({"input": None}, "Teacher does not state what it takes: give input="),
        ({"cache": {"encodings": "float32"}}, "did you mean 'encoding'"),
        ({"forward": {"precision": "float8"}}, "teacher.precision"),
        ({"num_views": 0}, "views.count"),
    ],
)
def test_settings_are_checked_as_those_of_a_recipe(settings, message, teacher, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(teacher, Arrays(), tmp_path, **settings)


def test_model_of_timm_states_its_input(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet.r160_in1k", num_classes=4)
    samples = [(Image.fromarray(array[:, :, [0, 0, 0]]), 0) for array in pixels(4)]
    images = kdscale.images_of(samples, class_names=Arrays.classes, root=tmp_path)
    path = build(net, images, tmp_path, input=None, num_views=1)
    stated = read_manifest(path).teacher["preprocess"]
    assert stated["mean"] == pytest.approx(net.pretrained_cfg["mean"])
    assert stated["size"] == net.pretrained_cfg["input_size"][-1]


def test_views_have_the_seed_of_a_pipeline(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path, kdscale.Pipeline.parse(FLIP_AND_CROP, seed=7))
    assert read_manifest(tmp_path / "one.zarr").views["seed"] == 7
    image, _, logits = opened(tmp_path, Arrays())[3]
    torch.testing.assert_close(logits[None], answers(teacher, image[None]))


def test_labels_beyond_the_class_names_are_refused(teacher, tmp_path):
    with pytest.raises(DataError, match="label 3, and 2 class names"):
        kdscale.images_of(Arrays(), class_names=["a", "b"], root=tmp_path)


# --------------------------------------------------------------------------- views


def jitter(image):
    """A transform of a user's own, which draws from torch's generator."""
    return (image.float() * (0.5 + torch.rand(()) / 2)).to(torch.uint8)


def test_transforms_of_torchvision_and_of_your_own_are_replayed(teacher, tmp_path):
    views = [v2.RandomCrop(8, padding=1), jitter, "random_horizontal_flip"]
    build(teacher, Arrays(), tmp_path, views)
    dataset = opened(tmp_path, Arrays(), views=views)
    image, _, logits = dataset[7]
    torch.testing.assert_close(logits[None], answers(teacher, image[None]))


def test_transform_of_your_own_is_asked_for_by_name(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path, [jitter])
    with pytest.raises(ConfigError, match=r"jitter.*views=\[\.\.\.\]"):
        opened(tmp_path, Arrays())


def test_transform_of_your_own_is_asked_for_by_the_name_you_gave_it(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path, [kdscale.TorchvisionOp(jitter, name="darker, 0.5")])
    with pytest.raises(ConfigError, match=r"a transform of your own, 'darker, 0.5'"):
        opened(tmp_path, Arrays())


def test_other_views_than_the_caches_are_refused(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    with pytest.raises(CacheMismatchError, match="views"):
        opened(tmp_path, Arrays(), views=["random_horizontal_flip"])


class Brightness:
    """A transform of a user's own that does not say its factor."""

    def __init__(self, factor):
        self.factor = factor

    def apply(self, image):
        return (image * self.factor).to(torch.uint8)


@pytest.mark.parametrize(
    "views",
    [
        [lambda image: image],
        [v2.Compose([v2.RandomHorizontalFlip(), v2.Lambda(lambda image: image // 2)])],
        [v2.Lambda(jitter)],
        [Brightness(0.5).apply],
    ],
    ids=["lambda", "lambda inside", "v2.Lambda", "method"],
)
def test_transform_whose_name_does_not_tell_it_from_another_is_refused(views, teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"no name by which .*TorchvisionOp\(function, name="):
        build(teacher, Arrays(), tmp_path, views)


def test_transform_may_be_named(teacher, tmp_path):
    views = [kdscale.TorchvisionOp(Brightness(0.5).apply, name="darker, 0.5")]
    build(teacher, Arrays(), tmp_path, views, num_views=1)
    image, _, logits = opened(tmp_path, Arrays(), views=views)[2]
    torch.testing.assert_close(logits[None], answers(teacher, image[None]))


@pytest.mark.parametrize(
    "views",
    [[{"name": "random_resized_crop", "size": 8}], [v2.RandomResizedCrop(8)]],
    ids=["kdscale", "torchvision"],
)
def test_images_of_several_sizes_are_cached_with_a_clean_size(views, teacher, tmp_path):
    samples = [(Image.new("L", (9 + i % 4, 12), 10 * i), i % 4) for i in range(SAMPLES)]
    with pytest.raises(ConfigError, match=r"images_of\(dataset, clean=\[\{"):
        build(teacher, samples, tmp_path, views)
    clean = [{"name": "resize", "size": [8, 8]}]
    images = kdscale.images_of(samples, class_names=Arrays.classes, clean=clean, root=tmp_path)
    build(teacher, images, tmp_path, views)
    dataset = opened(tmp_path, samples, views=views)
    image, _, logits = dataset[5]
    assert image.shape == (1, 8, 8)
    torch.testing.assert_close(logits[None], answers(teacher, image[None]))


# --------------------------------------------------------------------------- loading


def test_data_set_of_other_images_is_refused(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    other = Arrays()
    other.images = other.images.copy()
    other.images[5, 0, 0] ^= 1
    with pytest.raises(CacheMismatchError, match="other images"):
        opened(tmp_path, other)


def test_data_set_that_augments_is_refused(teacher, tmp_path):
    noise = np.random.default_rng(0)
    changing = Arrays(lambda array: noise.integers(0, 256, array.shape[:2], dtype=np.uint8))
    with pytest.raises(DataError, match="other pixels when it is read again"):
        build(teacher, changing, tmp_path)


def test_relative_paths_hold_after_a_change_of_folder(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(teacher, Arrays(), tmp_path)
    dataset = kdscale.CachedDataset("one.zarr", Arrays())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    dataset.set_epoch(1)
    assert dataset[0][2].isfinite().all()


def test_epochs_and_views_that_cannot_be_are_refused(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    with pytest.raises(TypeError):
        opened(tmp_path, Arrays()).set_epoch(1.5)
    with pytest.raises(IndexError, match="counted from 0"):
        opened(tmp_path, Arrays()).set_epoch(-1)
    with pytest.raises(ConfigError, match="num_views is 0"):
        opened(tmp_path, Arrays(), num_views=0)


def test_ctrl_c_ends_a_loop_over_builds(teacher, tmp_path):
    def interrupting(image):
        signal.raise_signal(signal.SIGINT)
        return image

    views = [kdscale.TorchvisionOp(interrupting, name="Ctrl-C", draws=False)]
    with pytest.raises(KeyboardInterrupt):
        build(teacher, Arrays(), tmp_path, views, num_views=1)


@pytest.mark.parametrize("index", [SAMPLES, -SAMPLES - 1])
def test_unknown_sample_is_an_index_error_with_the_range(index, teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    dataset = opened(tmp_path, Arrays())
    with pytest.raises(IndexError, match=r"0\.\.23"):
        dataset[index]
    assert dataset[-1][2].equal(dataset[SAMPLES - 1][2])


@pytest.mark.launch
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_any_loader_gives_the_samples_of_the_epoch(workers, teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    dataset = opened(tmp_path, Arrays())
    loader = DataLoader(dataset, 8, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        images, labels, logits = (torch.cat(one) for one in zip(*loader, strict=True))
        assert labels.tolist() == [i % 4 for i in range(SAMPLES)]
        torch.testing.assert_close(logits, answers(teacher, images))
        dataset.close()
        torch.testing.assert_close(dataset[3][0], images[3])


def test_data_set_is_sent_to_a_process_without_its_pixels(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path)
    dataset = opened(tmp_path, Arrays())
    sent = dataset.__getstate__() | {"_epoch": torch.zeros((), dtype=torch.int64)}
    assert sent["images"].pixels.nbytes == 0
    copy = kdscale.CachedDataset.__new__(kdscale.CachedDataset)
    copy.__setstate__(sent)
    assert copy[4][0].equal(dataset[4][0])


def test_mixed_views_have_shares_of_classes_for_labels(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path, ["mixup"])
    image, label, logits = opened(tmp_path, Arrays())[2]
    assert label.dtype == torch.float32
    assert float(label.sum()) == pytest.approx(1)
    torch.testing.assert_close(logits[None], answers(teacher, image[None]))


def test_features_follow_the_logits(teacher, tmp_path):
    stored = {"encoding": "float32", "features": ["layers.0"]}
    build(teacher, Arrays(), tmp_path, cache=stored)
    image, _, _, features = opened(tmp_path, Arrays(), features=["layers.0"])[2]
    expected = ((image.float() / 255 - 0.5) / 0.25).flatten()
    torch.testing.assert_close(features, expected, atol=2e-3, rtol=1e-3)


def test_torchvisions_transforms_by_name_reach_a_spawned_process(teacher, tmp_path):
    build(teacher, Arrays(), tmp_path, [{"name": "v2.RandomCrop", "size": [8, 8], "padding": 1}])
    dataset = opened(tmp_path, Arrays())
    sent = dataset.__getstate__()
    assert "pipeline" not in sent  # it holds a function of a function
    copy = kdscale.CachedDataset.__new__(kdscale.CachedDataset)
    copy.__setstate__(sent)
    assert copy[4][0].equal(dataset[4][0])


def test_command_line_does_not_look_elsewhere_for_data_that_were_in_memory(
    teacher, tmp_path, kdscale, write_recipe
):
    path = build(teacher, Arrays(), tmp_path)
    source = read_manifest(path).dataset["source"]
    recipe = write_recipe(data={"source": source})
    result = kdscale("cache", "build", recipe)
    assert result.exit_code == 1
    assert "the data set 'one' was given from Python, in memory" in result.output


def test_embedding_of_unlabelled_images_is_cached_and_read_back(tmp_path):
    """A teacher without a classifier, on images without labels and classes."""
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = [one[:, :, 0] for one in pixels()]
    build(teacher, images, tmp_path, cache={"encoding": "none", "features": ["output"]})
    manifest = read_manifest(tmp_path / "one.zarr")
    assert (manifest.num_classes, manifest.format_version) == (0, 4)
    view, label, embedding = opened(tmp_path, images, features=["output"])[5]
    assert label == -1
    again = opened(tmp_path, images)[5]  # all features, where there are no logits
    assert all(map(torch.equal, again, (view, label, embedding)))
    normalised = (view[None].float() / 255 - 0.5) / 0.25
    assert torch.allclose(embedding, teacher(normalised)[0], atol=1e-2)
    with pytest.raises(ConfigError, match="names no classes"):
        build(teacher, images, tmp_path)
