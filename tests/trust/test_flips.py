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
from pathlib import Path

import pytest
import sandbox
from safetensors.torch import load_file

_MEASURED = {
    "latency", "train_seconds", "waited_seconds", "waited_share", "build_seconds",
    "checksum", "crc32",
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
REPORT = Consumer(("report", "student", "--html", "-", "--cache-root", "none"), _printed)
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
    Target("metrics", ("student/metrics.jsonl",), (REPORT,)),
    Target("evaluation", ("student/evaluation.json",), (REPORT,)),
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


class Judge:
    """Compares a command's outcome after a flip with that before it."""

    def __init__(self, material, folder):
        self.material, self.folder = material, folder
        self._sound = {}

    def verdict(self, consumer, file=None, bit=0):
        """`same`, `refused`, `said`, or a fault in words."""
        box = self.folder / "box"
        shutil.copytree(self.material, box)
        try:
            if file is not None:
                _flip(box / file, bit)
            done = sandbox.run_command(*consumer.args, cwd=box)
            if done.fault is not None:
                return done.fault
            product = _product(consumer, box, done) if done.exit_code == 0 else None
        finally:
            shutil.rmtree(box)
        if file is None:
            assert done.exit_code == 0, done.stderr
            self._sound[consumer] = (product, _told(done))
            return "same"
        if done.exit_code:
            return "refused" if done.stderr + done.stdout else "fault: no message"
        if consumer not in self._sound:
            self.verdict(consumer)
        sound, usual = self._sound[consumer]
        if product == sound:
            return "same"
        said = any(_SAID.search(line) for line in _told(done) - usual)
        return "said" if said else "silently another outcome"


def _flip_all(targets, count, judge, seed):
    """`count` flips, each read by each consumer of its file; the faults, in words."""
    draw = random.Random(seed)
    faults, counts = [], {target.name: Counter() for target in targets}
    for number in range(count):
        target = targets[number % len(targets)]
        file = draw.choice(target.files(judge.material))
        bit = draw.randrange(8 * (judge.material / file).stat().st_size)
        for consumer in target.consumers:
            verdict = judge.verdict(consumer, file, bit)
            known = verdict if verdict in ("same", "refused", "said") else "fault"
            counts[target.name][known] += 1
            if known == "fault":
                faults.append(f"{file} bit {bit}: {' '.join(consumer.args[:2])}: {verdict}")
    print()  # noqa: T201  (a table, with -s)
    for name, found in counts.items():
        row = "  ".join(f"{found[key]:5} {key}" for key in ("same", "refused", "said", "fault"))
        print(f"{name:22} {row}")  # noqa: T201
    return faults


@pytest.fixture
def judge(material, tmp_path):
    return Judge(material, tmp_path)


def _assert_none(faults):
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def test_flips_in_runs_checkpoints_images_and_predictions_are_never_silent(judge):
    _assert_none(_flip_all(RUN, 100, judge, seed=12))


def test_flips_in_a_cache_are_found_by_verify_and_never_trained_on(judge):
    _assert_none(_flip_all(CACHE, 50, judge, seed=12))


@pytest.mark.slow
def test_1000_flips_in_runs_checkpoints_images_and_predictions(judge):
    _assert_none(_flip_all(RUN, 1000, judge, seed=2026))


@pytest.mark.slow
def test_1500_flips_in_a_cache(judge):
    _assert_none(_flip_all(CACHE, 1500, judge, seed=2026))
