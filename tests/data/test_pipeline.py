import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdscale.data.views.digest import digest
from kdscale.data.views.operations.operation_registry import MIXING, OPERATIONS
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError, DataError
from tests.data import replay

CROP = {"name": "random_crop", "padding": 4}
FLIP = "random_horizontal_flip"
ALL = torch.arange(3)
SEEDS = st.sampled_from([0, 1, 2**63 - 1]) | st.integers(0, 2**63 - 1)
COUNTERS = st.integers(0, 300) | st.integers(0, 2**63 - 1)

crops = st.fixed_dictionaries(
    {"name": st.just("random_crop"), "padding": st.integers(1, 4)},
    optional={
        "padding_mode": st.sampled_from(["constant", "edge", "reflect"]),
        "fill": st.integers(0, 255),
    },
)
flips = st.just(FLIP) | st.fixed_dictionaries(
    {"name": st.just(FLIP)}, optional={"p": st.floats(0, 1)}
)
pipelines = st.builds(Pipeline.parse, st.lists(crops | flips, max_size=4), SEEDS)
DOCUMENTED = dict(replay.known_answers("pipelines"))


def canonical(pipeline):
    return json.dumps(pipeline.describe(), sort_keys=True, separators=(",", ":"))


def parse(description):
    return Pipeline.from_description(json.loads(description))


def images(count, channels=3, height=32, width=32):
    return torch.from_numpy(replay.sample_images(channels, height, width, range(count)))


# --------------------------------------------------------------------------- specification


@pytest.mark.parametrize("description", DOCUMENTED.values(), ids=DOCUMENTED)
def test_description_is_canonical_and_parsed_back(description):
    assert canonical(parse(description)) == description


@pytest.mark.parametrize(
    ("name", "shape", "view", "index", "drawn", "expected"), replay.known_answers("views")
)
def test_views_give_the_documented_digests(name, shape, view, index, drawn, expected):
    pipeline = parse(DOCUMENTED[name])
    plan = pipeline.plan(view, torch.tensor([index]))[0]
    images = torch.from_numpy(replay.sample_images(*shape, plan.images.host_index.tolist()))
    found = pipeline.render(images, plan).pixels
    samples = range(pipeline.pairing.num_samples) if pipeline.pairing else [index]
    views = [view] * len(samples)
    replayed = replay.replay(
        DOCUMENTED[name], replay.sample_images(*shape, samples), views, samples
    )[samples.index(index)]
    assert digest(found).item() == replay.digest(replayed) == expected
    if drawn != "-":
        assert drawn_numbers(json.loads(DOCUMENTED[name]), view, index) == drawn


def drawn_numbers(table, view, index):
    """Top, left and flipped, of a pipeline of crops and flips."""
    draws = []
    for position, entry in enumerate(table["operations"]):
        words = [replay.bits(table["seed"], position, draw, view, index) for draw in (0, 1)]
        if entry["name"] == "random_crop":
            draws += [replay.integer(w, 2 * entry["padding"] + 1) for w in words]
        else:
            draws.append(int(replay.bernoulli(words[0], entry["p"])))
    return draws


@settings(max_examples=150, deadline=None)
@given(data=st.data(), pipeline=pipelines)
def test_independent_reader_replays_every_view(data, pipeline):
    channels = data.draw(st.sampled_from([1, 3]))
    shape = (
        data.draw(st.integers(1, 4)),
        channels,
        *data.draw(st.tuples(*[st.integers(5, 19)] * 2)),
    )
    pixels = data.draw(arrays.arrays(np.uint8, shape))
    counters = st.lists(COUNTERS, min_size=shape[0], max_size=shape[0])
    views, indices = data.draw(counters), data.draw(counters)
    found = pipeline(torch.from_numpy(pixels), torch.tensor(views), torch.tensor(indices))
    expected = replay.replay(canonical(pipeline), pixels, views, indices)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert digest(found).tolist() == [replay.digest(image) for image in expected]


@given(pipeline=pipelines)
def test_description_gives_the_pipeline_back(pipeline):
    assert parse(canonical(pipeline)) == pipeline


# --------------------------------------------------------------------------- views


@pytest.mark.parametrize("batch_size", [1, 7, 64, 512])
def test_view_does_not_depend_on_the_batch(batch_size):
    pixels, index = images(512), torch.arange(1000, 1512)
    pipeline = Pipeline.parse([CROP, FLIP], seed=9)
    whole = pipeline(pixels, 3, index)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    found = torch.empty_like(whole)
    for part in order.split(batch_size):
        found[part] = pipeline(pixels[part], 3, index[part])
    assert found.equal(whole)


def test_view_may_be_a_number_or_one_for_each_sample():
    pixels, index = images(6), torch.arange(6)
    pipeline = Pipeline.parse([CROP, FLIP])
    assert pipeline(pixels, torch.full((6,), 4), index).equal(pipeline(pixels, 4, index))
    views = torch.tensor([5, 0, 2, 2, 1, 9])
    mixed = pipeline(pixels, views, index)
    for sample, view in enumerate(views.tolist()):
        alone = pipeline(pixels[sample : sample + 1], view, index[sample : sample + 1])
        assert alone[0].equal(mixed[sample])


