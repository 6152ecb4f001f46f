"""An independent reader of views: plain NumPy, written from docs/views.md alone.

It imports neither torch nor kdscale. What it replays from the JSON of `Pipeline.describe()` must be
what kdscale makes, bit for bit.
"""

import json
from pathlib import Path

import numpy as np

GENERATOR = 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

# --------------------------------------------------------------------------- generator


def uint64(value):
    """An integer of any size modulo 2^64."""
    return np.uint64(int(value) % 2**64)


def absorb(state, field):
    """One link of the chain, on uint64 scalars or arrays."""
    with np.errstate(over="ignore"):
        x = (state + GOLDEN) ^ field
        x = (x ^ (x >> np.uint64(30))) * MULTIPLIER_1
        x = (x ^ (x >> np.uint64(27))) * MULTIPLIER_2
        return x ^ (x >> np.uint64(31))


def chain(*fields):
    """64 bits from the fields in order."""
    state = np.uint64(0)
    for field in fields:
        state = absorb(state, uint64(field))
    return state


def bits(seed, position, draw, view, index):
    """The random bits of one draw of one sample."""
    return chain(seed, position, draw, view, index)


def integer(word, bound):
    """Uniform in 0..bound-1."""
    return (int(word) >> 32) * bound >> 32


def bernoulli(word, probability):
    """True with the probability, rounded to a multiple of 2^-32."""
    return int(word) >> 32 < round(probability * 2**32)


def permutation(num_samples, *fields):
    """The numbers 0..num_samples-1 in the order of their keys, as signed integers."""
    keys = absorb(chain(*fields), np.arange(num_samples, dtype=np.uint64))
    return np.argsort(keys.view(np.int64), kind="stable")


# --------------------------------------------------------------------------- views


def random_crop(image, words, padding, padding_mode, fill):
    """A crop of the image's own size out of the padded image; image is [C, H, W]."""
    _, height, width = image.shape
    options = {"constant_values": fill} if padding_mode == "constant" else {}
    around = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image, around, mode=padding_mode, **options)
    top, left = (integer(word, 2 * padding + 1) for word in words)
    return padded[:, top : top + height, left : left + width]


def random_horizontal_flip(image, words, p):
    """The image or its mirror image."""
    return image[:, :, ::-1] if bernoulli(words[0], p) else image


OPERATIONS = {
    "random_crop": (random_crop, 2),
    "random_horizontal_flip": (random_horizontal_flip, 1),
}


def replay(description, images, views, indices):
    """The views of images [B, C, H, W], from the JSON text of a pipeline's description."""
    pipeline = json.loads(description)
    assert pipeline["generator"] == GENERATOR
    return np.stack(
        [
            _replay_one(pipeline, image, view, index)
            for image, view, index in zip(images, views, indices, strict=True)
        ]
    )


def _replay_one(pipeline, image, view, index):
    for position, entry in enumerate(pipeline["operations"]):
        arguments = {key: value for key, value in entry.items() if key != "name"}
        operation, num_draws = OPERATIONS[entry["name"]]
        words = [bits(pipeline["seed"], position, draw, view, index) for draw in range(num_draws)]
        image = operation(image, words, **arguments)
    return image


def digest(image):
    """The view digest of one sample: uint8 [C, H, W] -> an integer below 2^32."""
    content = image.tobytes()
    content += bytes(-len(content) % 8)
    words = np.frombuffer(content, dtype="<u8").astype(np.uint64)
    view_key = chain(int.from_bytes(b"view"))
    keys = absorb(view_key, np.arange(len(words), dtype=np.uint64))
    total = sum(int(word) for word in absorb(keys, words))
    shape = chain(view_key, *image.shape)
    return int(absorb(uint64(total), shape)) % 2**32


# --------------------------------------------------------------------------- schedule and order


def view_of_epoch(epoch, num_views, seed):
    """Which view an epoch shows."""
    cycle, position = divmod(epoch, num_views)
    return int(permutation(num_views, seed, cycle)[position])


def shifted_view(epoch, index, num_views, seed, shift_every):
    """Which view an epoch shows of a sample, where blocks of samples go through it shifted."""
    cycle, position = divmod(epoch, num_views)
    word = chain(chain(int.from_bytes(b"shift")), seed, index // shift_every)
    place = (integer(word, num_views) + position) % num_views
    return int(permutation(num_views, seed, cycle)[place])


def epoch_order(samples, seed, epoch):
    """The samples of a split in the order in which an epoch shows them."""
    order = permutation(len(samples), chain(int.from_bytes(b"order")), seed, epoch)
    return [samples[position] for position in order]


def batch_indices(samples, seed, step, global_batch_size, process_index=0, num_processes=1):
    """The samples that one process shows at a step."""
    used = len(samples) - len(samples) % num_processes
    if used > global_batch_size and used % global_batch_size == 1:
        used -= 1
    steps_per_epoch = -(-used // global_batch_size)
    epoch, position = divmod(step, steps_per_epoch)
    batch = epoch_order(samples, seed, epoch)[:used][position * global_batch_size :]
    part = len(batch[:global_batch_size]) // num_processes
    return batch[process_index * part : (process_index + 1) * part]


def split_validation(num_samples, share):
    """The samples to train on and to validate on."""
    order = permutation(num_samples, chain(int.from_bytes(b"valid")))
    held_out = round(num_samples * share)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


# --------------------------------------------------------------------------- known answers

SPECIFICATION = Path(__file__).parents[2] / "docs" / "views.md"


def known_answers(title):
    """The rows of the table under the heading `Known answers: title`, each a list of values."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    section = text.split(f"### Known answers: {title}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, title
    return [[_value(cell) for cell in line.strip("|").split("|")] for line in lines[2:]]


def _value(cell):
    """A number (hexadecimal with 0x), a list of numbers, or text."""
    cell = cell.strip().strip("`")
    for parse in (lambda text: int(text, 0), float, lambda text: [int(n) for n in text.split()]):
        try:
            return parse(cell)
        except ValueError:
            continue
    return cell


def sample_images(channels, height, width, indices):
    """The images of the known answers: pixel (c, y, x) of sample i is 31i + 97c + 7y + 13x + xy."""
    c, y, x = np.ogrid[:channels, :height, :width]
    i = np.asarray(indices).reshape(-1, 1, 1, 1)
    return ((31 * i + 97 * c + 7 * y + 13 * x + x * y) % 256).astype(np.uint8)
