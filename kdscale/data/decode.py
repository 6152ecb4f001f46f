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

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kdscale.data.source import EncodedSplit
from kdscale.errors import DataError

# No format whose reader starts another program (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
GREY_MODES = frozenset(("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"))
DEEP_MODES = GREY_MODES - {"1", "L"}
IMAGES_PER_TASK = 64


def count_channels(encoded: EncodedSplit) -> int:
    """1 where every image is grey, else 3; stops at the first colour."""
    with _threads() as pool:
        start = 0
        for images in encoded.read():
            tasks = _tasks(start, images)
            start += len(images)
            if not all(pool.map(lambda task: _all_grey(encoded, task[0], task[1]), tasks)):
                return 3
    return 1


def decode(encoded: EncodedSplit, channels: int) -> Iterator[np.ndarray]:
    """Pixels uint8 [B, C, H, W] in order, some samples at a time, all of the first one's size."""
    size: tuple[int, ...] | None = None
    start = 0
    with _threads() as pool:
        for images in encoded.read():
            tasks = _tasks(start, images)
            decoded = pool.map(
                lambda task: _decode_task(encoded, task[0], task[1], channels), tasks
            )
            pixels = [image for task in decoded for image in task]
            size = size or pixels[0].shape
            for offset, image in enumerate(pixels):
                if image.shape != size:
                    raise DataError(
                        f"images have different sizes: {_width_height(size)} in "
                        f"{encoded.place(0)}, {_width_height(image.shape)} in row "
                        f"{encoded.rows[start + offset]}. Variable sizes are not supported yet: "
                        "resize all images to one size first"
                    )
            yield np.stack(pixels)
            start += len(images)


def decode_image(encoded: bytes, channels: int) -> np.ndarray:
    """One image as uint8 [C, H, W]."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        image = _to_grey_or_rgb(ImageOps.exif_transpose(opened))
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = pixels[:, :, :channels].transpose(2, 0, 1)
    return np.broadcast_to(pixels, (channels, *pixels.shape[-2:]))


def _all_grey(encoded: EncodedSplit, start: int, images: list[bytes]) -> bool:
    for offset, one in enumerate(images):
        try:
            if not _is_grey(one):
                return False
        except Exception as error:
            raise _unreadable(encoded, start + offset, error) from error
    return True


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
    return image.convert("RGB")


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


def _width_height(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