def test_operation_added_at_the_end_changes_no_earlier_draw():
    pixels, index = images(64), torch.arange(64)
    short = Pipeline.parse([CROP, FLIP], seed=2)
    never = {"name": FLIP, "p": 0.0}
    always = {"name": FLIP, "p": 1.0}
    expected = short(pixels, 1, index)
    assert Pipeline.parse([CROP, FLIP, never], seed=2)(pixels, 1, index).equal(expected)
    assert Pipeline.parse([CROP, FLIP, always], seed=2)(pixels, 1, index).equal(expected.flip(-1))


def test_seed_view_and_index_each_change_the_views():
    pixels, index = images(1).expand(64, -1, -1, -1), torch.arange(64)
    base = Pipeline.parse([CROP], seed=0)(pixels, 0, index)
    for seed, view, shift in ((1, 0, 0), (0, 1, 0), (0, 0, 64)):
        other = Pipeline.parse([CROP], seed=seed)(pixels, view, index + shift)
        alike = sum(a.equal(b) for a, b in zip(base, other, strict=True))
        assert alike < 8


def test_pipeline_without_operations_gives_the_images():
    pixels = images(3)
    assert Pipeline.parse([])(pixels, 5, torch.arange(3)).equal(pixels)


def test_empty_batch_gives_an_empty_batch():
    found = Pipeline.parse([CROP, FLIP])(images(2)[:0], 5, torch.arange(0))
    assert found.shape == (0, 3, 32, 32)


def global_states():
    legacy = str(np.random.get_state())  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy, random.getstate()


def test_no_global_generator_is_touched():
    before = global_states()
    Pipeline.parse([CROP, FLIP])(images(8), 1, torch.arange(8))
    ViewSchedule(7, 3).view(12, torch.arange(8))
    assert global_states() == before


# --------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("num_views", "seed", "views"), replay.known_answers("schedule"))
def test_schedule_gives_the_documented_views(num_views, seed, views):
    epochs = range(len(views))
    assert [ViewSchedule(num_views, seed).view(epoch, ALL) for epoch in epochs] == views
    assert [replay.view_of_epoch(epoch, num_views, seed) for epoch in epochs] == views


@settings(max_examples=40, deadline=None)
@given(num_views=st.integers(1, 30), seed=SEEDS, cycle=st.integers(0, 1000))
def test_every_cycle_shows_every_view_once(num_views, seed, cycle):
    epochs = range(cycle * num_views, (cycle + 1) * num_views)
    rendered = [ViewSchedule(num_views, seed).view(epoch, ALL) for epoch in epochs]
    assert sorted(rendered) == list(range(num_views))
    assert rendered == [replay.view_of_epoch(epoch, num_views, seed) for epoch in epochs]


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("random_crap", r"no operation 'random_crap': did you mean 'random_crop'\?"),
        ("blur", "no operation 'blur': known: .*random_crop, .*random_horizontal_flip"),
        ({"name": "random_crop", "paddin": 4}, r"no argument 'paddin': did you mean 'padding'\?"),
        ({"name": FLIP, "num_draws": 2}, "no argument 'num_draws': known: p"),
        ({"name": "random_crop"}, "padding is missing: write"),
        ("random_crop", "padding is missing: write"),
        ({"name": "random_crop", "padding": True}, "padding is True, wanted a whole number"),
        ({"name": "random_crop", "padding": 4.0}, r"padding is 4\.0, wanted a whole number"),
        ({"name": "random_crop", "padding": "4"}, "padding is '4', wanted a whole number"),
        ({"name": "random_crop", "padding": 0}, r"padding is 0, wanted 1\.\.1024"),
        ({"name": FLIP, "p": True}, "p is True, wanted a number"),
        ({"name": FLIP, "p": "half"}, "p is 'half', wanted a number"),
        ({"name": FLIP, "p": 2}, r"p is 2\.0, wanted a probability"),
        ({"name": "random_crop", "padding": 1, "padding_mode": 3}, "padding_mode is 3, wanted"),
        ({"padding": 4}, "has no name: write"),
        ({"name": 3}, "has no name: write"),
        (3, "has no name: write"),
        (["random_crop"], "has no name: write"),
    ],
)
def test_wrong_operation_is_refused_with_what_was_wanted(entry, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.parse([entry])


def test_whole_number_is_taken_for_a_probability():
    assert canonical(Pipeline.parse([{"name": FLIP, "p": 1}])).endswith('"p":1.0}],"seed":0}')


def test_parsing_leaves_its_input_alone():
    entry = dict(CROP)
    Pipeline.parse([entry])
    assert entry == CROP


def test_every_operation_is_specified():
    text = replay.SPECIFICATION.read_text(encoding="utf-8")
    headings = "".join(line for line in text.splitlines() if line.startswith("### `"))
    assert all(f"`{name}`" in headings for name in [*OPERATIONS, *MIXING])
    assert set(replay.OPERATIONS) == set(OPERATIONS)
    assert set(replay.MIXING) == set(MIXING)


@pytest.mark.parametrize("name", [*OPERATIONS, *MIXING])
def test_every_operation_has_a_known_answer(name):
    rendered = {row[0] for row in replay.known_answers("views")}
    assert any(f'"name":"{name}"' in DOCUMENTED[pipeline] for pipeline in rendered)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.rand(2, 3, 8, 8).half(),
    ],
    ids=["float32", "one image", "float16"],
)
@pytest.mark.parametrize("operations", [[], [FLIP], ["trivial_augment_wide"]])
def test_pixels_that_are_no_bytes_are_refused(images, operations):
    with pytest.raises(DataError, match=r"wanted torch.uint8 \[B, C, H, W\]"):
        Pipeline.parse(operations)(images, 0, torch.arange(2))
