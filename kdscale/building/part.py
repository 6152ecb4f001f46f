"""Which part of a cache a builder begins with, among several that were started together."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdscale.errors import ConfigError

_LARGEST_COUNT = 1 << 20

Shard = tuple[int, int]
"""View and shard number."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of `count` equal parts of a cache's shards."""

    index: int = 0
    """Number of the part, 0 to `count` - 1."""
    count: int = 1
    """Number of parts."""
    source: str = ""
    """Variable of the environment that the part was read from; empty where it was given."""

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def of_process(self, index: int, count: int) -> "Part":
        """Return the part of one process of a launch that builds this part with `count`."""
        return Part(self.index * count + index, self.count * count)

    def select(self, shards: Sequence[Shard]) -> set[Shard]:
        """Return this part of some shards: parts do not overlap, and differ by at most one shard.

        A part is the same samples in all views, so its builder reads few of the images.
        """
        ordered = sorted(shards, key=lambda one: (one[1], one[0]))
        first, last = (len(ordered) * (self.index + end) // self.count for end in (0, 1))
        return set(ordered[first:last])


WHOLE = Part()
"""The part of a builder that is started alone."""


def choose_part(text: str | None) -> Part:
    """Return the part that `--part` names; without that, the environment's.

    Raises:
        ConfigError: see `parse_part` and `part_of_environment`.
    """
    return part_of_environment(os.environ) if text is None else parse_part(text)


def parse_part(text: str) -> Part:
    """Return the part that `--part I/N` names; I counts from 1.

    Raises:
        ConfigError: it is not I/N, or I is not one of 1 to N.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count <= _LARGEST_COUNT:
        raise ConfigError(f"--part {text}: I/N is wanted, with I from 1 to N, such as 3/8")
    return Part(index - 1, count)


def part_of_environment(environment: Mapping[str, str]) -> Part:
    """Return the part of a SLURM array's task or of a pod of a Kubernetes Indexed Job.

    Without either, the whole cache. Kubernetes tells a pod its index only: the job's manifest sets
    JOB_COMPLETIONS to the number of completions.

    Raises:
        ConfigError: an index is not one of the array's or the job's.
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        index = _number(environment, "SLURM_ARRAY_TASK_ID")
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        first = _number(environment, "SLURM_ARRAY_TASK_MIN")
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", "1") or 1
        name, position, left_over = "SLURM_ARRAY_TASK_ID", *divmod(index - first, step)
        wanted = f"one of {count} tasks from {first} on in steps of {step}"
    elif "JOB_COMPLETION_INDEX" in environment:
        index = position = _number(environment, "JOB_COMPLETION_INDEX")
        count = _number(environment, "JOB_COMPLETIONS")
        name, left_over, wanted = "JOB_COMPLETION_INDEX", 0, f"less than JOB_COMPLETIONS ({count})"
    else:
        return WHOLE
    if left_over or not 0 <= position < count <= _LARGEST_COUNT:
        raise ConfigError(f"{name} is {index}, wanted {wanted}: give this builder --part I/N")
    return Part(position, count, name)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        stated = repr(text) if name in environment else "not set"
        raise ConfigError(f"{name} is {stated}, wanted a number: set it, or give --part I/N")
    return int(text)
