import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.rng import (
    as_int64,
    bernoulli,
    bits_KB,
    derive_seed,
    integers,
    mix,
    mix_integer,
    permutation,
)
from tests.data import replay

INT64 = st.integers(-(2**63), 2**63 - 1)
COUNTERS = st.integers(0, 2**63 - 1)


def as_list(value):
    return value if isinstance(value, list) else [value]


def word(value):
    """An int64 tensor of the word's 64 bits."""
    return torch.tensor([as_int64(value)])


@pytest.mark.parametrize(("fields", "expected"), replay.known_answers("chain"))
def test_chain_gives_the_documented_answers(fields, expected):
    assert derive_seed(*as_list(fields)) == replay.chain(*as_list(fields)) == expected


@pytest.mark.parametrize(
    ("seed", "position", "draw", "view", "index", "expected"), replay.known_answers("bits")
)
def test_bits_give_the_documented_answers(seed, position, draw, view, index, expected):
    found = bits_KB(seed, [(position, draw)], view, torch.tensor([index]))
    assert found.tolist() == [[as_int64(expected)]]
    assert replay.bits(seed, position, draw, view, index) == expected


@pytest.mark.parametrize(("bits", "bound", "expected"), replay.known_answers("integers"))
def test_integers_give_the_documented_answers(bits, bound, expected):
    assert integers(word(bits), bound).tolist() == [replay.integer(bits, bound)] == [expected]


@pytest.mark.parametrize(("bits", "probability", "expected"), replay.known_answers("bernoulli"))
def test_bernoulli_gives_the_documented_answers(bits, probability, expected):
    assert bernoulli(word(bits), probability).tolist() == [bool(expected)]
    assert replay.bernoulli(bits, probability) == bool(expected)


@pytest.mark.parametrize(("count", "fields", "expected"), replay.known_answers("permutation"))
def test_permutation_gives_the_documented_answers(count, fields, expected):
    assert permutation(count, *fields).tolist() == expected
    assert replay.permutation(count, *fields).tolist() == expected


@given(state=INT64, field=INT64)
def test_absorb_is_alike_on_tensors_integers_and_numpy(state, field):
    integer = mix_integer(state % 2**64, field)
    assert mix(torch.tensor(state), torch.tensor(field)).item() == as_int64(integer)
    assert int(replay.absorb(replay.uint64(state), replay.uint64(field))) == integer


@given(
    seed=COUNTERS,
    draws=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=4),
    pairs=st.lists(st.tuples(COUNTERS, COUNTERS), min_size=1, max_size=5),
)
def test_bits_depend_on_the_five_fields_alone(seed, draws, pairs):
    views, indices = (torch.tensor(column) for column in zip(*pairs, strict=True))
    together = bits_KB(seed, draws, views, indices)
    assert together.shape == (len(draws), len(pairs))
    for b, (view, index) in enumerate(pairs):
        assert bits_KB(seed, draws, view, torch.tensor([index]))[:, 0].equal(together[:, b])
        for k, (position, draw) in enumerate(draws):
            expected = replay.bits(seed, position, draw, view, index)
            assert together[k, b].item() == as_int64(int(expected))


@given(bits=INT64, bound=st.integers(1, 2**31 - 1), probability=st.floats(0, 1))
def test_integers_and_bernoulli_agree_with_exact_arithmetic(bits, bound, probability):
    assert integers(word(bits), bound).item() == replay.integer(bits % 2**64, bound)
    expected = replay.bernoulli(bits % 2**64, probability)
    assert bernoulli(word(bits), probability).item() == expected


@settings(max_examples=30)
@given(count=st.integers(1, 300), fields=st.lists(COUNTERS, min_size=1, max_size=3))
def test_permutation_holds_every_number_once(count, fields):
    found = permutation(count, *fields)
    assert found.sort().values.equal(torch.arange(count))
    assert found.tolist() == replay.permutation(count, *fields).tolist()


def test_neighbouring_counters_give_unrelated_bits():
    """Each input bit flips each output bit about half of the time."""
    index = torch.arange(4096)
    base = bits_KB(0, [(0, 0)], 0, index)[0]
    fields = {"index": bits_KB(0, [(0, 0)], 0, index ^ 1)[0]}
    fields["view"] = bits_KB(0, [(0, 0)], 1, index)[0]
    fields["draw"] = bits_KB(0, [(0, 1)], 0, index)[0]
    fields["position"] = bits_KB(0, [(1, 0)], 0, index)[0]
    fields["seed"] = bits_KB(1, [(0, 0)], 0, index)[0]
    for name, other in fields.items():
        flipped = ((base ^ other).unsqueeze(1) >> torch.arange(64)) & 1
        share = flipped.double().mean(0)
        assert (share - 0.5).abs().max() < 5 * 0.5 / 64 * (2 if name == "index" else 1), name


def global_states():
    legacy = str(np.random.get_state())  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy, random.getstate()


def test_no_global_generator_is_touched():
    before = global_states()
    bits_KB(3, [(0, 0)], 1, torch.arange(8))
    permutation(100, 1, 2)
    assert global_states() == before
