"""docs/views.md is a specification: whoever follows it alone makes kdscale's views, bit for bit."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdscale.commands.build import build
from kdscale.data.views.digest import digest
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.operation_registry import MIXING, OPERATIONS
from kdscale.data.views.pipeline import Pipeline
from kdscale.experiment import Experiment, Locations
from tests.data import replay
from tests.data.replay_pixels import (
    affine_map,
    beta,
    cosine,
    log_uniform,
    resampled_line,
    sine,
    tangent,
)

# --------------------------------------------------------------------------- any pipeline

P = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
LEVEL = st.integers(0, 255)
SIDE = st.integers(5, 40)
SIZE = SIDE | st.lists(SIDE, min_size=2, max_size=2)
SAMPLING = {"interpolation": st.sampled_from(["nearest", "bilinear"])}
RESAMPLING = {**SAMPLING, "antialias": st.booleans()}
AFFINE = {**SAMPLING, "fill": LEVEL}
BINS = st.integers(2, 31)


def limits(low, high, count=2):
    """`count` / 2 pairs of a lower and an upper limit."""
    pair = st.lists(st.floats(low, high), min_size=2, max_size=2).map(sorted)
    return pair if count == 2 else st.builds(lambda a, b: a + b, pair, pair)


def either(single, low, high):
    """One number in 0..single, or a lower and an upper limit."""
    return st.floats(0, single) | limits(low, high)


def magnitudes(bins):
    return st.fixed_dictionaries(
        {"num_magnitude_bins": st.just(bins), "magnitude": st.integers(0, bins - 1)}
    )


# Required and optional arguments.
ARGUMENTS = {
    "random_crop": (
        {"padding": st.integers(1, 4)},
        {"padding_mode": st.sampled_from(["constant", "edge", "reflect"]), "fill": LEVEL},
    ),
    "random_horizontal_flip": ({}, {"p": P}),
    "random_vertical_flip": ({}, {"p": P}),
    "center_crop": ({"size": SIZE}, {}),
    "resize": ({"size": SIZE}, RESAMPLING),
    "random_resized_crop": (
        {"size": SIZE},
        {"scale": limits(0.0001, 1), "ratio": limits(0.01, 100) | limits(0.5, 2), **RESAMPLING},
    ),
    "random_rotation": ({"degrees": either(360, -360, 360)}, AFFINE),
    "random_affine": (
        {"degrees": either(360, -360, 360)},
        {
            "translate": st.none() | st.lists(st.floats(0, 1), min_size=2, max_size=2),
            "scale": st.none() | limits(0.01, 100) | limits(0.5, 2),
            "shear": st.none() | either(89, -89, 89) | limits(-89, 89, 4) | limits(-20, 20, 4),
            **AFFINE,
        },
    ),
    "color_jitter": (
        {},
        {
            **dict.fromkeys(["brightness", "contrast", "saturation"], either(15, 0, 16)),
            "hue": either(0.5, -0.5, 0.5),
        },
    ),
    "random_grayscale": ({}, {"p": P}),
    "grayscale": ({}, {}),
    "gaussian_blur": (
        {"kernel_size": st.sampled_from([1, 3, 5, 7, 9])},
        {"sigma": st.floats(1 / 64, 16) | limits(1 / 64, 16)},
    ),
    "random_invert": ({}, {"p": P}),
    "random_posterize": ({"bits": st.integers(0, 8)}, {"p": P}),
    "random_solarize": ({"threshold": st.floats(0, 255)}, {"p": P}),
    "random_adjust_sharpness": ({"sharpness_factor": st.floats(0, 16)}, {"p": P}),
    "random_autocontrast": ({}, {"p": P}),
    "random_equalize": ({}, {"p": P}),
    "rand_augment": ({}, {"num_ops": st.integers(0, 2), **AFFINE}),
    "trivial_augment_wide": ({}, {"num_magnitude_bins": BINS, **AFFINE}),
    "random_erasing": (
        {},
        {
            "p": P,
            "scale": limits(0, 1),
            "ratio": limits(1 / 1024, 1024) | limits(0.3, 3.3),
            "value": LEVEL | st.just("random"),
        },
    ),
    "cutout": ({"size": st.integers(1, 60)}, {"p": P, "value": LEVEL}),
    "mixup": ({}, {"alpha": st.floats(0.01, 100) | st.floats(0.2, 2), "p": P}),
    "cutmix": ({}, {"alpha": st.floats(0.01, 100) | st.floats(0.2, 2), "p": P}),
    "mixup_or_cutmix": (
        {},
        {"mixup_alpha": st.floats(0.01, 100), "cutmix_alpha": st.floats(0.01, 100), "switch_p": P}
        | {"p": P},
    ),
}
CHOSEN_ALIKE = {"random_crop", "rand_augment", "trivial_augment_wide", "grayscale", "center_crop"}
FINITE = sorted(
    name
    for name in OPERATIONS
    if name in CHOSEN_ALIKE or (set(ARGUMENTS[name][1]) == {"p"} and name != "cutout")
)


@st.composite
def entries(draw, name):
    """An operation with random arguments."""
    required, optional = ARGUMENTS[name]
    entry = draw(st.fixed_dictionaries({"name": st.just(name), **required}, optional=optional))
    if name == "rand_augment":
        entry |= draw(BINS.flatmap(magnitudes))
    return entry


any_entry = st.sampled_from(sorted(OPERATIONS)).flatmap(entries)
any_mixing = st.sampled_from(sorted(MIXING)).flatmap(entries)
finite_entry = st.sampled_from(FINITE).flatmap(entries)
SEEDS = st.integers(0, 2**63 - 1)
COUNTERS = st.integers(0, 300) | st.integers(0, 2**63 - 1)


@st.composite
def pictures(draw, count):
    """Images of one random shape: noise, few grey levels, or smooth."""
    shape = (count, draw(st.sampled_from([1, 3])), draw(SIDE), draw(SIDE))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["noise", "levels", "smooth"]))
    if kind == "smooth":
        pixels = replay.sample_images(*shape[1:], random.integers(0, 99, count))
    elif kind == "levels":
        pixels = random.integers(60, 60 + draw(st.integers(1, 9)), shape)
    else:
        pixels = random.integers(0, 256, shape)
    return pixels.astype(np.uint8)


def canonical(pipeline):
    return json.dumps(pipeline.describe(), sort_keys=True, separators=(",", ":"))


def check(pipeline, pixels, views, indices):
    """kdscale's views of all samples are those of the description."""
    description = canonical(pipeline)
    place = {index: position for position, index in enumerate(indices)}
    again = Pipeline.from_description(json.loads(description))
    plan = again.plan(torch.tensor(views), torch.tensor(indices))[0]
    images = torch.from_numpy(pixels)[[place[i] for i in plan.images.host_index.tolist()]]
    found = again.render(images, plan).pixels
    expected = replay.replay(description, pixels, views, indices)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert digest(found).tolist() == [replay.digest(image) for image in expected]


