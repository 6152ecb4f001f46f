"""Encoded images to uint8 arrays: the one place where formats, modes and orientation are settled.

* A set in which every image is grey keeps one channel: modes 1, L, I (16 bits a pixel, cut to the
  upper 8), and palettes of which only greys are used. Any other set becomes RGB, grey images in it
  repeated in all three channels.
* What is transparent (RGBA, LA, palettes and PNGs with a transparent colour) is laid on white.
* CMYK, YCbCr, HSV and LAB are converted as Pillow does, without colour profiles.
* The EXIF orientation is applied. Of several frames, the first counts.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kdscale.data.source import EncodedSplit
from kdscale.errors import DataError

# No format whose reader starts another program (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
GREY_MODES = frozenset(("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"))
DEEP_MODES = GREY_MODES - {"1", "L"}
IMAGES_PER_TASK = 64
_ORIENTATION = 0x0112  # the EXIF tag
_ON_THEIR_SIDE = (5, 6, 7, 8)  # its values that exchange height and width


@dataclass(frozen=True, slots=True)
class Headers:
    """What the headers of all images say together."""

    channels: int
    """1 where every image is grey, else 3."""
    one_size: bool
    """Whether all images have the same height and width."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Smallest and largest height, smallest and largest width, in pixels."""


def read_headers(encoded: EncodedSplit) -> Headers:
    """Channels and sizes, from all headers; pixels are decoded of palettes alone.

    Raises:
        DataError: not an image that can be read; its row is named.
    """
    grey = True
    heights, widths = [], []
    with _threads() as pool:
        start = 0
        for images in encoded.read():
            # Grey matters until the first colour, which most sets show in their first images.
            look = partial(_header_task, encoded, grey=grey)
            for sizes, all_grey in pool.map(look, *zip(*_tasks(start, images), strict=True)):
                grey = grey and all_grey
                heights += [height for height, _ in sizes]
                widths += [width for _, width in sizes]
            start += len(images)
    spans = ((min(heights), max(heights)), (min(widths), max(widths)))
    return Headers(1 if grey else 3, all(low == high for low, high in spans), spans)


class SizesDifferError(Exception):
    """Images of a set that seemed to be of one size are not, once they are decoded."""


def decode(encoded: EncodedSplit, channels: int) -> Iterator[np.ndarray]:
    """Pixels uint8 [B, C, H, W] in order, some samples at a time, of a set of one size.

    Raises:
        DataError: an image cannot be decoded; its row is named.
        SizesDifferError: an image has another size than the first one.
    """
    start, size = 0, None
    with _threads() as pool:
        for images in encoded.read():
            tasks = _tasks(start, images)
            decoded = pool.map(
                lambda task: _decode_task(encoded, task[0], task[1], channels), tasks
            )
            pixels = [image for task in decoded for image in task]
            size = size or pixels[0].shape
            if any(image.shape != size for image in pixels):
                raise SizesDifferError
            yield np.stack(pixels)
            start += len(images)


def decode_one(encoded: EncodedSplit, sample: int, channels: int) -> np.ndarray:
    """One image as uint8 [C, H, W]; any number of threads may call.

    Raises:
        DataError: it cannot be decoded; its row is named.
    """
    return _decode_task(encoded, sample, [encoded.read_one(sample)], channels)[0]


def decode_image(encoded: bytes, channels: int) -> np.ndarray:
    """One image as uint8 [C, H, W]."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        pixels = np.asarray(_to_grey_or_rgb(opened))
    if pixels.ndim == 3:
        pixels = pixels[:, :, :channels].transpose(2, 0, 1)
    return np.broadcast_to(pixels, (channels, *pixels.shape[-2:]))


def _header_task(
    encoded: EncodedSplit, start: int, images: list[bytes], *, grey: bool
) -> tuple[list[tuple[int, int]], bool]:
    """Heights and widths, and whether all images are grey if that is asked."""
    sizes = []
    for offset, one in enumerate(images):
        try:
            sizes.append(_upright_size(one))
            grey = grey and _is_grey(one)
        except Exception as error:
            raise _unreadable(encoded, start + offset, error) from error
    return sizes, grey


def _upright_size(encoded: bytes) -> tuple[int, int]:
    """Height and width after the EXIF orientation."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        width, height = image.size
        # Not PNG's own getexif, which decodes the pixels in case an orientation stands after them;
        # the rare set where that matters is noticed when it is decoded.
        turned = Image.Image.getexif(image).get(_ORIENTATION) in _ON_THEIR_SIDE
    return (width, height) if turned else (height, width)


def _decode_task(
    encoded: EncodedSplit, start: int, images: list[bytes], channels: int
) -> list[np.ndarray]:
    decoded = []
    for offset, one in enumerate(images):
        try:
            decoded.append(decode_image(one, channels))
        except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
            raise _unreadable(encoded, start + offset, error) from error
    return decoded


def _is_grey(encoded: bytes) -> bool:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.mode != "P":
            return image.mode in GREY_MODES
        if image.has_transparency_data:
            return False
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    return bool((red == green).all() and (red == blue).all())


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_MODES:
        return _upper_8_bits(image)
    if image.mode == "F":
        raise ValueError("pixels are floating point numbers, not 8 or 16 bit integers")
    if image.has_transparency_data:
        grey = image.mode in GREY_MODES
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    if image.mode in GREY_MODES:
        return image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("pixels are 32 bit integers beyond 0..65535")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _unreadable(encoded: EncodedSplit, sample: int, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        reason = f"not one of {', '.join(FORMATS)}"
    return DataError(
        f"{encoded.place(sample)} cannot be decoded: {reason or type(error).__name__}. "
        "Repair or remove it"
    )


def _tasks(start: int, images: list[bytes]) -> list[tuple[int, list[bytes]]]:
    return [
        (start + first, images[first : first + IMAGES_PER_TASK])
        for first in range(0, len(images), IMAGES_PER_TASK)
    ]


def _threads() -> ThreadPoolExecutor:
    """A few: Pillow lets go of the interpreter only inside its codecs."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))
