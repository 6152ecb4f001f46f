"""Images of more than 8 bits a channel: the levels they use, and how those become 0..255.

A file of 16 bits does not state which level is white: a camera of 12 bits writes 4095, a careless
conversion 255. So a set is taken as it is only if its levels reach into the upper half of 0..65535;
any other range has to be stated in `data.grey_range`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kdscale.errors import DataError

GREY_MODES = frozenset(("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"))
DEEP_MODES = (GREY_MODES | {"F"}) - {"1", "L"}
_FULL_RANGE = (0, 0xFFFF)
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_NEVER_DEEP = (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of one or more deep images, and how many of these would become black."""

    low: float
    high: float
    grey: bool
    """Whether all are grey; the levels of colours are known to their upper 8 bits."""
    integer: bool = True
    """Whether none holds floating point numbers."""
    blackened: int = 0
    """Number of images that hold levels above 0 and none above 255."""

    def joined(self, other: "Levels | None") -> "Levels":
        """The levels of both."""
        if other is None:
            return self
        return Levels(
            min(self.low, other.low),
            max(self.high, other.high),
            self.grey and other.grey,
            self.integer and other.integer,
            self.blackened + other.blackened,
        )


def may_be_deep(images: Iterable[bytes]) -> bool:
    """Whether the first bytes of any encoded image allow for more than 8 bits a channel."""
    starts = {one[:4] + one[24:25] for one in images}  # a handful in most sets
    return any(
        start[4:] == b"\x10" if start.startswith(_PNG[:4]) else not start.startswith(_NEVER_DEEP)
        for start in starts
    )


def is_deep(image: Image.Image, encoded: bytes) -> bool:
    """Whether an opened image, not loaded yet, has more than 8 bits a channel."""
    if image.mode in DEEP_MODES:
        return True
    if image.format == "PNG":
        return encoded[24:25] == b"\x10"
    if image.format == "TIFF":
        return max(_bits(image)) > 8
    return image.format == "PPM" and _maxval(image) > 255


def levels_of(image: Image.Image) -> Levels:
    """The levels of a deep image."""
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        integer = values.dtype.kind != "f"
        return Levels(low, high, True, integer, blackened=int(0 < high <= 255))
    upper = np.asarray(image.convert("RGB"))  # Pillow has cut the levels already
    high = 256.0 * int(upper.max()) + 255
    return Levels(256.0 * int(upper.min()), high, grey=False, blackened=int(high <= 255))


def to_8_bits(values: np.ndarray, grey_range: tuple[float, float] | None) -> np.ndarray:
    """Grey levels as uint8: the range's lower end becomes 0, its upper end 255.

    Integers are cut into 256 steps of equal width, which of 0..65535 keeps the upper 8 bits;
    floating point numbers are rounded.

    Raises:
        ValueError: a level lies outside the range, or is not a number.
    """
    low, high = grey_range or _FULL_RANGE
    found = float(values.min()), float(values.max())
    if not low <= found[0] <= found[1] <= high:
        raise ValueError(
            f"its grey levels are {_text(*found)}, outside {_text(low, high)}: "
            "set data.grey_range to levels of black and white that hold all images"
        )
    above = values.astype(np.float64) - low
    if values.dtype.kind == "f":
        return np.floor(above / (high - low) * 255 + 0.5).astype(np.uint8)
    return np.floor(above * 256 / (high - low + 1)).astype(np.uint8)


def check_not_inverted(image: Image.Image) -> None:
    """Refuse a deep TIFF in which 0 is white; Pillow inverts such files up to 8 bits only."""
    if image.format == "TIFF" and image.mode in DEEP_MODES:
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == 0:
            raise ValueError(
                "it is a TIFF of more than 8 bits in which 0 is white: save it inverted"
            )


def check_levels(levels: Levels | None, grey_range: tuple[float, float] | None, place: str) -> None:
    """Stop where deep images would become black, grey or clipped.

    Args:
        levels: of all deep images of a split; None where there are none.
        grey_range: as the recipe states it.
        place: the split, for messages.

    Raises:
        DataError: the range that was found, and what to set.
    """
    if levels is None or grey_range == _FULL_RANGE:
        return
    if grey_range is not None:
        if levels.grey:
            return  # `to_8_bits` refuses what lies outside
        raise DataError(
            f"{place} holds colour images of more than 8 bits a channel, of which only the upper 8 "
            "are read: data.grey_range is for grey images. Convert them to 8 bits, or leave it out"
        )
    what = "grey levels" if levels.grey else "colour levels"
    found = f"{place} holds images of more than 8 bits with {what} {_text(levels.low, levels.high)}"
    if levels.low < 0 or levels.high > 0xFFFF or not levels.integer:
        raise DataError(f"{found}: {_remedy(levels)}")
    if levels.high <= 0x7FFF:
        raise DataError(
            f"{found}, which would become 0..{int(levels.high) >> 8} of 255: {_remedy(levels)}"
        )
    if levels.blackened:
        raise DataError(
            f"{found}, and {levels.blackened} of them have no level above 255 and would become "
            "black: convert those, or set data.grey_range = [0, 65535] if they are meant to be"
        )


def _remedy(levels: Levels) -> str:
    if not levels.grey:
        return "convert them to 8 bits, or set data.grey_range = [0, 65535] if they are so dark"
    guess = f"[{min(levels.low, 0):.10g}, {_next_white(levels):.10g}]"
    whole = ", or [0, 65535] for the whole range of 16 bits" if levels.integer else ""
    return f"set data.grey_range to the levels of black and white, such as {guess}{whole}"


def _next_white(levels: Levels) -> float:
    """The level that is white in the usual depth that holds all levels."""
    if not levels.integer:
        return levels.high
    depths = (8, 10, 12, 14, 15, 16)
    return next((2.0**bits - 1 for bits in depths if levels.high < 2**bits), levels.high)


def _text(low: float, high: float) -> str:
    return f"{low:.10g}..{high:.10g}"


def _bits(image: Image.Image) -> Iterable[int]:
    return getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) or (1,)


def _maxval(image: Image.Image) -> int:
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ()
    last = arguments[-1] if isinstance(arguments, tuple) and arguments else 0
    return last if isinstance(last, int) else 0