def check_drawn(data, operations, *, enumerated=False):
    """The views of random samples, whatever is drawn."""
    count = data.draw(st.integers(1, 6))
    counters = st.lists(COUNTERS, min_size=count, max_size=count)
    indices = data.draw(st.lists(COUNTERS, min_size=count, max_size=count, unique=True))
    pipeline = Pipeline.parse(operations, data.draw(SEEDS), enumerated=enumerated)
    check(pipeline, data.draw(pictures(count)), data.draw(counters), indices)


def check_mixed(data, before, mixing, after):
    """The views of all samples of a small split, mixed in pairs."""
    count = data.draw(st.integers(3, 9))
    within = data.draw(st.none() | st.integers(2, 10))
    pairing = MixPairs(count, data.draw(st.sampled_from([0.0, 0.2, 0.4])), within)
    pipeline = Pipeline.parse([*before, mixing, *after], data.draw(SEEDS), pairing=pairing)
    views = [data.draw(COUNTERS)] * count
    check(pipeline, data.draw(pictures(count)), views, list(range(count)))


def check_pipelines(data):
    """A pipeline of any operations, mixed or not."""
    before, after = (data.draw(st.lists(any_entry, max_size=2)) for _ in range(2))
    if data.draw(st.booleans()):
        check_drawn(data, [*before, *after])
    else:
        check_mixed(data, before, data.draw(any_mixing), after)


# --------------------------------------------------------------------------- tests


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_pipeline_is_replayed(data):
    check_pipelines(data)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(data=st.data())
def test_many_pipelines_are_replayed(data):
    check_pipelines(data)


@pytest.mark.parametrize("name", [*OPERATIONS, *MIXING])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_operation_is_replayed(name, data):
    if name in MIXING:
        check_mixed(data, [], data.draw(entries(name)), [])
    else:
        check_drawn(data, [data.draw(entries(name))])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPERATIONS, *MIXING])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_operation_is_replayed_often(name, data):
    if name in MIXING:
        check_mixed(data, [], data.draw(entries(name)), [])
    else:
        check_drawn(data, [data.draw(entries(name))])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_enumerated_views_are_replayed(data):
    check_drawn(data, data.draw(st.lists(finite_entry, max_size=2)), enumerated=True)


