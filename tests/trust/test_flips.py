"""One flipped bit anywhere: the command gives what it gave before, or says that something is wrong.

Never silently another outcome, never a traceback. Bits are drawn with a fixed seed, the file first
and then the bit in it, so that small files are hit as often as large ones.
"""

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sandbox
from safetensors.torch import load_file

_MEASURED = {
    "latency", "train_seconds", "waited_seconds", "waited_share", "build_seconds",
    "images_per_second", "checksum", "crc32",
}  # fmt: skip
"""Fields that differ from one execution to the next: times, and checksums over them."""
_SAID = re.compile(
    r"damag|chang|checksum|cannot|could not|not what|does not|differ|unknown|not known|missing|lost"
)


# --------------------------------------------------------------------------- what came of a command


def _unmeasured(value):
    if isinstance(value, dict):
        return {key: _unmeasured(one) for key, one in value.items() if key not in _MEASURED}
    return [_unmeasured(one) for one in value] if isinstance(value, list) else value


def _read_run(folder):
    """Weights, result and curves of a finished run."""
    tensors = load_file(folder / "weights.safetensors")
    content = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    result = json.loads((folder / "result.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [content, _unmeasured(result), [_unmeasured(json.loads(line)) for line in lines]]


@dataclass(frozen=True)
class Consumer:
    """A command that reads what was damaged."""

    args: tuple[str, ...]
    product: Callable[[Path, sandbox.Outcome], object]
    """What the command gave, without what is measured anew each time."""


def _printed_json(_, done):
    return _unmeasured(json.loads(done.stdout))


def _printed(_, done):
    return done.stdout


CACHED = ("--targets", "cache", "--cache", "root/tiny.zarr")
EVALUATE = Consumer(("evaluate", "student", "--seconds", "0", "--json"), _printed_json)
BEST = Consumer((*EVALUATE.args, "--weights", "best"), _printed_json)
REPORT = Consumer(("report", "student", "--markdown", "-", "--cache-root", "none"), _printed)
PAGE = Consumer(("report", "student", "--html", "-", "--cache-root", "none"), _printed)
AGAIN = Consumer(("train", "r.toml", *CACHED, "--run", "student", "--resume-if-begun"), _printed)
RESUME = Consumer(
    ("train", "r.toml", *CACHED, "--run", "unfinished", "--resume"),
    lambda box, _: _read_run(box / "unfinished"),
)
TRAIN = Consumer(
    ("train", "r.toml", *CACHED, "--run", "new"), lambda box, _: _read_run(box / "new")
)
VERIFY = Consumer(("cache", "verify", "root/tiny.zarr"), _printed)


@dataclass(frozen=True)
class Target:
    """Files of one kind, and who reads them."""

    name: str
    patterns: tuple[str, ...]
    consumers: tuple[Consumer, ...]

    def files(self, folder):
        found = {path for pattern in self.patterns for path in folder.glob(pattern)}
        return sorted(path.relative_to(folder) for path in found if path.is_file())


RUN = [
    Target("recipe, job, content", ("student/recipe.toml", "student/run.json",
           "student/content.json"), (EVALUATE, REPORT, AGAIN)),
    Target("result", ("student/result.json",), (EVALUATE, REPORT, AGAIN)),
    Target("metrics", ("student/metrics.jsonl",), (PAGE,)),
    Target("evaluation", ("student/evaluation.json",), (PAGE,)),
    Target("weights", ("student/weights.safetensors",), (EVALUATE,)),
    Target("best weights", ("student/best.safetensors",), (BEST,)),
    Target("checkpoints", ("unfinished/checkpoints/*/*",), (RESUME,)),
    Target("unfinished run", ("unfinished/*",), (RESUME,)),
    Target("decoded images", ("root/images/[0-9a-f]*/*",), (TRAIN,)),
    Target("predictions", ("root/predictions/*",), (EVALUATE,)),
]  # fmt: skip
CACHE = [Target("cache", ("root/tiny.zarr/**/*",), (VERIFY, TRAIN))]


# --------------------------------------------------------------------------- flips


def _flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _told(done):
    """What the command printed, or says in its page, line by line, without numbers."""
    pieces = re.split(r"[\n<>]", done.stderr + done.stdout)
    return {re.sub(r"[\d.]+", "#", piece) for piece in pieces}


def _product(consumer, box, done):
    try:
        return consumer.product(box, done)
    except ValueError as error:
        return f"the command has written what cannot be read: {error}"


@dataclass(frozen=True)
class Flip:
    """A bit of a file, and a command that reads it."""

    target: str
    file: Path
    bit: int
    consumer: Consumer


def _draw(targets, count, folder, seed):
    """`count` bits, each with every command that reads its file."""
    draw = random.Random(seed)
    for number in range(count):
        target = targets[number % len(targets)]
        file = draw.choice(target.files(folder))
        bit = draw.randrange(8 * (folder / file).stat().st_size)
        yield from (Flip(target.name, file, bit, consumer) for consumer in target.consumers)


class Judge:
    """Compares what commands give after a flip with what they give without one."""

    def __init__(self, material, folder):
        self.material, self.folder = material, folder
        self._sound = {}

    def verdicts(self, flips):
        """Of each flip: `same`, `refused`, `said`, or a fault in words."""
        for start in range(0, len(flips), _TOGETHER):
            some = flips[start : start + _TOGETHER]
            for consumer in {flip.consumer for flip in some} - self._sound.keys():
                ((done, product),) = self._outcomes([(consumer, None)])
                assert (done.exit_code, done.fault) == (0, None), done.stderr
                self._sound[consumer] = product, _told(done)
            outcomes = self._outcomes([(flip.consumer, flip) for flip in some])
            yield from (
                self._verdict(flip.consumer, *outcome)
                for flip, outcome in zip(some, outcomes, strict=True)
            )

    def _outcomes(self, wanted):
        """What comes of commands, each in a copy of the material with its bit flipped."""
        calls = []
        for number, (consumer, flip) in enumerate(wanted):
            box = Path(shutil.copytree(self.material, self.folder / str(number)))
            if flip is not None:
                _flip(box / flip.file, flip.bit)
            calls.append(sandbox.Call(partial(sandbox.main, *consumer.args), box))
        found = []
        for (consumer, _), call, done in zip(wanted, calls, sandbox.run_all(calls), strict=True):
            sound = done.exit_code == 0 and done.fault is None
            found.append((done, _product(consumer, call.cwd, done) if sound else None))
            shutil.rmtree(call.cwd)
        return found

    def _verdict(self, consumer, done, product):
        if done.fault is not None:
            return done.fault
        if done.exit_code:
            return "refused" if done.stderr + done.stdout else "no message"
        sound, usual = self._sound[consumer]
        if product == sound:
            return "same"
        said = any(_SAID.search(line) for line in _told(done) - usual)
        return "said" if said else "silently another outcome"


_TOGETHER = 50
"""Commands in one child: the folders of so many are there at once."""
_SOUND = ("same", "refused", "said")


def _faults(flips, judge):
    """The faults in words; prints a table of what came of the flips."""
    faults, counts = [], {flip.target: Counter() for flip in flips}
    for flip, verdict in zip(flips, judge.verdicts(flips), strict=True):
        counts[flip.target][verdict if verdict in _SOUND else "fault"] += 1
        if verdict not in _SOUND:
            command = " ".join(flip.consumer.args[:2])
            faults.append(f"{flip.file} bit {flip.bit}: {command}: {verdict}")
    print()  # noqa: T201  (a table, with -s)
    for name, found in counts.items():
        row = "  ".join(f"{found[key]:5} {key}" for key in (*_SOUND, "fault"))
        print(f"{name:22} {row}")  # noqa: T201
    return faults


@pytest.fixture
def judge(material, tmp_path):
    return Judge(material, tmp_path)


def _assert_no_fault(targets, count, judge, seed):
    faults = _faults(list(_draw(targets, count, judge.material, seed)), judge)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def test_flips_in_runs_checkpoints_images_and_predictions_are_never_silent(judge):
    _assert_no_fault(RUN, 20, judge, seed=12)


def test_flips_in_a_cache_are_found_by_verify_and_never_trained_on(judge):
    _assert_no_fault(CACHE, 12, judge, seed=12)


@pytest.mark.thorough
@pytest.mark.parametrize(("targets", "count"), [(RUN, 60), (CACHE, 30)], ids=["run", "cache"])
def test_more_flips_are_never_silent(judge, targets, count):
    _assert_no_fault(targets, count, judge, seed=12)


@pytest.mark.slow
def test_1000_flips_in_runs_checkpoints_images_and_predictions(judge):
    _assert_no_fault(RUN, 1000, judge, seed=2026)


@pytest.mark.slow
def test_1500_flips_in_a_cache(judge):
    _assert_no_fault(CACHE, 1500, judge, seed=2026)
