"""Encoded images to uint8 arrays: the one place where formats, modes and orientation are settled.

* A set in which every image is grey keeps one channel: modes 1, L, I and F (more than 8 bits a
  pixel: `data.grey_range` becomes 0..255, see `deep_images.py`), and palettes without transparency
  of which only greys are used. Any other set becomes RGB, grey images repeated in three channels.
* Colours of 16 bits a channel keep their upper 8.
* What is transparent (RGBA, LA, palettes and PNGs with a transparent colour) is laid on white.
* CMYK, YCbCr, HSV and LAB are converted as Pillow does, without colour profiles.
* The EXIF orientation is applied; EXIF that cannot be read counts as none. Of several frames, the
  first counts.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdscale.data.deep_images import (
    DEEP_MODES,
    GREY_MODES,
    check_not_inverted,
    is_deep,
    to_8_bits,
)
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.listing import is_lfs_pointer
from kdscale.errors import DataError
from kdscale.formatting import reason_of
from kdscale.regular_files import read_regular

T = TypeVar("T")

# Pillow refuses images of more than 179 million pixels; half of that is a camera's, not an attack.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow's warnings of odd EXIF tags: only the orientation counts here.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")

# No format whose reader starts another program (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
BYTES_PER_STACK = 64 << 20
"""Decoded bytes that `decode` yields at once; one image may be larger."""
IMAGES_PER_TASK = 64
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations that exchange height and width


class SizesDifferError(Exception):
    """Images of a set that seemed to be of one size are not, once they are decoded."""


def decode(encoded: EncodedSplit, channels: int, stated: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield pixels uint8 [B, C, H, W] in order, some samples at a time, of a set of one size.

    Args:
        encoded: the split.
        channels: of the result, 1 or 3.
        stated: height and width that the headers state; EXIF behind the pixels may exchange them.

    Raises:
        DataError: an image cannot be decoded; its row is named.
        SizesDifferError: an image has another size than the first one.
    """
    at_once = max(1, BYTES_PER_STACK // max(1, channels * stated[0] * stated[1]))
    size: tuple[int, ...] | None = None
    function = partial(decode_image, channels=channels, grey_range=encoded.grey_range)
    for pixels in map_images(encoded, function, at_once):
        size = size or pixels[0].shape
        if any(image.shape != size for image in pixels):
            raise SizesDifferError
        yield np.stack(pixels)


def map_images(
    encoded: EncodedSplit, function: Callable[[bytes], T], at_once: int = sys.maxsize
) -> Iterator[list[T]]:
    """Yield what a function gives for each encoded image in order, computed in threads.

    Args:
        encoded: the split, of which a bounded part is in memory.
        function: may raise whatever Pillow's readers raise of damaged bytes.
        at_once: largest number of results in a list.

    Raises:
        DataError: the function raised something; the row is named.
    """
    start = 0
    # A few: Pillow lets go of the interpreter only inside its codecs.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for images in encoded.read():
            for first in range(0, len(images), at_once):
                part = images[first : first + at_once]
                places = range(0, len(part), IMAGES_PER_TASK)
                starts = [start + first + place for place in places]
                tasks = [part[place : place + IMAGES_PER_TASK] for place in places]
                done = pool.map(partial(_apply, encoded, function), starts, tasks)
                yield [one for task in done for one in task]
            start += len(images)


def _apply(
    encoded: EncodedSplit, function: Callable[[bytes], T], start: int, images: list[bytes]
) -> list[T]:
    results = []
    for sample, image in enumerate(images, start):
        try:
            results.append(function(image))
        except Exception as error:
            raise _unreadable(encoded, sample, error, image) from error
    return results


def decode_one(encoded: EncodedSplit, sample: int, channels: int) -> np.ndarray:
    """Return one image as uint8 [C, H, W]; any number of threads may call.

    Raises:
        DataError: it cannot be decoded; its row is named.
    """
    function = partial(decode_image, channels=channels, grey_range=encoded.grey_range)
    return _apply(encoded, function, sample, [encoded.read_one(sample)])[0]


def decode_image(
    encoded: bytes, channels: int, grey_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Decode one image to uint8 [C, H, W]."""
    with open_image(encoded) as opened:
        pixels = np.asarray(_to_grey_or_rgb(_upright(opened), grey_range))
    if pixels.ndim == 3:
        pixels = pixels[:, :, :channels].transpose(2, 0, 1)
    return np.broadcast_to(pixels, (channels, *pixels.shape[-2:]))


def decode_file(
    path: Path, channels: int, grey_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Decode one image file to uint8 [C, H, W], by the rules of this module.

    Args:
        path: of an image of one of `FORMATS`.
        channels: 1 or 3. Of colours, one channel is their luminance (ITU-R 601, Pillow's "L").
        grey_range: black and white of grey images of more than 8 bits.

    Raises:
        DataError: it is no regular file, or cannot be decoded.
    """
    try:
        encoded = read_regular(path)
        if channels == 1:
            with open_image(encoded) as image:
                grey = is_deep(image, encoded) or is_grey(image)
            if not grey:
                red, green, blue = decode_image(encoded, 3)
                colours = Image.fromarray(np.stack((red, green, blue), axis=-1))
                return np.asarray(colours.convert("L"))[None]
        return decode_image(encoded, channels, grey_range)
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
        raise DataError(f"{path} cannot be decoded: {_reason(error)}") from error


def open_image(encoded: bytes) -> Image.Image:
    """Open an image without decoding its pixels, with the transparency that its file states.

    Raises:
        ValueError: Pillow would decode it to other levels than its file has.
    """
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    check_not_inverted(image)
    if image.format == "PNG" and "transparency" in image.info:
        bits = encoded[24]
        if bits == 16 and image.mode == "RGB":
            raise ValueError(
                "it has a transparent colour of 16 bits a channel: convert it to 8 bits"
            )
        if bits in (2, 4) and image.mode == "L" and image.info["transparency"] < 2**bits:
            # Pillow scales the pixels to 8 bits, but not the level that is transparent.
            image.info["transparency"] *= 255 // (2**bits - 1)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation; no tag is written, as odd ones forbid it."""
    image.load()
    method = _TURNED.get(orientation(image.getexif))
    return image if method is None else image.transpose(method)


def orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, 1 (upright) where none can be read."""
    try:
        return int(read_exif().get(_ORIENTATION, 1))
    except Exception:  # whatever damaged EXIF leads Pillow to
        return 1


def is_grey(image: Image.Image) -> bool:
    """Whether an image has greys only; decodes the pixels of a palette image."""
    if image.mode != "P":
        return image.mode in GREY_MODES or image.mode == "F"
    if image.has_transparency_data:
        return False
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    return bool((red == green).all() and (red == blue).all())


def _to_grey_or_rgb(image: Image.Image, grey_range: tuple[float, float] | None) -> Image.Image:
    if image.mode in DEEP_MODES:
        return _deep_grey(image, grey_range)
    if image.has_transparency_data:
        grey = image.mode in GREY_MODES
        if image.mode == "La":  # which Pillow converts to LA alone
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    if image.mode in GREY_MODES:
        return image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image, grey_range: tuple[float, float] | None) -> Image.Image:
    """Scale grey levels to 8 bits: Pillow would clip at 255, and has no transparent level."""
    values = np.asarray(image)
    levels = to_8_bits(values, grey_range)
    transparent = image.info.get("transparency")
    if transparent is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels)


def _reason(error: Exception) -> str:
    unknown = isinstance(error, UnidentifiedImageError)
    return f"not one of {', '.join(FORMATS)}" if unknown else reason_of(error)


def _unreadable(encoded: EncodedSplit, sample: int, error: Exception, image: bytes) -> DataError:
    reason, remedy = _reason(error), "Repair or remove it"
    if is_lfs_pointer(image):
        reason, remedy = "it is a Git LFS pointer, not the image", "Run 'git lfs pull'"
    return DataError(f"{encoded.place(sample)} cannot be decoded: {reason}. {remedy}")
