"""Headers of encoded images: sizes, channels, levels, frames."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from PIL import Image

from kdscale.data.decode import ON_THEIR_SIDE, is_grey, map_images, open_image, orientation
from kdscale.data.deep_images import Levels, check_levels, is_deep, levels_of
from kdscale.data.encoded_split import EncodedSplit


@dataclass(frozen=True, slots=True)
class Headers:
    """What follows from the headers of all images of a split."""

    channels: int
    """1 where every image is grey, else 3."""
    one_size: bool
    """Whether all images have the same height and width."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Smallest and largest height, smallest and largest width, in pixels."""
    several_frames: int = 0
    """Number of images with more than one frame or page, of which the first is read."""


class _Header(NamedTuple):
    """Content of one header."""

    height: int
    width: int
    grey: bool
    several_frames: bool
    levels: Levels | None
    """Of an image with more than 8 bits a channel."""


def read_headers(encoded: EncodedSplit) -> Headers:
    """Read all headers; pixels are decoded of palettes and deep images alone.

    Raises:
        DataError: not an image that can be read; its row is named. Or images of more than 8 bits
            whose levels are not those of `data.grey_range`.
    """
    grey, levels, several_frames = True, None, 0
    sizes: set[tuple[int, int]] = set()

    def look(one: bytes) -> _Header:
        with open_image(one) as image:
            size, deep = _upright_size(image), is_deep(image, one)
            # Grey matters until the first colour, which most sets have in their first images.
            is_grey_too = grey and is_grey(image)
            found = levels_of(image) if deep else None
            return _Header(*size, is_grey_too, _has_several_frames(image), found)

    for headers in map_images(encoded, look):
        for one in headers:
            grey = grey and one.grey
            several_frames += one.several_frames
            levels = one.levels.joined(levels) if one.levels else levels
            sizes.add((one.height, one.width))
    check_levels(levels, encoded.grey_range, f"split '{encoded.split}' of {encoded.name}")
    heights, widths = zip(*sizes, strict=True)
    spans = ((min(heights), max(heights)), (min(widths), max(widths)))
    return Headers(1 if grey else 3, len(sizes) == 1, spans, several_frames)


def _has_several_frames(image: Image.Image) -> bool:
    """Whether frames or pages follow the first; some readers look for the second one here."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of a second frame that is damaged, and of no use
        return True


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the EXIF orientation."""
    width, height = image.size
    if image.format == "TIFF":  # whose reader has exchanged them already
        return height, width
    # Not PNG's own getexif, which decodes the pixels in case an orientation stands after them;
    # the rare set where that matters is noticed when it is decoded.
    turned = orientation(partial(Image.Image.getexif, image)) in ON_THEIR_SIDE
    return (width, height) if turned else (height, width)
