import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from kdscale.data.rng import bernoulli, bits_KB
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional import affine, resampling
from kdscale.data.views.operations import resizing
from kdscale.data.views.operations.geometry import RandomAffine, RandomRotation, RandomVerticalFlip
from kdscale.data.views.operations.resizing import CenterCrop, RandomResizedCrop, Resize
from kdscale.errors import ConfigError
from tests.data import replay

OPERATIONS = {
    "vertical_flip": RandomVerticalFlip(),
    "center_crop": CenterCrop(size=(9, 14)),
    "resize": Resize(size=7),
    "resize_nearest": Resize(size=(15, 6), interpolation="nearest"),
    "resized_crop": RandomResizedCrop(size=10),
    "resized_crop_nearest": RandomResizedCrop(size=(5, 16), interpolation="nearest"),
    "rotation": RandomRotation(degrees=180),
    "rotation_bilinear": RandomRotation(degrees=(-30, 90), interpolation="bilinear", fill=9),
    "affine": RandomAffine(degrees=20, translate=(0.2, 0.1), scale=(0.7, 1.5), shear=15.0),
    "affine_bilinear": RandomAffine(
        degrees=45.0, shear=(-10, 20, -5, 5), interpolation="bilinear", fill=200
    ),
}


def noise(count, channels=3, height=12, width=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def smooth(count, channels=3, height=12, width=10):
    """Random blobs of about four pixels, as photographs have them."""
    coarse = noise(count, channels, height // 4 + 1, width // 4 + 1).float()
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return fine.clamp(0, 255).round().to(torch.uint8)


IMAGES = {"noise": noise, "smooth": smooth}


def both_axes(box):
    """Starts and lengths, [2, B] each."""
    top, left, height, width = box
    return torch.stack((top, left)), torch.stack((height, width))


def boxes(count, height, width, seed=1):
    """Top, left, height and width, int64 [count] each, of boxes of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(count, generator=generator) for _ in range(4)]
    box_height, box_width = (draw[0] * height).long() + 1, (draw[1] * width).long() + 1
    top = (draw[2] * (height - box_height + 1)).long()
    return top, (draw[3] * (width - box_width + 1)).long(), box_height, box_width


def bits(operation, count, view=0):
    draws = [(0, draw) for draw in range(operation.num_draws)]
    return bits_KB(7, draws, view, torch.arange(count)).view(len(draws), count)


def difference(found, expected):
    """Largest difference, share of all pixels that differ, share that differs by more than one."""
    levels = (found.int() - expected.int()).abs()
    return levels.max().item(), *((levels > k).float().mean().item() for k in (0, 1))


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


# --------------------------------------------------------------------------- tables


@pytest.mark.parametrize(("angle", "sine", "cosine"), replay.known_answers("sines"))
def test_sines_are_those_documented(angle, sine, cosine):
    matrix = affine.rotation_matrix(torch.tensor([angle]))[0].tolist()
    assert matrix == [cosine, -sine, 0, sine, cosine, 0]


@pytest.mark.parametrize(("angle", "tangent"), replay.known_answers("tangents"))
def test_tangents_are_those_documented(angle, tangent):
    assert lookup_tables.tangents()[angle] == tangent


@pytest.mark.parametrize(("low", "high", "entry", "value"), replay.known_answers("log_uniform"))
def test_log_uniform_is_that_documented(low, high, entry, value):
    assert lookup_tables.log_uniform(low, high)[entry] == value


@pytest.mark.parametrize(("alpha", "entry", "value"), replay.known_answers("beta"))
def test_beta_is_that_documented(alpha, entry, value):
    assert lookup_tables.beta(alpha)[entry] == value


def test_tables_equal_those_of_float_functions():
    angles = np.radians(np.arange(5761) / 64)
    assert np.rint(65536 * np.sin(angles)).astype(int).tolist() == list(lookup_tables.sines())
    assert np.rint(65536 * np.tan(angles[:-1])).astype(int).tolist() == list(
        lookup_tables.tangents()
    )
    quantiles = 0.75 * (4 / 3 / 0.75) ** ((np.arange(1024) + 0.5) / 1024)
    assert np.rint(65536 * quantiles).astype(int).tolist() == list(
        lookup_tables.log_uniform(0.75, 4 / 3)
    )


# --------------------------------------------------------------------------- the specification


def resampled(old, size, interpolation, antialias):
    """A line of pixels at another size, in Python's integers, as docs/views.md has it."""
    n = len(old)
    if interpolation == "nearest":
        return [old[i * n // size] for i in range(size)]
    reach = max(n, size) if antialias else size
    new = []
    for i in range(size):
        shares = [max(0, 2 * reach - abs((2 * j + 1) * size - (2 * i + 1) * n)) for j in range(n)]
        total = sum(shares)
        ends = [(2**14 * sum(shares[:j]) + total // 2) // total for j in range(n + 1)]
        weighted = sum((ends[j + 1] - ends[j]) * old[j] for j in range(n))
        new.append((weighted + 2**13) >> 14)
    return new


def resampled_box(image, box, size, interpolation, antialias):
    top, left, height, width = (int(x) for x in box)
    image = image[:, top : top + height, left : left + width].astype(int)
    for axis, length in ((2, size[1]), (1, size[0])):
        image = np.apply_along_axis(
            lambda old, length=length: resampled(old.tolist(), length, interpolation, antialias),
            axis,
            image,
        )
    return image


def mapped(image, matrix, interpolation, fill):
    """An image under an affine map, pixel by pixel."""
    a, b, c, d, e, f = matrix
    channels, height, width = image.shape
    new = np.empty((channels, height, width), int)

    def term(t):
        return min(max((t + 16) // 32, -(2**30)), 2**30 - 1)

    def old(row, column):
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column].astype(int) if inside else fill

    for i, j in np.ndindex(height, width):
        x, y = 2 * j - (width - 1), 2 * i - (height - 1)
        to_x = term(a * x) + term(b * y + 2 * c + 65536 * (width - 1))
        to_y = term(d * x) + term(e * y + 2 * f + 65536 * (height - 1))
        if interpolation == "nearest":
            new[:, i, j] = old((to_y + 2048) // 4096, (to_x + 2048) // 4096)
            continue
        (p, u), (q, v) = (divmod((place + 8) // 16, 256) for place in (to_x, to_y))
        upper = (256 - v) * ((256 - u) * old(q, p) + u * old(q, p + 1))
        lower = v * ((256 - u) * old(q + 1, p) + u * old(q + 1, p + 1))
        new[:, i, j] = (upper + lower + 2**15) >> 16
    return new


@pytest.mark.parametrize(
    ("old", "size", "interpolation", "antialias", "new"), replay.known_answers("resampling")
)
def test_resampling_gives_the_documented_pixels(old, size, interpolation, antialias, new):
    new = [new] if isinstance(new, int) else new
    assert resampled(old, size, interpolation, antialias) == new
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        image = torch.tensor(old, dtype=torch.uint8).view(shape)
        sizes = (1, size) if shape[-1] == -1 else (size, 1)
        found = resampling.resize(image, sizes, interpolation, bool(antialias))
        assert found.flatten().tolist() == new


@pytest.mark.parametrize("size", [(7, 5), (13, 21), (1, 1)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_is_that_specified(size, interpolation, antialias, channels):
    images = noise(12, channels, 17, 13)
    box = boxes(12, 17, 13)
    found = resampling.resized_crop(images, *both_axes(box), size, interpolation, antialias)
    for sample, image in enumerate(images.numpy()):
        one = [x[sample] for x in box]
        expected = resampled_box(image, one, size, interpolation, antialias)
        assert found[sample].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("angle", "right", "down", "scale", "sx", "sy", "matrix"), replay.known_answers("affine maps")
)
def test_affine_matrix_is_that_documented(angle, right, down, scale, sx, sy, matrix):
    parameters = (torch.tensor([x]) for x in (angle, right, down, scale, sx, sy))
    assert affine.affine_matrix(*parameters)[0].tolist() == matrix


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 5, 8), (3, 9, 7)])
def test_affine_is_that_specified(interpolation, channels, height, width):
    images = noise(8, channels, height, width)
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randint(-200_000, 200_000, (8, 6), generator=generator)
    matrices[0] = torch.tensor([2**40, 0, 0, 0, -(2**40), 2**45])  # saturates
    matrices[1] = torch.tensor([32768, 0, 32768, 0, 32768, -32768])  # right between pixels
    found = affine.affine(images, matrices, interpolation, 77)
    for sample, image in enumerate(images.numpy()):
        expected = mapped(image, matrices[sample].tolist(), interpolation, 77)
        assert found[sample].tolist() == expected.tolist()


# --------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_vertical_flip_equals_torchvision(p):
    images, flip = noise(32), RandomVerticalFlip(p=p)
    drawn = bits(flip, 32)
    found = flip(images, drawn)
    for sample, flipped in enumerate(bernoulli(drawn[0], p).tolist()):
        expected = reference.vertical_flip(images[sample]) if flipped else images[sample]
        assert found[sample].equal(expected)


@pytest.mark.parametrize("size", [4, (12, 10), (5, 20), (20, 7), (7, 9), 31])
@pytest.mark.parametrize(("height", "width"), [(12, 10), (11, 13)])
def test_center_crop_equals_torchvision(size, height, width):
    images = noise(2, 3, height, width)
    found = CenterCrop(size=size)(images, bits(CenterCrop(size=size), 2))
    wanted = [size, size] if isinstance(size, int) else list(size)
    assert found.equal(reference.center_crop(images, wanted))
    assert found.is_contiguous()


@pytest.mark.parametrize("size", [7, 20, (9, 31), (12, 17)])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_is_at_most_a_grey_level_from_torchvision(size, antialias):
    for images in (smooth(4, 3, 12, 17), smooth(4, 3, 17, 12)):
        resize = Resize(size=size, antialias=antialias)
        found = resize(images, bits(resize, 4))
        wanted = [size] if isinstance(size, int) else list(size)
        expected = reference.resize(images, wanted, antialias=antialias)
        assert found.shape == expected.shape
        assert difference(found, expected)[0] <= 1


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(("old", "new"), [(32, 32), (64, 32), (50, 28), (40, 64)])
@pytest.mark.parametrize("antialias", [True, False])
def test_resized_crop_is_close_to_torchvision(kind, old, new, antialias):
    images, box = IMAGES[kind](64, 3, old, old), boxes(64, old, old)
    found = resampling.resized_crop(images, *both_axes(box), (new, new), antialias=antialias)
    per_sample = zip(images, *(x.tolist() for x in box), strict=True)
    expected = torch.stack(
        [reference.resized_crop(*one, [new, new], antialias=antialias) for one in per_sample]
    )
    largest, share, share_above_one = difference(found, expected)
    # Without antialias torchvision's weights have so few bits that noise shows it.
    assert largest <= (2 if kind == "noise" and not antialias else 1)
    assert share < (0.01 if antialias else 0.03)
    assert share_above_one < 1e-4


@pytest.mark.parametrize(("old", "new"), [(32, 32), (64, 32), (50, 28)])
def test_nearest_resized_crop_equals_torchvision_but_for_its_rounding(old, new):
    images, box = noise(64, 3, old, old), boxes(64, old, old)
    found = resampling.resized_crop(images, *both_axes(box), (new, new), "nearest")
    per_sample = zip(images, *(x.tolist() for x in box), strict=True)
    expected = torch.stack(
        [reference.resized_crop(*one, [new, new], "nearest") for one in per_sample]
    )
    assert difference(found, expected)[1] < 0.003


@pytest.mark.parametrize("quarter", range(-4, 5))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_quarter_turns_move_whole_pixels(quarter, interpolation):
    for size in (8, 9):
        images = noise(3, 3, size, size)
        matrix = affine.rotation_matrix(torch.full((3,), quarter * 90 * 64))
        found = affine.affine(images, matrix, interpolation, 0)
        assert found.equal(images.rot90(quarter, (2, 3)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_shift_equals_torchvision(interpolation):
    images = noise(1, 3, 9, 12)
    for x, y in ((0, 0), (3, -2), (-11, 8), (12, 0), (0, -9), (400, 400)):
        zero = torch.zeros(1, dtype=torch.int64)
        matrix = affine.affine_matrix(zero, zero + x, zero + y, zero + 65536, zero, zero)
        found = affine.affine(images, matrix, interpolation, 0)
        assert found.equal(reference.affine(images, 0, [x, y], 1.0, [0.0, 0.0], interpolation))


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [0, 77])
def test_affine_is_close_to_torchvision(kind, interpolation, fill):
    """Without torchvision's fill, which weighs the rim twice: the fill is subtracted and added."""
    images = IMAGES[kind](40, 3, 32, 33)
    generator = torch.Generator().manual_seed(5)
    limits = ((-11520, 11520), (-9, 10), (-9, 10), (40_000, 100_000), (-2880, 2880), (-2880, 2880))
    drawn = [torch.randint(low, high, (40,), generator=generator) for low, high in limits]
    found = affine.affine(images, affine.affine_matrix(*drawn), interpolation, fill)
    expected = torch.stack(
        [
            reference.affine(
                image.float() - fill, angle / 64, [x, y], scale / 65536, [sx / 64, sy / 64], mode
            )
            for image, mode, angle, x, y, scale, sx, sy in zip(
                images, [interpolation] * 40, *(x.tolist() for x in drawn), strict=True
            )
        ]
    )
    largest, share, share_above_one = difference(found, (expected + fill).round())
    if interpolation == "nearest":
        assert share < 0.001
    else:
        assert share < (0.11 if kind == "noise" else 0.05)
        assert share_above_one < (1e-4 if kind == "noise" else 1e-9)
        assert largest <= 2


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_is_close_to_torchvision(interpolation):
    images = smooth(40, 3, 32, 32)
    angle = torch.arange(-20, 20) * 511
    found = affine.affine(images, affine.rotation_matrix(angle), interpolation, 0)
    expected = torch.stack(
        [
            reference.rotate(image, degrees / 64, interpolation)
            for image, degrees in zip(images, angle.tolist(), strict=True)
        ]
    )
    largest, share, _ = difference(found, expected)
    assert share < 0.001 if interpolation == "nearest" else largest <= 1


# --------------------------------------------------------------------------- draws


def drawn_boxes(crop, height, width, count):
    """What a random resized crop hands to the function that cuts: top, left, height, width."""
    boxes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            resampling,
            "resized_crop",
            lambda images, start, length, *_: boxes.extend((*start, *length)) or images,
        )
        crop(
            torch.empty(1, 1, 1, 1, dtype=torch.uint8).expand(count, 1, height, width),
            bits(crop, count),
        )
    return boxes


def test_boxes_have_the_distribution_of_torchvision():
    """Chi-square below the 0.9999 quantile for 20 bins (19 degrees of freedom): 50.8."""
    crop = RandomResizedCrop(size=8, scale=(0.1, 0.3), ratio=(0.5, 2.0))
    top, left, height, width = drawn_boxes(crop, 2000, 2000, 50_000)
    area = height * width / 2000**2
    log_ratio = (width / height).log2()
    for value, low, high in ((area, 0.1, 0.3), (log_ratio, -1, 1)):
        assert value.min() > low - 0.002
        assert value.max() < high + 0.002
        assert chi_square(torch.histc(value.double(), 20, low, high)) < 50.8
    places = [edge / (2001 - length) for edge, length in ((top, height), (left, width))]
    for place in places:
        assert chi_square(torch.histc(place, 20, 0, 1)) < 50.8
    related = torch.corrcoef(torch.stack((area, log_ratio, *places))).triu(1)
    assert related.abs().max() < 0.02


def test_boxes_of_small_images_have_the_mean_sides_of_torchvision():
    top, left, height, width = drawn_boxes(RandomResizedCrop(size=32), 32, 32, 20_000)
    torch.manual_seed(0)
    image = torch.empty(3, 32, 32, dtype=torch.uint8)
    made = [v2.RandomResizedCrop(32).make_params([image]) for _ in range(3000)]
    for name, found in (("height", height), ("width", width), ("top", top), ("left", left)):
        expected = torch.tensor([float(one[name]) for one in made])
        deviation = expected.std() / math.sqrt(3000) + found.double().std() / math.sqrt(20_000)
        assert abs(found.double().mean() - expected.mean()) < 4 * deviation


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (1, 1), (2, 50)])
@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (1.0, 1.0), (2.0, 3.0), (0.2, 0.3)])
def test_boxes_that_do_not_fit_become_the_middle_one_of_torchvision(shape, ratio):
    crop = RandomResizedCrop(size=8, scale=(1.0, 1.0), ratio=ratio)
    found = [x[0].item() for x in drawn_boxes(crop, *shape, 1)]
    made = v2.RandomResizedCrop(8, (1.0, 1.0), ratio).make_params(
        [torch.empty(1, *shape, dtype=torch.uint8)]
    )
    sides = [max(1, made[name]) for name in ("height", "width")]  # torchvision's may be 0
    assert found == [made["top"], made["left"], *sides]


def test_rounded_square_roots_are_exact():
    roots = torch.tensor([0, 1, 2, 3, 1000, 2**20 + 1, 2**26 - 1])
    for offset in (-1, 0, 1):
        squares = (roots * roots + offset).clamp(min=0)
        assert resizing._square_root(squares).tolist() == [math.isqrt(x) for x in squares.tolist()]


def drawn_matrices(operation, count, height=40, width=60):
    matrices = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            affine, "affine", lambda images, matrix, *_: matrices.append(matrix) or images
        )
        operation(torch.empty(count, 1, height, width, dtype=torch.uint8), bits(operation, count))
    return matrices[0]


def test_angles_are_uniform():
    matrices = drawn_matrices(RandomRotation(degrees=(-30, 60)), 50_000).double()
    degrees = torch.rad2deg(torch.atan2(matrices[:, 3], matrices[:, 0]))
    assert chi_square(torch.histc(degrees, 20, -30, 60)) < 50.8


def test_affine_parameters_are_uniform():
    shift = drawn_matrices(RandomAffine(degrees=0, translate=(0.25, 0.1)), 50_000) // 65536
    for column, largest in ((2, 15), (5, 4)):
        counts = torch.bincount(shift[:, column] + largest, minlength=2 * largest + 1)
        assert chi_square(counts[1:-1]) < 66  # 28 degrees of freedom
        # The outermost pixels get half a share each, as where a uniform number is rounded.
        assert abs(counts[[0, -1]].sum() / counts[1:-1].double().mean() - 1) < 0.1
    scale = 65536 / drawn_matrices(RandomAffine(degrees=0, scale=(0.5, 2.0)), 50_000)[:, 0]
    assert chi_square(torch.histc(scale.double(), 20, 0.5, 2.0)) < 50.8
    shear = drawn_matrices(RandomAffine(degrees=0, shear=(-10, 40)), 50_000)[:, 1] / 65536
    degrees = torch.rad2deg(torch.atan(shear.double()))
    assert chi_square(torch.histc(degrees, 20, -10, 40)) < 50.8


@pytest.mark.parametrize("name", OPERATIONS)
def test_choices_say_what_can_be_enumerated(name):
    choices = {"vertical_flip": (2,), "center_crop": (), "resize": (), "resize_nearest": ()}
    assert OPERATIONS[name].choices == choices.get(name)


def test_fixed_sizes_are_known():
    fixed = [name for name, operation in OPERATIONS.items() if operation.fixes_size]
    assert fixed == ["center_crop", "resize_nearest", "resized_crop", "resized_crop_nearest"]


# --------------------------------------------------------------------------- bit-equality


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 12, 10), (1, 23, 31)])
def test_batch_and_order_do_not_matter(name, channels, height, width):
    operation, images = OPERATIONS[name], noise(300, channels, height, width)
    drawn = bits(operation, 300)
    original = images.clone()
    found = operation(images, drawn)
    assert images.equal(original)
    assert found.dtype is torch.uint8
    assert found.is_contiguous()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert operation(images[order], drawn[:, order]).equal(found[order])
    for sample in range(0, 300, 30):
        part = slice(sample, sample + 1)
        assert operation(images[part], drawn[:, part]).equal(found[part])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_boxes_cut_out_first_are_the_same(monkeypatch, interpolation, antialias):
    images, box = noise(40, 3, 33, 57), boxes(40, 33, 57)
    found = resampling.resized_crop(images, *both_axes(box), (20, 24), interpolation, antialias)
    monkeypatch.setattr(resampling, "_LARGE", 0)
    assert found.equal(
        resampling.resized_crop(images, *both_axes(box), (20, 24), interpolation, antialias)
    )


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("memory", ["channels_last", "strided", "expanded"])
def test_memory_layout_does_not_matter(name, memory):
    operation, images = OPERATIONS[name], noise(8)
    if memory == "channels_last":
        other = images.to(memory_format=torch.channels_last)
    elif memory == "strided":
        other = noise(8, width=20)[..., ::2]
    else:
        other = images[:1].expand(8, -1, -1, -1)
    drawn = bits(operation, 8)
    found = operation(other, drawn)
    assert found.equal(operation(other.contiguous(), drawn))
    assert found.is_contiguous()


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_and_inference_mode_do_not_matter(name):
    operation, images = OPERATIONS[name], noise(6)
    drawn = bits(operation, 6)
    found = operation(images, drawn)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert operation(images, drawn).equal(found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_cuda_equals_cpu(name):
    operation, images = OPERATIONS[name], noise(100, 3, 45, 37)
    drawn = bits(operation, 100)
    assert operation(images.cuda(), drawn.cuda()).cpu().equal(operation(images, drawn))


# --------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        (RandomVerticalFlip, {"p": 1.5}, r"random_vertical_flip: p is 1.5, wanted a probability"),
        (CenterCrop, {"size": 0}, r"center_crop: size is 0, wanted 1\.\.16384 pixels"),
        (Resize, {"size": (8, -1)}, r"resize: size is -1, wanted 1\.\.16384 pixels"),
        (Resize, {"size": 8, "interpolation": "bicubic"}, r"wanted bilinear or nearest"),
        (RandomResizedCrop, {"size": 8, "scale": (0.5, 0.2)}, r"scale is \[0\.5, 0\.2\], wanted"),
        (RandomResizedCrop, {"size": 8, "scale": (0.0, 0.2)}, r"wanted \[smallest, largest\]"),
        (RandomResizedCrop, {"size": 8, "ratio": (0.0, 1.0)}, r"ratio is \[0\.0, 1\.0\], wanted"),
        (RandomResizedCrop, {"size": 8, "interpolation": "box"}, r"interpolation is 'box'"),
        (RandomRotation, {"degrees": -3.0}, r"degrees is -3\.0, wanted 0\.\.360 degrees"),
        (RandomRotation, {"degrees": (3.0, 1.0)}, r"degrees is \[3\.0, 1\.0\], wanted"),
        (RandomRotation, {"degrees": 3.0, "fill": 300}, r"fill is 300, wanted 0\.\.255"),
        (RandomRotation, {"degrees": math.nan}, r"degrees is nan"),
        (RandomAffine, {"degrees": 3.0, "translate": (0.1, 1.1)}, r"translate is 1\.1, wanted"),
        (RandomAffine, {"degrees": 3.0, "scale": (0.0, 1.0)}, r"scale is \[0\.0, 1\.0\], wanted"),
        (RandomAffine, {"degrees": 3.0, "shear": 90.0}, r"shear is 90\.0, wanted 0\.\.89 degrees"),
        (RandomAffine, {"degrees": 3.0, "shear": (0, 1, 5, 2)}, r"shear is \[5, 2\], wanted"),
        (RandomAffine, {"degrees": 3.0, "interpolation": "cubic"}, r"wanted nearest or bilinear"),
    ],
)
def test_bad_arguments_are_refused(operation, arguments, message):
    with pytest.raises(ConfigError, match=message):
        operation(**arguments)
