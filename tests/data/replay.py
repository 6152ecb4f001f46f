"""An independent reader of views: plain NumPy, written from docs/views.md alone.

It imports neither torch nor kdscale. What it replays from the JSON of `Pipeline.describe()` must be
what kdscale makes, bit for bit.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np

from tests.data.replay_pixels import MIXING, OPERATIONS

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


class Draws:
    """The random choices of one operation for one sample.

    `word(draw, outcomes)` gives the bits of a draw that has so many outcomes.
    """

    def __init__(self, word):
        self.word = word

    def integer(self, draw, bound):
        """Uniform in 0..bound-1."""
        return integer(self.word(draw, bound), bound)

    def between(self, draw, low, high, units):
        """Uniform in the integers from round(units low) to round(units high)."""
        first, last = round(units * low), round(units * high)
        return first + self.integer(draw, last - first + 1)

    def bernoulli(self, draw, p):
        """True with probability p."""
        return bernoulli(self.word(draw, 1 if p in (0, 1) else 2), p)

    def noise(self, draw, count):
        """So many uint8 pixels out of words that are drawn from one, the lowest byte first."""
        state = uint64(self.word(draw, None))
        words = absorb(state, np.arange(-(-count // 8), dtype=np.uint64))
        return np.frombuffer(words.astype("<u8").tobytes(), np.uint8)[:count]


def replay(description, images, views, indices):
    """The views of images [B, C, H, W], from the JSON text of a pipeline's description.

    Where the pipeline mixes, the partners must be among the images.
    """
    pipeline = json.loads(description)
    known = dict(zip(indices, images, strict=True))
    samples = zip(images, views, indices, strict=True)
    return np.stack(
        [_replay_one(pipeline, {**known, i: image}, view, i) for image, view, i in samples]
    )


def replay_cache(manifest, images, view, indices):
    """One view of some samples of a cache, by its manifest; `images` are those of all samples."""
    return np.stack([_replay_one(manifest["views"], images, view, index) for index in indices])


def _replay_one(pipeline, images, view, index):
    """One view of one sample; `images[index]` is its image."""
    assert pipeline["generator"] == GENERATOR
    seed = pipeline["seed"]

    def draws_of(position, sample):
        return Draws(lambda draw, _: bits(seed, position, draw, view, sample))

    if pipeline.get("enumerated"):
        outcomes = []
        counting = Draws(lambda _, count: outcomes.append(count) or 0)
        _apply(pipeline, images, view, index, lambda *_: counting)
        words = iter(_enumerated_words(outcomes, seed, view, index))
        enumerating = Draws(lambda *_: next(words))
        return _apply(pipeline, images, view, index, lambda *_: enumerating)
    return _apply(pipeline, images, view, index, draws_of)


def _apply(pipeline, images, view, index, draws_of, count=None):
    """The sample after the first `count` operations."""
    image = images[index]
    for position, entry in enumerate(pipeline["operations"][:count]):
        arguments = dict(entry)
        name, draws = arguments.pop("name"), draws_of(position, index)
        if name in MIXING:
            partner = partners(**pipeline["pairing"], seed=pipeline["seed"], view=view)[index]
            other = _apply(pipeline, images, view, partner, draws_of, position)
            image = MIXING[name](image, other, draws, **arguments)
        elif name in OPERATIONS:
            image = OPERATIONS[name](image, draws, **arguments)
        else:
            raise NotImplementedError(f"{name} is no native operation: torchvision replays it")
    return image


def _enumerated_words(outcomes, seed, view, index):
    """The bits of all draws, which have so many outcomes each, where a view is an outcome."""
    total = math.prod(outcomes)
    outcome = (view + integer(chain(chain(int.from_bytes(b"all")), seed, index), total)) % total
    words = []
    for count in reversed(outcomes):
        outcome, digit = divmod(outcome, count)
        words.append(digit * (2**32 - 1) // max(count - 1, 1) << 32)
    return words[::-1]


@functools.lru_cache(maxsize=1000)
def partners(num_samples, validation, seed, view, within=None):
    """The partner of every sample in a view."""
    found = list(range(num_samples))
    for number, group in enumerate(split_validation(num_samples, validation)):
        order = permutation(len(group), chain(int.from_bytes(b"pairs")), number, seed, view)
        blocks = {}
        for position in order:
            blocks.setdefault(group[position] // (within or num_samples), []).append(
                group[position]
            )
        for block in blocks.values():
            for first, second in zip(block[::2], block[1::2], strict=False):
                found[first], found[second] = second, first
    return found


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


def window_of_unit(num_units, most_units, seed, epoch):
    """In which window an epoch shows each unit."""
    order = permutation(num_units, chain(int.from_bytes(b"windows")), seed, epoch)
    num_windows = math.ceil(num_units / most_units)
    found = {unit: place * num_windows // num_units for place, unit in enumerate(order.tolist())}
    return [found[unit] for unit in range(num_units)]


def windowed_order(num_samples, unit_samples, most_units, seed, epoch):
    """The samples of a split in the order in which an epoch shows them window by window."""
    num_units = math.ceil(num_samples / unit_samples)
    window = window_of_unit(num_units, most_units, seed, epoch)
    order = epoch_order(range(num_samples), seed, epoch)
    return sorted(order, key=lambda index: window[index // unit_samples])


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
