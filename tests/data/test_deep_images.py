"""Images of more than 8 bits a channel, transparency, orientation: right levels, or a refusal."""

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import kdscale
from kdscale.data import encoded_split
from kdscale.data.decode import decode_image
from kdscale.data.image_cells import image_cells
from kdscale.data.image_dataset import load_images
from kdscale.data.source import SourceOptions
from kdscale.errors import DataError

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types


def png(depth, colour_type, rows, *, transparent=None, palette=None):
    """A PNG as its specification says, of bit depths and chunks that Pillow does not write."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}[colour_type]
    width = len(rows[0]) // channels
    packed = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        packed += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header)
    parts += chunk(b"PLTE", palette) if palette else b""
    parts += chunk(b"tRNS", transparent) if transparent else b""
    parts += chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(array, **tags):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(buffer, "TIFF", **tags)
    return buffer.getvalue()


def grey16(rows):
    return png(16, GREY, rows)


def write(folder, images):
    for number, image in enumerate(images):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return folder


def load(folder, tmp_path, **options):
    root, options = tmp_path / "root", SourceOptions(**options)
    return load_images(str(folder), split="train", root=root, options=options)


# --------------------------------------------------------------------------- which levels

RANGES = {
    "8 bits in 16": ([grey16([[0, 255]]), grey16([[3, 128]])], "0..255", "[0, 255]"),
    "12 bits in 16": ([grey16([[0, 4095]]), grey16([[3, 128]])], "0..4095", "[0, 4095]"),
    "10 bits in 16": ([grey16([[7, 1000]]), grey16([[3, 12]])], "3..1000", "[0, 1023]"),
    "half of 16 bits": ([grey16([[0, 32767]])] * 2, "0..32767", "[0, 32767]"),
    "signed": ([tiff(np.array([[-1024, 3071]], np.int32))] * 2, "-1024..3071", "[-1024, 4095]"),
    "32 bits": ([tiff(np.array([[0, 70000]], np.int32))] * 2, "0..70000", "[0, 70000]"),
    "floats to 1": ([tiff(np.array([[0, 1]], np.float32))] * 2, "0..1", "[0, 1]"),
    "floats": ([tiff(np.array([[-0.5, 2.5]], np.float32))] * 2, "-0.5..2.5", "[-0.5, 2.5]"),
}


@pytest.mark.parametrize("name", RANGES)
def test_levels_that_do_not_fill_16_bits_are_refused_with_their_range(tmp_path, name):
    images, found, suggested = RANGES[name]
    write(tmp_path / "set", images)
    with pytest.raises(DataError, match=rf"levels {re.escape(found)}\b") as error:
        load(tmp_path / "set", tmp_path)
    assert f"such as {suggested}" in str(error.value)
    low, high = map(float, suggested.strip("[]").split(","))
    assert load(tmp_path / "set", tmp_path, grey_range=(low, high)).pixels.shape[1] == 1


def test_stated_range_becomes_0_to_255(tmp_path):
    write(tmp_path / "set", [grey16([[0, 1, 128, 255]]), grey16([[5, 6, 7, 8]])])
    found = load(tmp_path / "set", tmp_path, grey_range=(0, 255))
    assert found.pixels[:, 0, 0].tolist() == [[0, 1, 128, 255], [5, 6, 7, 8]]
    whole = load(tmp_path / "set", tmp_path, grey_range=(0, 65535))
    assert not whole.pixels.any()
    assert whole.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("grey_range", "levels", "expected"),
    [
        (None, np.array([[0, 255, 256, 65535]], np.uint16), [0, 0, 1, 255]),
        ((0, 4095), np.array([[0, 15, 16, 4095]], np.uint16), [0, 0, 1, 255]),
        ((-1024, 3071), np.array([[-1024, -1009, -1008, 3071]], np.int32), [0, 0, 1, 255]),
        ((0, 1), np.array([[0, 0.001, 0.5, 1]], np.float32), [0, 0, 128, 255]),
    ],
)
def test_range_is_cut_into_256_levels(grey_range, levels, expected):
    assert decode_image(tiff(levels), 1, grey_range)[0, 0].tolist() == expected


def test_levels_outside_the_stated_range_are_refused(tmp_path):
    write(tmp_path / "set", [grey16([[0, 4095]]), grey16([[0, 5000]])])
    with pytest.raises(DataError, match=r"row 1 .*grey levels are 0\.\.5000, outside 0\.\.4095"):
        load(tmp_path / "set", tmp_path, grey_range=(0, 4095))


def test_floats_that_are_no_numbers_are_refused(tmp_path):
    write(tmp_path / "set", [tiff(np.array([[0, np.nan]], np.float32))] * 2)
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        load(tmp_path / "set", tmp_path, grey_range=(0, 1))


def test_one_image_that_would_become_black_is_counted(tmp_path):
    write(tmp_path / "set", [grey16([[0, 65535]]), grey16([[0, 255]])])
    with pytest.raises(DataError, match="1 of them have no level above 255 and would become black"):
        load(tmp_path / "set", tmp_path)
    assert load(tmp_path / "set", tmp_path, grey_range=(0, 65535)).num_samples == 2


def test_full_16_bits_are_read_as_ever(tmp_path):
    write(tmp_path / "set", [grey16([[0, 256]]), grey16([[255, 65535]])])
    assert load(tmp_path / "set", tmp_path).pixels[:, 0, 0].tolist() == [[0, 1], [0, 255]]


def test_colours_of_16_bits_keep_their_upper_bits_or_are_refused(tmp_path):
    bright = png(16, RGB, [[0, 40000, 65535, 256, 1, 2]])
    write(tmp_path / "bright", [bright] * 2)
    found = load(tmp_path / "bright", tmp_path)
    assert found.pixels[0].tolist() == [[[0, 1]], [[156, 0]], [[255, 0]]]
    for kind, dark in enumerate(
        (png(16, RGB, [[0, 255, 9]]), png(16, RGB_ALPHA, [[0, 255, 9, 65535]]),
         png(16, GREY_ALPHA, [[255, 65535]]), b"P6 1 1 65535\n\0\1\0\377\0\3")
    ):  # fmt: skip
        write(tmp_path / str(kind), [dark] * 2)
        with pytest.raises(
            DataError, match=r"colour levels 0\.\.\d+, which would become 0\.\.[01] "
        ):
            load(tmp_path / str(kind), tmp_path)
    with pytest.raises(DataError, match="colour images of more than 8 bits"):
        load(tmp_path / "bright", tmp_path, grey_range=(0, 255))


def test_images_of_several_sizes_are_checked_alike(tmp_path):
    write(tmp_path / "set", [grey16([[0, 255]]), grey16([[0, 1, 2]])])
    for _ in range(2):
        with pytest.raises(DataError, match=r"grey levels 0\.\.255"):
            load(tmp_path / "set", tmp_path)
    found = load(tmp_path / "set", tmp_path, grey_range=(0, 255))
    assert found.pixels.decode(0).tolist() == [[[0, 255]]]
    assert found.fingerprint != load(tmp_path / "set", tmp_path, grey_range=(0, 511)).fingerprint


def test_tiff_in_which_0_is_white_is_refused_beyond_8_bits(tmp_path):
    deep = tiff(np.array([[0, 65535]], np.uint16), tiffinfo={262: 0})
    flipped = deep.replace(
        struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0)
    )
    write(tmp_path / "set", [flipped] * 2)
    with pytest.raises(DataError, match="0 is white"):
        load(tmp_path / "set", tmp_path)


# --------------------------------------------------------------------------- transparency

WHITE = 255
TRANSPARENT = {
    "grey of 16 bits": (png(16, GREY, [[0, 40000]], transparent=b"\x9c\x40"), [0, WHITE]),
    "grey of 8 bits": (png(8, GREY, [[10, 20]], transparent=b"\0\x14"), [10, WHITE]),
    "grey of 4 bits": (png(4, GREY, [[1, 5]], transparent=b"\0\5"), [17, WHITE]),
    "grey of 2 bits": (png(2, GREY, [[1, 2]], transparent=b"\0\1"), [WHITE, 170]),
    "grey of 1 bit": (png(1, GREY, [[0, 1]], transparent=b"\0\0"), [WHITE, 255]),
    "palette": (
        png(8, PALETTE, [[0, 1]], palette=b"\1\1\1\2\2\2", transparent=b"\xff\0"), [1, WHITE]
    ),
    "palette of 4 bits": (
        png(4, PALETTE, [[0, 1]], palette=b"\1\1\1\2\2\2", transparent=b"\0"), [WHITE, 2]
    ),
    "grey and alpha": (png(8, GREY_ALPHA, [[9, 255, 9, 0]]), [9, WHITE]),
    "grey and alpha of 16 bits": (png(16, GREY_ALPHA, [[0x900, 0xFFFF, 0x900, 0]]), [9, WHITE]),
    "colours": (png(8, RGB, [[1, 1, 1, 2, 2, 2]], transparent=b"\0\2\0\2\0\2"), [1, WHITE]),
    "colours and alpha": (png(8, RGB_ALPHA, [[7, 7, 7, 255, 7, 7, 7, 0]]), [7, WHITE]),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_are_white_in_every_mode(name):
    image, expected = TRANSPARENT[name]
    assert decode_image(image, 3)[:, 0].tolist() == [expected] * 3


def test_transparent_colour_of_16_bits_is_refused(tmp_path):
    write(tmp_path / "set", [png(16, RGB, [[1, 2, 65535]], transparent=b"\0\1\0\2\xff\xff")] * 2)
    with pytest.raises(DataError, match="transparent colour of 16 bits"):
        load(tmp_path / "set", tmp_path)


# --------------------------------------------------------------------------- orientation


def exif(orientation, *others):
    """EXIF of an orientation and other tags, as cameras write it and Pillow would not."""
    tags = [(0x0112, 3, 1, struct.pack("<H", orientation)), *others]
    raw, rest, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        place = struct.pack("<I", start + len(rest)) if len(value) > 4 else value.ljust(4, b"\0")
        raw += struct.pack("<HHI", tag, kind, count) + place
        rest += value if len(value) > 4 else b""
    head = struct.pack("<IH", 8, len(tags))
    return b"Exif\0\0II*\0" + head + raw + struct.pack("<I", 0) + rest


ODD_TAGS = {
    "a negative resolution": (0x011A, 10, 1, struct.pack("<ii", -5, 1)),
    "a resolution over zero": (0x011A, 5, 1, struct.pack("<II", 1, 0)),
    "text that is no ASCII": (0x010F, 2, 6, b"\xff\xfe\xfd\xfc\xfb\0"),
    "an unknown type": (0x010F, 99, 1, b"\0\0\0\0"),
    "a tag beyond the end": (0x010F, 2, 9999, b"\xff\xff\xff\xff"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", ODD_TAGS)
def test_orientation_is_applied_whatever_the_other_tags(kind, tag):
    upright = Image.fromarray(np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    plain, turned = io.BytesIO(), io.BytesIO()
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    sideways.save(plain, kind, **options)
    sideways.save(turned, kind, exif=exif(6, ODD_TAGS[tag]), **options)
    expected = np.rot90(decode_image(plain.getvalue(), 3), -1, axes=(1, 2))
    np.testing.assert_array_equal(decode_image(turned.getvalue(), 3), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_of_each_format_has_its_size_and_pixels(tmp_path, orientation):
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    images = []
    for kind in ("PNG", "TIFF"):
        tags = Image.Exif()
        tags[0x0112] = orientation
        buffer = io.BytesIO()
        picture.save(buffer, kind, exif=tags)
        images.append(buffer.getvalue())
    found = load(write(tmp_path / "set", images), tmp_path)
    assert found.one_size
    assert found.pixels.shape[-2:] == ((4, 6) if orientation < 5 else (6, 4))
    np.testing.assert_array_equal(found.pixels[0], found.pixels[1])


def test_exif_that_is_damaged_counts_as_none():
    picture, buffer = Image.fromarray(np.zeros((4, 6), np.uint8)), io.BytesIO()
    picture.save(buffer, "JPEG", exif=b"Exif\0\0nonsense")
    assert decode_image(buffer.getvalue(), 1).shape == (1, 4, 6)


# --------------------------------------------------------------------------- size and memory


def run(code, *arguments):
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
        cwd=Path(kdscale.__file__).parents[1],
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished


PEAK = """
import resource, sys
from pathlib import Path
from kdscale.data import decode, encoded_split
from kdscale.data.image_dataset import load_images
import datasets, pyarrow.compute, pyarrow.parquet
encoded_split.BYTES_PER_READ = decode.BYTES_PER_STACK = 8 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_images(sys.argv[1], split="train", root=Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "one_size", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sizes", "one size"]
)
def test_memory_of_opening_is_bounded_by_bytes(tmp_path, one_size):
    """60 images of 3 MB, of which some 8 MiB are read at a time, and as many decoded."""
    for number in range(60):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 1000 if one_size else 1000 - number % 3
        Image.fromarray(np.full((side, 1000, 3), number, dtype=np.uint8)).save(path)
    assert int(run(PEAK, tmp_path / "set", tmp_path / "root").stdout) < 100


