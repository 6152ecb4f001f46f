"""Operations that change grey levels: one frozen dataclass each.

Names and arguments follow `torchvision.transforms.v2`. Images of one channel are treated as
torchvision treats them: what needs colours leaves them as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import torch
from torch import Tensor

from kdscale.data import device_tables
from kdscale.data.device_tables import device_table
from kdscale.data.rng import bernoulli, integers, integers_between
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import grey_levels
from kdscale.data.views.functional.all_kinds import Blend, blend
from kdscale.data.views.functional.masking import dispatch_by_kind, on_host, where_chosen
from kdscale.data.views.operations.operation import (
    Native,
    RandomApply,
    check_interval,
    check_range,
)
from kdscale.errors import ConfigError

_LARGEST_KERNEL = 63  # pixels; a larger one would need the sums' upper bits
_LARGEST_SIGMA = 16  # pixels
_ORDERS = tuple(place for order in permutations(range(4)) for place in order)  # [24 · 4]

_JITTERS = (
    grey_levels.brightness, grey_levels.contrast, grey_levels.saturation, grey_levels.hue,
)  # fmt: skip
_CONTRAST, _SATURATION, _HUE = 1, 2, 3  # among these
_NEUTRAL = 3  # among kinds of blends, where hue is none

Jitter = float | tuple[float, float]
"""How far a factor may be from its middle, or its smallest and largest value."""


def _where_drawn(
    function: Callable[[Tensor], Tensor], images: Tensor, bits: Tensor, p: float
) -> Tensor:
    return function(images) if p == 1 else where_chosen(function, images, bernoulli(bits[0], p))


@dataclass(frozen=True, slots=True)
class ColorJitter(Native):
    """Brightness, contrast, saturation and hue, changed in an order drawn for each sample.

    Draw 0 is the order, draws 1 to 4 the factors and the turn of hue.
    """

    num_draws: ClassVar[int] = 5
    brightness: Jitter = 0.0
    contrast: Jitter = 0.0
    saturation: Jitter = 0.0
    hue: Jitter = 0.0

    def __post_init__(self) -> None:
        most = float(grey_levels.LARGEST_FACTOR)
        for name in ("brightness", "contrast", "saturation"):
            _check_jitter("color_jitter", name, getattr(self, name), (0.0, most), most - 1)
        _check_jitter("color_jitter", "hue", self.hue, (-0.5, 0.5), 0.5)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images in other colours."""
        order_B, *parameters = integers_between(bits, ((0, 23), *self._limits()))
        kinds = self._kinds()
        if len(kinds) < 2:  # then the order does not matter
            for kind in kinds:
                images = _JITTERS[kind](images, parameters[kind])
            return images
        if not on_host(images):
            return self._change_all(images, order_B, parameters)

        def change(step: int, kind: int, part: Tensor, rows_B: Tensor) -> Tensor:
            return _JITTERS[kind](part, parameters[kind][rows_B]) if kind in kinds else part

        orders = device_tables.on(images.device, _ORDERS).view(24, 4)
        return dispatch_by_kind(images, orders[order_B].T, 4, change)

    def _limits(self) -> list[tuple[int, int]]:
        """Smallest and largest factor of brightness, contrast and saturation, and turn of hue."""
        factors = (self.brightness, self.contrast, self.saturation)
        return [*(_bounds(factor, 1.0) for factor in factors), _bounds(self.hue, 0.0)]

    def _kinds(self) -> list[int]:
        """The kinds that change anything."""
        neutral = (grey_levels.ONE, grey_levels.ONE, grey_levels.ONE, 0)
        both = zip(self._limits(), neutral, strict=True)
        return [kind for kind, (limits, value) in enumerate(both) if limits != (value, value)]

    def _change_all(self, images: Tensor, order_B: Tensor, parameters: list[Tensor]) -> Tensor:
        """The same without a question to the device: hue once, blends before and after it.

        Each sample has a blend, if a neutral one, in every turn: `_turns`.
        """
        kind_TB = _turns(tuple(self._kinds()), images.device).index_select(1, order_B)
        factors = torch.stack((*parameters[:3], torch.full_like(order_B, grey_levels.ONE)))
        factor_TB = factors.to(torch.int32).gather(0, kind_TB)
        grey_TB = (grey_levels.ONE - factor_TB) * (kind_TB == _SATURATION)
        mean_TB = (grey_levels.ONE - factor_TB) * (kind_TB == _CONTRAST)
        shares = torch.stack((factor_TB, grey_TB, mean_TB), 1).view(-1, 3, len(images), 1, 1, 1)
        before = len(shares) // 2 if _HUE in self._kinds() else len(shares)
        pixels = images.to(torch.int32)
        for share in shares[:before]:
            pixels = blend(pixels, Blend(*share))
        if before < len(shares):
            pixels = grey_levels.hue(pixels.to(torch.uint8), parameters[_HUE]).to(torch.int32)
        for share in shares[before:]:
            pixels = blend(pixels, Blend(*share))
        return pixels.to(torch.uint8)


@device_table
def _turns(kinds: tuple[int, ...], device: torch.device) -> Tensor:
    """Which kind of blend each order has in its turns, int64 [T, 24]; _NEUTRAL where none.

    As many turns before hue, which has none itself, as after it: an order may begin or end with
    hue. Without hue, turns are those of the order.
    """
    turns = []
    for start in range(0, len(_ORDERS), 4):
        order = [kind for kind in _ORDERS[start : start + 4] if kind in kinds]
        parts = [order]
        if _HUE in kinds:
            parts = [order[: order.index(_HUE)], order[order.index(_HUE) + 1 :]]
        most = len(set(kinds) - {_HUE})
        turns.append([kind for part in parts for kind in [*part, *[_NEUTRAL] * most][:most]])
    return torch.tensor(turns, device=device).T.contiguous()


