"""The counter-based generator: every random choice is a pure function of where it is used.

    bits(seed, position, draw, view, index) -> 64 bits

No global generator is touched and nothing is stored, so a view replays in any batch, order,
process count and library version. The function is a chain of splitmix64 finalizers (Steele, Lea &
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) in 64-bit arithmetic with
wrap-around; `docs/views.md` specifies it, with known answers.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kdscale.data import device_tables

GENERATOR_VERSION = 1

_UPPER = int(sys.byteorder == "little")  # where the upper half of a word lies in memory
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


def mix(state: Tensor | int, field: Tensor | int) -> Tensor:
    """One link of the chain, on int64 tensors that broadcast; bit-equal to `mix_integer`.

    One of both may be a number.
    """
    if isinstance(state, Tensor):
        return _finalize((state + as_int64(_GOLDEN)) ^ field)
    assert isinstance(field, Tensor)
    return _finalize(field ^ as_int64(state + _GOLDEN))


def _finalize(x: Tensor) -> Tensor:
    """Return splitmix64's finalizer of int64 [...]."""
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
    if not draws:
        return index.new_empty((0, len(index)))
    number = view if isinstance(view, int) else None
    state_K1 = _states(seed, tuple(draws), number, index.device)
    if isinstance(view, Tensor):
        state_K1 = _finalize(state_K1 ^ view) + as_int64(_GOLDEN)
    return _finalize(state_K1 ^ index)


@lru_cache(maxsize=64)  # of every pipeline in use, for this epoch's view and the next one's
@torch.inference_mode(False)
def _states(
    seed: int, draws: tuple[tuple[int, int], ...], view: int | None, device: torch.device
) -> Tensor:
    """Return the states before the last link, plus the constant that it adds: int64 [K, 1]."""
    states = [derive_seed(seed, position, draw) for position, draw in draws]
    if view is not None:
        states = [mix_integer(state, view) for state in states]
    return torch.tensor([[as_int64(state + _GOLDEN)] for state in states], device=device)


def upper_half(bits: Tensor) -> Tensor:
    """Return the upper 32 bits of each word, int64 in [0, 2^32)."""
    if bits.ndim == 0 or bits.stride(-1) != 1:
        return _shift_right(bits, 32)
    return bits.view(torch.uint32)[..., _UPPER::2].to(torch.int64)


def integers(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Uniform int64 in [0, bound) from the upper 32 bits, for bound < 2^31, also one a sample.

    No value's probability is further than 2^-32 from 1/bound.
    """
    assert isinstance(bound, Tensor) or 0 < bound < 1 << 31
    return (upper_half(bits) * bound) >> 32


def integers_between(bits: Tensor, limits: Sequence[tuple[int, int]]) -> Tensor:
    """Uniform int64 [K, B] from the lowest to the highest value of each draw.

    Args:
        bits: int64 [K, B].
        limits: K pairs (lowest, highest), of less than 2^31 values, below 2^31 either way.
    """
    device = bits.device
    counts = device_tables.on(device, tuple(high - low + 1 for low, high in limits))
    lowest = device_tables.on(device, tuple(low << 32 for low, _ in limits))
    return lowest.view(-1, 1).addcmul(upper_half(bits), counts.view(-1, 1)) >> 32


def bernoulli(bits: Tensor, probability: float) -> Tensor:
    """True with `probability`, which is rounded to a multiple of 2^-32."""
    return upper_half(bits) < round(probability * (1 << 32))


def permutation(num_samples: int, *fields: int) -> Tensor:
    """A permutation of 0..num_samples-1 (int64) that is a pure function of `fields`.

    The keys that are sorted all differ: for one state, a link of the chain is a bijection.
    """
    state = as_int64(derive_seed(*fields))
    return torch.argsort(mix(state, torch.arange(num_samples)), stable=True)