@pytest.mark.parametrize("kind", ["bytes", "paths", "views"])
@pytest.mark.parametrize("chosen", [slice(None), slice(None, None, 2), slice(7, 8)])
def test_reading_yields_few_bytes_at_a_time_and_all_of_them(tmp_path, monkeypatch, kind, chosen):
    monkeypatch.setattr(encoded_split, "BYTES_PER_READ", 100)
    images = [bytes([number]) * (1 + 13 * number % 50) for number in range(40)]
    if kind == "paths":
        cells = []
        for number, image in enumerate(images):
            (tmp_path / str(number)).write_bytes(image)
            cells.append({"bytes": None, "path": str(tmp_path / str(number))})
        column = pa.chunked_array([cells[:15], cells[15:]])
    else:
        types = {"bytes": pa.binary(), "views": pa.binary_view()}
        column = pa.chunked_array([images[:3], images[3:]], types[kind])
    rows = np.arange(40)[chosen]
    column = image_cells(column)
    split = encoded_split.EncodedSplit(column, rows, np.zeros(len(rows)), (), "set", "train")
    batches = list(split.read())
    expected = [images[row] for row in rows]
    assert [image for batch in batches for image in batch] == expected
    assert all(sum(map(len, batch[:-1])) < 100 for batch in batches)
    assert split.sizes().tolist() == list(map(len, expected))
    assert [split.read_one(sample) for sample in range(len(rows))] == expected


def test_identity_of_large_images_is_that_of_small_reads(tmp_path, monkeypatch):
    write(tmp_path / "set", [png(8, GREY, [[n, n]] if n % 2 else [[n]]) for n in range(9)])
    whole = load(tmp_path / "set", tmp_path)
    monkeypatch.setattr(encoded_split, "BYTES_PER_READ", 100)
    assert load(tmp_path / "set", tmp_path).fingerprint == whole.fingerprint


def test_image_of_too_many_pixels_is_one_line(tmp_path):
    bomb = png(1, GREY, [[0]]).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 20_000, 20_000), 1
    )
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    write(tmp_path / "set", [bomb] * 2)
    code = (
        "import sys; from pathlib import Path; from kdscale.data.image_dataset import load_images\n"
        "try: load_images(sys.argv[1], split='train', root=Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    finished = run(code, tmp_path / "set", tmp_path / "root")
    assert re.match(r"DataError row 0 .*400000000 pixels.*\n$", finished.stdout)
    assert finished.stderr == ""
