"""The counter-based generator: every random choice is a pure function of where it is used.

    bits(seed, position, draw, view, index) -> 64 bits

No global generator is touched and nothing is stored, so a view replays in any batch, order,
process count and library version. The function is a chain of splitmix64 finalizers (Steele, Lea &
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) in 64-bit arithmetic with
wrap-around; `docs/views.md` specifies it, with known answers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GENERATOR_VERSION = 1

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def as_int64(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned `value`."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix_integer(state: int, field: int) -> int:
    """One link of the chain, on Python integers modulo 2^64."""
    x = ((state + _GOLDEN) ^ field) & _MASK
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _MASK
    return x ^ (x >> 31)


def mix(state: Tensor, field: Tensor) -> Tensor:
    """One link of the chain, on int64 tensors that broadcast; bit-equal to `mix_integer`."""
    x = (state + as_int64(_GOLDEN)) ^ field
    x = (x ^ _shift_right(x, 30)) * as_int64(_MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * as_int64(_MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, places: int) -> Tensor:
    """Logical right shift: int64 shifts keep the sign, so the copies of it are masked away."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def derive_seed(*fields: int) -> int:
    """64 bits, as an unsigned Python integer, from the fields in order."""
    state = 0
    for field in fields:
        state = mix_integer(state, field)
    return state


def bits_KB(
    seed: int, draws: Sequence[tuple[int, int]], view: int | Tensor, index: Tensor
) -> Tensor:
    """The random bits of a batch, for every draw of a pipeline at once.

    Args:
        seed: the views' seed.
        draws: K pairs (position of the operation in the pipeline, draw number within it).
        view: the view number, one for all samples or int64 [B].
        index: int64 [B], position of each sample in the data set.

    Returns:
        int64 [K, B].
    """
    states = [derive_seed(seed, position, draw) for position, draw in draws]
    if isinstance(view, int):
        states = [mix_integer(state, view) for state in states]
    words = [as_int64(state) for state in states]  # none at all where nothing is drawn
    state_K1 = torch.tensor(words, dtype=torch.int64, device=index.device).view(-1, 1)
    if isinstance(view, Tensor):
        state_K1 = mix(state_K1, view)
    return mix(state_K1, index)


def integers(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Uniform int64 in [0, bound) from the upper 32 bits, for bound < 2^31, also one a sample.

    No value's probability is further than 2^-32 from 1/bound.
    """
    assert isinstance(bound, Tensor) or 0 < bound < 1 << 31
    return (_shift_right(bits, 32) * bound) >> 32


def bernoulli(bits: Tensor, probability: float) -> Tensor:
    """True with `probability`, which is rounded to a multiple of 2^-32."""
    return _shift_right(bits, 32) < round(probability * (1 << 32))


def permutation(num_samples: int, *fields: int) -> Tensor:
    """A permutation of 0..num_samples-1 (int64) that is a pure function of `fields`.

    The keys that are sorted all differ: for one state, a link of the chain is a bijection.
    """
    state = torch.tensor(as_int64(derive_seed(*fields)))
    return torch.argsort(mix(state, torch.arange(num_samples)), stable=True)
