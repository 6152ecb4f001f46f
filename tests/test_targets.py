"""Targets as they are stored: what `encode` keeps and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.errors import CacheError
from kdscale.targets import ENCODINGS, bytes_per_target, decode, encode

FINITE = st.lists(st.floats(-6e4, 6e4, width=32), min_size=3, max_size=3)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_float32_gives_back_every_bit(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(decode(encode(logits, "float32")).logits_BC, logits)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_float16_gives_back_the_nearest_half(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(decode(encode(logits, "float16")).logits_BC, logits.half().float())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoding_twice_changes_nothing_more(encoding):
    once = decode(encode(torch.randn(16, 5) * 20, encoding)).logits_BC
    assert torch.equal(decode(encode(once, encoding)).logits_BC, once)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stored_type_and_size_are_those_announced(encoding):
    stored = encode(torch.randn(7, 5), encoding)["logits"]
    assert stored.dtype == np.dtype(encoding)
    assert stored.nbytes == 7 * bytes_per_target(5, encoding)


def test_bfloat16_logits_of_a_teacher_are_stored():
    logits = torch.randn(4, 3).bfloat16()
    assert torch.equal(decode(encode(logits, "float32")).logits_BC, logits.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_logits_that_are_not_finite_are_refused(value, encoding):
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    with pytest.raises(CacheError, match="not finite"):
        encode(logits, encoding)


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_logit_beyond_the_encoding_is_refused_and_a_larger_one_named(value):
    logits = torch.tensor([[0.0, value]])
    with pytest.raises(CacheError, match=r"float16's 65504: set cache\.encoding = 'float32'"):
        encode(logits, "float16")
    assert torch.equal(decode(encode(logits, "float32")).logits_BC, logits)