def _check_jitter(
    operation: str, name: str, value: Jitter, limits: tuple[float, float], most: float
) -> None:
    if isinstance(value, float | int):
        check_range(operation, name, value, 0.0, most, "to both sides")
    else:
        check_interval(
            operation, name, value, *limits, "as a factor" if limits[0] == 0 else "turns"
        )


def _bounds(value: Jitter, middle: float) -> tuple[int, int]:
    """Smallest and largest parameter in 4096ths."""
    if isinstance(value, float | int):
        lowest = 0.0 if middle else -math.inf
        value = (max(middle - value, lowest), middle + value)
    return round(value[0] * grey_levels.ONE), round(value[1] * grey_levels.ONE)


@dataclass(frozen=True, slots=True)
class Grayscale(Native):
    """The grey image, in as many channels as before."""

    num_draws: ClassVar[int] = 0

    @property
    def choices(self) -> tuple[()]:
        """Nothing is drawn."""
        return ()

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The grey images."""
        return grey_levels.grayscale(images)


@dataclass(frozen=True, slots=True)
class RandomGrayscale(RandomApply):
    """The grey image, in as many channels as before, with probability `p`."""

    p: float = 0.1

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them grey."""
        return _where_drawn(grey_levels.grayscale, images, bits, self.p)


@dataclass(frozen=True, slots=True)
class GaussianBlur(Native):
    """A Gaussian over `kernel_size` x `kernel_size` pixels. Draw 0 is its standard deviation."""

    num_draws: ClassVar[int] = 1
    kernel_size: int
    sigma: Jitter = (0.1, 2.0)
    """Standard deviation in pixels, fixed or between two."""

    def __post_init__(self) -> None:
        if not (1 <= self.kernel_size <= _LARGEST_KERNEL and self.kernel_size % 2):
            raise ConfigError(
                f"gaussian_blur: kernel_size is {self.kernel_size}, wanted an odd number of pixels "
                f"1..{_LARGEST_KERNEL}"
            )
        least = 1 / lookup_tables.SIGMA_UNITS
        if isinstance(self.sigma, float | int):
            check_range("gaussian_blur", "sigma", self.sigma, least, _LARGEST_SIGMA, "pixels")
        else:
            check_interval("gaussian_blur", "sigma", self.sigma, least, _LARGEST_SIGMA, "pixels")

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The blurred images."""
        if self.kernel_size // 2 >= min(images.shape[-2:]):
            raise ConfigError(
                f"gaussian_blur: a kernel of {self.kernel_size} pixels is too large for images of "
                f"{images.shape[-2]}x{images.shape[-1]}: choose a smaller kernel_size"
            )
        sigma = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        low, high = (round(value * lookup_tables.SIGMA_UNITS) for value in sigma)
        sigma_B = low + integers(bits[0], high - low + 1)
        return grey_levels.gaussian_blur(images, sigma_B, self.kernel_size, high)


@dataclass(frozen=True, slots=True)
class RandomInvert(RandomApply):
    """The negative, with probability `p`."""

    p: float = 0.5

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them negatives."""
        return grey_levels.invert(images, bernoulli(bits[0], self.p))


@dataclass(frozen=True, slots=True)
class RandomPosterize(RandomApply):
    """The upper `bits` bits of each pixel, with probability `p`."""

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("random_posterize", "bits", self.bits, 0, 8, "bits")
        RandomApply.__post_init__(self)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them in fewer grey levels."""
        return grey_levels.posterize(images, 8 + bernoulli(bits[0], self.p) * (self.bits - 8))


@dataclass(frozen=True, slots=True)
class RandomSolarize(RandomApply):
    """The negative of all pixels of at least `threshold`, with probability `p`."""

    threshold: float
    """A grey level."""
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("random_solarize", "threshold", self.threshold, 0, 255, "grey levels")
        RandomApply.__post_init__(self)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them solarized."""
        least = math.ceil(self.threshold)
        return grey_levels.solarize(images, 256 + bernoulli(bits[0], self.p) * (least - 256))


@dataclass(frozen=True, slots=True)
class RandomAdjustSharpness(RandomApply):
    """Smoother (below 1) or sharper (above 1), with probability `p`."""

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        most = grey_levels.LARGEST_FACTOR
        check_range(
            "random_adjust_sharpness",
            "sharpness_factor",
            self.sharpness_factor,
            0,
            most,
            "as a factor",
        )
        RandomApply.__post_init__(self)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them smoother or sharper."""
        factor = round(self.sharpness_factor * grey_levels.ONE)

        def sharpened(part: Tensor) -> Tensor:
            return grey_levels.sharpness(part, bits.new_full((len(part),), factor))

        return _where_drawn(sharpened, images, bits, self.p)


@dataclass(frozen=True, slots=True)
class RandomAutocontrast(RandomApply):
    """Each channel stretched to all grey levels, with probability `p`."""

    p: float = 0.5

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them stretched."""
        return _where_drawn(grey_levels.autocontrast, images, bits, self.p)


@dataclass(frozen=True, slots=True)
class RandomEqualize(RandomApply):
    """Each channel's histogram made flat, with probability `p`."""

    p: float = 0.5

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The images, some of them equalized."""
        return _where_drawn(grey_levels.equalize, images, bits, self.p)
