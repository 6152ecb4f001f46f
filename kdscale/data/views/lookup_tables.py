"""Tables of what is not an integer: sines, log-uniform and Beta quantiles, rounded to integers.

`sin`, `pow` and `log` differ in their last bits between instruction sets, libraries and batch
sizes; decimal arithmetic is exactly specified, so these tables are the same everywhere. What is
drawn is a place in a table. `docs/views.md` specifies them, with known answers.
"""

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

UNITS_PER_DEGREE = 64
"""Angles are integers: 64ths of a degree."""
ONE = 1 << 16
"""Sines, cosines, scales and ratios are integers: 65536ths."""
QUANTILES = 1024
"""Entries of a table of quantiles: the middles of so many equally likely intervals."""
SIGMA_UNITS = 64
"""Standard deviations are integers: 64ths of a pixel."""
LARGEST_WEIGHT = 256
"""Mixing weights are integers: 256ths."""

_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _table(function: Callable[Arguments, list[int]]) -> Callable[Arguments, tuple[int, ...]]:
    """Compute in 40 decimal digits, once."""

    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> tuple[int, ...]:
        with localcontext(_CONTEXT):
            return tuple(function(*args, **kwargs))

    return lru_cache(maxsize=64)(wraps(function)(computed))  # type: ignore[return-value]


@_table
def sines() -> list[int]:
    """Sine of 0..90 degrees, [90 · UNITS_PER_DEGREE + 1] in 65536ths."""
    return [_rounded(sine * ONE) for sine in _exact_sines()]


@_table
def tangents() -> list[int]:
    """Tangent of 0 up to, but not, 90 degrees, [90 · UNITS_PER_DEGREE] in 65536ths."""
    sine = _exact_sines()
    return [_rounded(a / b * ONE) for a, b in zip(sine[:-1], sine[:0:-1], strict=True)]


@_table
def log_uniform(low: float, high: float) -> list[int]:
    """Quantiles of exp(U(ln low, ln high)), [QUANTILES] in 65536ths, ascending."""
    first, last = Decimal(low).ln(), Decimal(high).ln()
    return [_rounded((first + (last - first) * p).exp() * ONE) for p in _middles()]


@_table
def gaussian(kernel_size: int, largest_sigma: int) -> list[int]:
    """Weights of Gaussians, [largest_sigma · (kernel_size + 1)/2] in 32768ths, row by row.

    Row s - 1 has a standard deviation of s/SIGMA_UNITS pixels. Its entry j is the weight of the
    pixels at distance j; the middle one makes up for the rounding, so that a row and its mirror
    image sum to 32768 exactly.
    """
    table = []
    for sigma in range(1, largest_sigma + 1):
        decay = (-Decimal(SIGMA_UNITS**2) / (2 * sigma**2)).exp()
        sides = [decay ** (j * j) for j in range(1, kernel_size // 2 + 1)]
        total = 1 + 2 * sum(sides)
        weights = [_rounded(side / total * (ONE // 2)) for side in sides]
        table += [ONE // 2 - 2 * sum(weights), *weights]
    return table


@_table
def beta(alpha: float) -> list[int]:
    """Quantiles of Beta(alpha, alpha), [QUANTILES] in 256ths, ascending.

    An entry is the number of middles (k - 1/2)/256, k = 1..256, at which the distribution function
    does not exceed its probability: the quantile, rounded.
    """
    half = _beta_integral(Decimal("0.5"), Decimal(alpha)) * 2  # the function is 1/2 at 1/2
    cuts = [(Decimal(k) - Decimal("0.5")) / LARGEST_WEIGHT for k in range(1, 129)]
    lower = [_beta_integral(cut, Decimal(alpha)) / half for cut in cuts]
    table = [sum(value <= p for value in lower) for p in _middles()[: QUANTILES // 2]]
    return table + [LARGEST_WEIGHT - entry for entry in reversed(table)]


def _middles() -> list[Decimal]:
    return [(Decimal(step) + Decimal("0.5")) / QUANTILES for step in range(QUANTILES)]


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def _exact_sines() -> list[Decimal]:
    half_pi = _arctangent_of_reciprocal(5) * 8 - _arctangent_of_reciprocal(239) * 2
    steps = 90 * UNITS_PER_DEGREE
    return [_sine(half_pi * step / steps) for step in range(steps + 1)]


def _sine(x: Decimal) -> Decimal:
    """Taylor's series, 0 <= x <= pi/2."""
    term = total = x
    for n in range(3, 60, 2):
        term = -term * x * x / (n * (n - 1))
        total += term
    return total


def _arctangent_of_reciprocal(n: int) -> Decimal:
    """Gregory's series; pi/4 = 4 arctan(1/5) - arctan(1/239) (Machin, 1706)."""
    power = Decimal(1) / n
    total, k = power, 1
    while abs(power) > Decimal(10) ** -45:
        power /= -n * n
        k += 2
        total += power / k
    return total


def _beta_integral(x: Decimal, alpha: Decimal) -> Decimal:
    """The integral of (t(1 - t))^(alpha - 1) from 0 to x <= 1/2, by a series of positive terms.

    (x (1 - x))^alpha / alpha · Σ_n x^n · Π_{k=1..n} (2 alpha + k - 1) / (alpha + k)
    (Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.5.4). The binomial series, whose
    signs alternate, loses all its digits where alpha is large.
    """
    term = total = Decimal(1)
    for n in range(1, 400):
        term *= (2 * alpha + n - 1) / (alpha + n) * x
        total += term
    return (alpha * (x * (1 - x)).ln()).exp() * total / alpha