MIXED = {
    "operations": [
        {"name": "random_resized_crop", "size": 8},
        {"name": "rand_augment", "interpolation": "bilinear"},
        "mixup_or_cutmix",
        {"name": "random_erasing", "value": "random"},
    ],
    "count": 2,
}
ALL = {"operations": [{"name": "random_crop", "padding": 1}], "count": "all"}


def check_cache(path, dataset):
    """Every digest of a cache is that of the view which its manifest and the images give."""
    manifest = json.loads((path / "zarr.json").read_text())["attributes"]["kdscale"]
    cells = pq.read_table(dataset / "train.parquet").column("image").to_pylist()
    images = [np.array(Image.open(io.BytesIO(cell["bytes"])))[None] for cell in cells]
    digests = zarr.open_array(path / "digests", mode="r")
    for view in range(manifest["num_views"]):
        views = replay.replay_cache(manifest, images, view, range(len(images)))
        assert [replay.digest(image) for image in views] == (digests[view] - np.uint64(1)).tolist()


def test_cache_is_replayed_from_its_manifest_alone(tiny_cache, dataset):
    check_cache(tiny_cache, dataset)


@pytest.mark.parametrize("views", [MIXED, ALL], ids=["mixed", "all"])
@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_built_cache_is_replayed(views, validation, load_table, tiny_teacher, dataset, tmp_path):
    recipe = load_table(views=views, data={"validation": validation})
    path = build(Experiment(recipe, Locations(cache_root=tmp_path, teacher_weights=tiny_teacher)))
    check_cache(path, dataset)


@pytest.mark.parametrize(
    ("num_samples", "validation", "within", "seed", "view", "expected"),
    replay.known_answers("pairs"),
)
def test_documented_pairs_are_replayed(num_samples, validation, within, seed, view, expected):
    within = within or None
    assert MixPairs(num_samples, validation, within).partners(seed, view).tolist() == expected
    assert replay.partners(num_samples, validation, seed, view, within) == expected


@pytest.mark.parametrize(
    ("arguments", "seed", "index", "view", "drawn"), replay.known_answers("all views")
)
def test_documented_outcomes_are_replayed(arguments, seed, index, view, drawn):
    padding, p = (float(argument) for argument in arguments.split())
    crop = {"name": "random_crop", "padding": int(padding)}
    pipeline = Pipeline.parse(
        [crop, {"name": "random_horizontal_flip", "p": p}], seed, enumerated=True
    )
    images = replay.sample_images(3, 9, 7, [index])
    found = pipeline(torch.from_numpy(images), view, torch.tensor([index])).numpy()
    np.testing.assert_array_equal(
        found, replay.replay(canonical(pipeline), images, [view], [index])
    )
    top, left, flipped = drawn
    padded = np.pad(images, [(0, 0), (0, 0), *[(int(padding), int(padding))] * 2])
    crop = padded[:, :, top : top + 9, left : left + 7]
    np.testing.assert_array_equal(found, crop[..., ::-1] if flipped else crop)


def test_documented_tables_are_replayed():
    rows = {name: replay.known_answers(name) for name in ("sines", "tangents", "log_uniform")}
    assert all([sine(angle), cosine(angle)] == wanted for angle, *wanted in rows["sines"])
    assert all(tangent(angle) == wanted for angle, wanted in rows["tangents"])
    assert all(log_uniform(*arguments) == wanted for *arguments, wanted in rows["log_uniform"])
    for alpha, entry, wanted in replay.known_answers("beta"):
        assert beta(alpha)[entry] == wanted
    for *arguments, wanted in replay.known_answers("affine maps"):
        assert [*affine_map(*arguments)] == wanted
    for old, *arguments, wanted in replay.known_answers("resampling"):
        line = resampled_line(np.atleast_1d(old), *arguments)
        assert line.tolist() == np.atleast_1d(wanted).tolist()


@pytest.mark.parametrize(("mode", "line"), replay.known_answers("padding"))
def test_documented_padding_is_replayed(mode, line):
    entry = {"name": "random_crop", "padding": 2, "padding_mode": mode, "fill": 7}
    description = json.dumps(Pipeline.parse([entry]).describe())
    image = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 1, 3, 3))
    for index in range(20):
        left = replay.integer(replay.bits(0, 0, 1, 0, index), 5)
        found = replay.replay(description, image, [0], [index])
        assert found[0, 0, 1].tolist() in (line[left : left + 3], [7] * 3)


def test_torchvision_is_not_replayed():
    pipeline = Pipeline.parse([{"name": "v2.RandomInvert"}])
    with pytest.raises(NotImplementedError, match=r"v2\.RandomInvert is no native operation"):
        replay.replay(canonical(pipeline), np.zeros((1, 3, 5, 5), np.uint8), [0], [0])
