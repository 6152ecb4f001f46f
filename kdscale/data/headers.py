"""What the headers of encoded images say: sizes, channels, levels, frames."""

from dataclasses import dataclass
from functools import partial

from PIL import Image

from kdscale.data.decode import (
    ON_THEIR_SIDE,
    decoder_threads,
    is_grey,
    open_image,
    orientation,
    tasks_of,
    unreadable,
)
from kdscale.data.deep_images import Levels, check_levels, is_deep, levels_of
from kdscale.data.encoded_split import EncodedSplit


@dataclass(frozen=True, slots=True)
class Headers:
    """What the headers of all images say together."""

    channels: int
    """1 where every image is grey, else 3."""
    one_size: bool
    """Whether all images have the same height and width."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Smallest and largest height, smallest and largest width, in pixels."""
    several_frames: int = 0
    """Number of images with more than one frame or page, of which the first is read."""


@dataclass(slots=True)
class _Found:
    """What one or more headers say."""

    sizes: list[tuple[int, int]]
    """Height and width of each image."""
    grey: bool
    """Whether all are grey."""
    several_frames: int
    """How many have more than one frame."""
    levels: Levels | None
    """Of those with more than 8 bits a channel; None where there are none."""


def read_headers(encoded: EncodedSplit) -> Headers:
    """Channels and sizes, from all headers; pixels are decoded of palettes and deep images alone.

    Raises:
        DataError: not an image that can be read; its row is named. Or images of more than 8 bits
            whose levels are not those of `data.grey_range`.
    """
    grey, levels, several_frames = True, None, 0
    heights, widths = [], []
    with decoder_threads() as pool:
        start = 0
        for images in encoded.read():
            # Grey matters until the first colour, which most sets show in their first images.
            look = partial(_header_task, encoded, grey=grey)
            for found in pool.map(look, *zip(*tasks_of(start, images), strict=True)):
                grey = grey and found.grey
                several_frames += found.several_frames
                levels = found.levels.joined(levels) if found.levels else levels
                heights += [height for height, _ in found.sizes]
                widths += [width for _, width in found.sizes]
            start += len(images)
    check_levels(levels, encoded.grey_range, f"split '{encoded.split}' of {encoded.name}")
    spans = ((min(heights), max(heights)), (min(widths), max(widths)))
    one_size = all(low == high for low, high in spans)
    return Headers(1 if grey else 3, one_size, spans, several_frames)


def _header_task(encoded: EncodedSplit, start: int, images: list[bytes], *, grey: bool) -> _Found:
    """What the headers of some images say; whether all are grey only if that is asked."""
    found = _Found([], grey, 0, None)
    for offset, one in enumerate(images):
        try:
            with open_image(one) as image:
                found.sizes.append(_upright_size(image))
                deep = is_deep(image, one)
                found.grey = found.grey and is_grey(image)
                levels = levels_of(image) if deep else None
                found.several_frames += _has_several_frames(image)
            found.levels = levels.joined(found.levels) if levels else found.levels
        except Exception as error:
            raise unreadable(encoded, start + offset, error, one) from error
    return found


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
